"""Compress: the same bytes whoever ran it, around the experts' mean or their dense parent."""

from __future__ import annotations

import math
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from support import forks
from support.compress_support import TWO_BITS, Snapshot
from support.forks import FORKS

from ders_core.checkpoint.layouts import Projection
from ders_core.codecs import Entropy, Lossless, Quantized
from ders_core.compute import threads as threads_module
from ders_core.compute.threads import threads_of_torch
from ders_core.decompose.bases.none import NoBase
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline import encoder as encoder_module
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.knowledge import encode_expert
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.report import Outlook, Report
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import DenseBase, Recipe, Rule, presets

T = TypeVar("T")


R = TypeVar("R")

PATIENCE = 120
"""Seconds after which a thread counts as missing; a busy machine starts one late."""


def test_the_inputs_and_the_neighbourhood_stay_untouched(
    mixtral_dir: Path, mix: Recipe, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(mixtral_dir)
    compress(mixtral_dir, tmp_path / "new" / "out", mix)
    assert snapshot(mixtral_dir) == before
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out"]


def test_the_packed_directory(packed_dir: Path, mixtral_dir: Path) -> None:
    names = {file.name for file in packed_dir.iterdir()}
    assert names == {file.name for file in mixtral_dir.iterdir()} | {"ders_manifest.json"}
    packed = PackedCheckpoint(packed_dir)
    quantization = packed.store.config["quantization_config"]
    assert quantization["quant_method"] == "ders"
    assert quantization["format_version"] == 5
    assert quantization["name"] == "mix"
    assert quantization["rules"][0] == {"codec": "quantized", "bits": 3, "group_size": 32}
    for name in ("tokenizer.json", "generation_config.json"):
        assert (packed_dir / name).read_bytes() == (mixtral_dir / name).read_bytes()
    text = (packed_dir / "ders_manifest.json").read_text()
    assert str(mixtral_dir.parent) not in text


def test_report_round_trip(mixtral_dir: Path, tmp_path: Path) -> None:
    report = compress(mixtral_dir, tmp_path / "out", TWO_BITS)
    assert Report.from_dict(report.to_dict()) == report
    assert all(0.3 < entry.rel_error_delta < 0.4 for entry in report.entries)
    assert all(0.01 < entry.rel_error_weight < 0.1 for entry in report.entries)
    assert report.device == "cpu"
    parts = [(entry.gain, entry.noise, entry.rel_error_delta) for entry in report.entries]
    for gain, noise, error in parts:
        assert gain is not None
        assert noise is not None
        assert error == pytest.approx(math.hypot(1 - gain, noise))
        assert 0.8 < gain < 0.95
    outlook = report.outlook
    assert outlook.gain == pytest.approx(fmean(gain for gain, _, _ in parts if gain))
    assert outlook.noise == pytest.approx(fmean(noise for _, noise, _ in parts if noise))
    assert f"gain {outlook.gain:.3g}, noise {outlook.noise:.3g}" in outlook.text
    assert outlook.predicted_kl is None  # without a calibration


def test_groups_that_are_kept_do_not_count_for_the_outlook(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    rules = (Rule(codec=Quantized(bits=1), projections=("down",)),)
    report = compress(mixtral_dir, tmp_path / "some", Recipe(name="some", rules=rules))
    assert {entry.gain for entry in report.entries if not entry.is_replaced} == {1.0}
    assert report.outlook.gain is not None
    assert report.outlook.gain < 0.8
    kept = compress(mixtral_dir, tmp_path / "kept", presets()["keep"])
    assert kept.outlook == Outlook()
    assert kept.outlook.text == ""


@pytest.mark.parametrize("projections", [("down",), ("gate", "up", "down")])
def test_groups_without_a_base_count_for_the_forecast_and_kept_ones_do_not(
    mixtral_dir: Path, tmp_path: Path, projections: tuple[Projection, ...]
) -> None:
    """A sample of such small experts is all of them, so the forecast is what a run measures."""
    rule = Rule(codec=Quantized(bits=2), projections=projections)
    recipe = Recipe(name="baseless", base=NoBase(), rules=(rule,))
    source = open_checkpoint(mixtral_dir)
    told = forecast(resolve(recipe, source), source)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert {entry.base for entry in told.entries} == {"none"}
    assert [entry.codec for entry in told.entries] == [entry.codec for entry in report.entries]
    assert report.outlook.gain is not None
    assert report.outlook.noise is not None
    assert 0.8 < report.outlook.gain < 0.95  # of kept groups it is 1
    assert told.outlook.gain == pytest.approx(report.outlook.gain, rel=1e-4)
    assert told.outlook.noise == pytest.approx(report.outlook.noise, rel=1e-4)


def test_a_large_prediction_says_that_it_may_be_too_low() -> None:
    small, large = Outlook(predicted_kl=0.09).text, Outlook(predicted_kl=0.11).text
    assert "0.09" in small
    assert "0.11" in large
    assert ("more" in small, "more" in large) == (False, True)


def shuffled(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    order = list(items)
    random.Random(3).shuffle(order)
    return map(function, order)


def pooled(function: Callable[[T], R], items: Sequence[T], /) -> Iterator[R]:
    forks.start()
    with ProcessPoolExecutor(2, mp_context=FORKS) as pool:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()


@pytest.mark.parametrize("runner", [shuffled, pooled])
def test_same_bytes_whatever_runs_it(
    runner: Any,
    mixtral_dir: Path,
    mix: Recipe,
    packed_dir: Path,
    tmp_path: Path,
    snapshot: Snapshot,
) -> None:
    compress(mixtral_dir, tmp_path / "out", mix, runner=runner)
    assert snapshot(tmp_path / "out") == snapshot(packed_dir)


@pytest.fixture(scope="module")
def every_codec(mix: Recipe) -> Recipe:
    """And those whose streams are as long as the weights make them."""
    streams = (
        Rule(layers="1", projections=("gate",), experts="1-3", codec=Entropy(bits=1)),
        Rule(layers="1", projections=("up",), experts="0-2", codec=Lossless()),
    )
    return mix.model_copy(update={"rules": (*mix.rules, *streams)})


@pytest.fixture(scope="module")
def by_one_thread(
    mixtral_dir: Path, every_codec: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`mixtral_dir` packed by `every_codec`."""
    out = tmp_path_factory.mktemp("one") / "packed"
    with threads_of_torch(1):
        compress(mixtral_dir, out, every_codec)
    return out


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_bytes_however_many_threads(
    threads: int,
    mixtral_dir: Path,
    every_codec: Recipe,
    by_one_thread: Path,
    tmp_path: Path,
    snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many experts as there are threads and memory are encoded at once; and there and back."""
    busy, most, expected, changed = 0, 0, min(threads, 4), threading.Condition()
    encode = encode_expert

    def spy(*arguments: Any, **options: Any) -> Any:
        """Until as many have begun as may, none goes on."""
        nonlocal busy, most
        with changed:
            busy += 1
            most = max(most, busy)
            changed.notify_all()
            assert changed.wait_for(lambda: most >= expected, PATIENCE)
        encoded = encode(*arguments, **options)
        with changed:
            busy -= 1
        return encoded

    monkeypatch.setattr(encoder_module, "encode_expert", spy)
    with threads_of_torch(threads):
        compress(mixtral_dir, tmp_path / "out", every_codec)
        assert torch.get_num_threads() == threads
        synthesize(tmp_path / "out", tmp_path / "back")
        verification = verify(tmp_path / "out", mixtral_dir)
    assert most == expected
    assert snapshot(tmp_path / "out") == snapshot(by_one_thread)
    if threads == 1:
        return
    synthesize(by_one_thread, tmp_path / "one")
    assert snapshot(tmp_path / "back") == snapshot(tmp_path / "one")
    assert verification == verify(by_one_thread, mixtral_dir)
    most, expected = 0, min(threads, 2)
    monkeypatch.setattr(threads_module, "WORKING_BYTES", 22 * 112 * 64)
    with threads_of_torch(threads):
        compress(mixtral_dir, tmp_path / "bounded", every_codec)
    assert most == expected
    assert snapshot(tmp_path / "bounded") == snapshot(by_one_thread)


def test_tasks_compute_on_one_thread(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrices here are too small for threads to split a sum, so look at the setting itself."""
    seen: set[int] = set()
    for name in ("store_bases", "encode_expert"):
        encode = getattr(encoder_module, name)

        def spy(*arguments: Any, encode: Any = encode, **options: Any) -> Any:
            seen.add(torch.get_num_threads())
            return encode(*arguments, **options)

        monkeypatch.setattr(encoder_module, name, spy)
    with threads_of_torch(3):
        compress(mixtral_dir, tmp_path / "out", TWO_BITS)
    assert seen == {1}


def test_another_seed_gives_other_bytes(
    mixtral_dir: Path, mix: Recipe, packed_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    compress(mixtral_dir, tmp_path / "out", mix.model_copy(update={"seed": 12}))
    file = "model.safetensors"
    assert snapshot(tmp_path / "out")[file] != snapshot(packed_dir)[file]


def test_side_files_of_any_name_are_copied(mixtral_dir: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    names = ["state.json", "groups", "README.md", "tokenizer.model", "merges.txt", "x.tmp"]
    for name in names:
        (source / name).write_text(f"this is {name}")
    compress(source, tmp_path / "out", TWO_BITS)
    for name in names:
        assert (tmp_path / "out" / name).read_text() == f"this is {name}"


def test_a_dense_parent_is_the_base(
    mixtral_dir: Path, dense_parent_dir: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    before = snapshot(dense_parent_dir)
    recipe = Recipe(
        name="dense", base=DenseBase(dense=dense_parent_dir), rules=(Rule(codec=Quantized(bits=4)),)
    )
    compress(mixtral_dir, tmp_path / "out", recipe)
    assert snapshot(dense_parent_dir) == before
    parent = load_file(dense_parent_dir / "model.safetensors")
    packed = PackedCheckpoint(tmp_path / "out")
    assert len(packed.manifest.groups) == 6
    for group in packed.manifest.groups:
        name = f"model.layers.{group.layer}.mlp.{group.projection}_proj.weight"
        base = packed.matrices.base(group)
        assert base is not None
        assert torch.equal(base, parent[name])
    for file in ("ders_manifest.json", "config.json"):
        assert str(dense_parent_dir.parent) not in (tmp_path / "out" / file).read_text()
    assert packed.manifest.recipe["base"] == {"dense": "parent"}


def test_presets_all_name_what_they_do(mixtral_dir: Path, tmp_path: Path) -> None:
    """Ordered by strength as the codecs promise: more bits, less error."""
    errors = {
        name: compress(mixtral_dir, tmp_path / name, presets()[name]).entries[2].rel_error_delta
        for name in ("keep", "quantized-4bit", "quantized-2bit", "quantized-1bit", "sparse-drop0.9")
    }
    assert list(errors.values()) == sorted(errors.values())
    assert errors["keep"] == 0
    assert errors["sparse-drop0.9"] == pytest.approx(3, rel=0.02)  # √(p/(1 − p))
