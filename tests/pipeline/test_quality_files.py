"""The figures that `--quality` reads: only those of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying
from support.stored_results import QUALITY

from ders_core.errors import EvaluationError
from ders_core.pipeline.export import export
from ders_core.pipeline.given_quality import read_quality
from ders_core.pipeline.quality import Quality

GOOD: dict[str, Any] = Quality(
    tokens=4096,
    perplexity=12.5,
    reference_perplexity=12.0,
    kl=0.01,
    top1_agreement=0.98,
    routing_agreement=0.9,
    device="cpu",
    seconds=3.0,
).to_dict()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_figures_are_read_in_any_encoding_of_json(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(GOOD), encoding=encoding)  # a redirection in PowerShell is UTF-16
    assert read_quality(file).to_dict() == GOOD


REFUSED: list[tuple[str, list[str]]] = [
    ("{", ["not JSON"]),
    ("", ["not JSON"]),
    ("[1]", ["no figures"]),
    ('"text"', ["no figures"]),
    ("{}", ["tokens"]),
    ('{"perplexity": 3}', ["tokens"]),
    (json.dumps(GOOD | {"perplexity": "x"}), ["perplexity", "x"]),
    (json.dumps(GOOD | {"perplexity": float("nan")}), ["perplexity", "nan"]),
    (json.dumps(GOOD | {"kl": float("nan")}), ["kl", "nan"]),
    (json.dumps(GOOD | {"kl": -0.5}), ["kl", "-0.5"]),
    (json.dumps(GOOD | {"top1_agreement": 98.8}), ["top1_agreement", "98.8"]),
    (json.dumps(GOOD | {"tokens": 0}), ["tokens", "0"]),
    (json.dumps(GOOD | {"tokens": 1.5}), ["tokens"]),
    (json.dumps(GOOD | {"device": None}), ["device"]),
]


NAN, INFINITE = float("nan"), float("inf")
IMPOSSIBLE: list[tuple[dict[str, Any], list[str]]] = [
    ({"reference_perplexity": 1e-320}, ["reference_perplexity", "1e-320"]),
    ({"perplexity": 0.9}, ["perplexity", "0.9"]),
    ({"kl_low": 0.26}, ["kl_low is 0.26", "kl is 0.25"]),
    ({"kl_high": 0.24}, ["kl is 0.25", "kl_high is 0.24"]),
    ({"kl_high": INFINITE}, ["kl_high is inf"]),
    ({"kl_p99": INFINITE}, ["kl_p99 is inf"]),
    ({"kl_p95": 3.0}, ["kl_p95 is 3", "kl_p99 is 2.5"]),
    ({"seconds": NAN}, ["seconds is nan"]),
    *(
        ({"domains": [QUALITY["domains"][0], QUALITY["domains"][1] | {"kl": value}]}, [fact])
        for value, fact in ((NAN, "domains[1].kl is nan"), (-5, "domains[1].kl is -5"))
    ),
    *(
        ({"worst": [QUALITY["worst"][0] | {"kl": value}]}, ["worst[0].kl"])
        for value in (NAN, -1.0, INFINITE)
    ),
]


@pytest.mark.parametrize(("change", "facts"), IMPOSSIBLE)
def test_what_no_measurement_gives_is_refused(
    change: dict[str, Any], facts: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(QUALITY))
    read_quality(file)
    file.write_text(json.dumps(QUALITY | change))
    with raises_saying(EvaluationError, file, "no measurement gives", *facts):
        read_quality(file)


def test_a_model_that_is_broken_is_measured_all_the_same(tmp_path: Path) -> None:
    """Beyond a mean of 700 nats, the perplexity is infinite."""
    file = tmp_path / "quality.json"
    file.write_text(json.dumps(GOOD | {"perplexity": INFINITE, "kl": 900.0}))
    assert read_quality(file).perplexity == INFINITE


@pytest.mark.parametrize(("text", "facts"), REFUSED)
def test_anything_else_is_one_sentence(text: str, facts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    file.write_text(text, encoding="utf-8")
    with raises_saying(EvaluationError, file, "ders eval --json", *facts):
        read_quality(file)


def test_places_without_figures(tmp_path: Path) -> None:
    with raises_saying(EvaluationError, tmp_path / "none.json", "does not exist"):
        read_quality(tmp_path / "none.json")
    with raises_saying(EvaluationError, tmp_path, "cannot be read", "directory"):
        read_quality(tmp_path)


@pytest.mark.parametrize("wrong", [{}, {"perplexity": 3.0}, GOOD | {"kl": float("nan")}])
def test_an_export_refuses_them_before_it_writes(
    wrong: dict[str, Any], tmp_path: Path, packed_dir: Path
) -> None:
    with raises_saying(EvaluationError, "quality"):
        export(packed_dir, tmp_path / "out", quality=wrong)
    assert list(tmp_path.iterdir()) == []
