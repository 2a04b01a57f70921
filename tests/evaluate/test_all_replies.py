"""Several models and several prompts at once say what each would say alone."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.worse_models import Pair

from ders_core.errors import EvaluationError
from ders_core.evaluate import Replies, compare_all_replies, compare_replies
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.speaking import Spoken, speak
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets

PROMPTS = ("The river runs", "A mill stands by the old bridge")
SIZES: dict[str, Any] = {"max_tokens": 16, "dtype": torch.float32}


@pytest.fixture(scope="module")
def forms(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("forms")
    compress(pair.original, place / "lossless", presets()["lossless"])
    compress(pair.original, place / "drop", presets()["sparse-drop0.9"])
    return [pair.packed, place / "lossless", place / "drop"]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are loaded, in order."""
    names: list[str] = []

    def counted(path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return loaded(path, *rest)

    monkeypatch.setattr("ders_core.evaluate.replies.loaded", counted)
    return names


def without_time(replies: Replies) -> dict[str, Any]:
    return replies.to_dict() | {"seconds": 0}


def test_each_is_as_if_it_were_asked_alone(pair: Pair, forms: list[Path], loads: list[str]) -> None:
    alone = [
        [compare_replies(model, pair.original, prompt, **SIZES) for prompt in PROMPTS]
        for model in forms
    ]
    loads.clear()
    reported: list[tuple[int, int]] = []
    together = compare_all_replies(
        forms,
        pair.original,
        PROMPTS,
        **SIZES,
        progress=lambda done, total, _: reported.append((done, total)),
    )
    assert [[*map(without_time, row)] for row in together] == [
        [*map(without_time, row)] for row in alone
    ]
    assert together[0][0].compressed != together[2][0].compressed
    assert all(replies.are_same for replies in together[1])
    assert loads == ["original", "packed", "lossless", "drop", "original"]
    assert reported[-1] == (10 * 2 * 16, 10 * 2 * 16)


def test_the_original_is_loaded_once_if_nothing_differs(
    pair: Pair, forms: list[Path], loads: list[str]
) -> None:
    compare_all_replies([forms[1]], pair.original, PROMPTS, **SIZES)
    assert loads == ["original", "lossless"]


def test_log_probabilities_are_kept_no_longer_than_they_are_needed(
    pair: Pair, forms: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Spoken] = weakref.WeakSet()
    most = 0

    def counted(*arguments: Any) -> Spoken:
        nonlocal most
        spoken = speak(*arguments)
        alive.add(spoken)
        most = max(most, len(alive))
        return spoken

    monkeypatch.setattr("ders_core.evaluate.replies.speak", counted)
    compare_all_replies(forms, pair.original, PROMPTS, **SIZES)
    apart = 2 * len(PROMPTS)  # of the two forms that say something else
    assert most <= len(PROMPTS) + apart + 1


@pytest.mark.parametrize(("forms", "prompts"), [([], PROMPTS), (["x"], [])])
def test_nothing_to_ask(pair: Pair, forms: list[str], prompts: list[str]) -> None:
    with raises_saying(EvaluationError, "a model and a prompt"):
        compare_all_replies(forms, pair.original, prompts)
