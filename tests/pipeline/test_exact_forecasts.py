"""A forecast that says that its bytes are exact tells those that are written, or says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.given_experts import MakeCheckpoint
from support.gradient_calibrations import of_everything
from support.shell import ders

from ders_core.checkpoint import Checkpoint
from ders_core.compute.threads import threads_of_torch
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline import encoder as encoder_module
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.knowledge import encode_expert
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.sampling import Extent
from ders_core.recipe import Recipe

STREAM = {"codec": "entropy", "bits": 2}
TWO_STREAMS = {"codec": "chain", "stages": [STREAM, {"codec": "entropy", "bits": 1}]}
QUERIES = "model.layers.0.self_attn.q_proj.weight"
BY_CHANCE = {"codec": "entropy", "bits": 1.3, "rounding": "unbiased", "gain": "auto"}


def recipe(rule: dict[str, Any], **fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "exact", "seed": 3, "rules": [rule]} | fields)


@pytest.fixture(scope="module")
def large(checkpoint_of: MakeCheckpoint) -> Checkpoint:
    """Matrices of so many values that torch would share out a sum of them to its threads."""
    random = torch.Generator().manual_seed(4)
    start = 0.02 * torch.randn(1, 256, 384, generator=random)
    experts = start + 0.01 * torch.randn(3, 256, 384, generator=random)
    attention = 0.02 * torch.randn(256, 384, generator=random)
    return checkpoint_of(experts.bfloat16(), others={QUERIES: attention.bfloat16()})


@pytest.mark.parametrize("rule", [BY_CHANCE, {**STREAM, "gain": "least_squares"}, TWO_STREAMS])
def test_threads_change_nothing(
    large: Checkpoint, rule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix is encoded by operations of one thread, as `compress` does it."""
    plan, encode, used = resolve(recipe(rule, base_codec=STREAM), large), encode_expert, set[int]()

    def spy(*arguments: Any, **options: Any) -> Any:
        used.add(torch.get_num_threads())
        return encode(*arguments, **options)

    monkeypatch.setattr(encoder_module, "encode_expert", spy)
    told = []
    for threads in (1, 2, 3, 7):  # one for each expert; more than there are experts
        with threads_of_torch(threads):
            told.append(forecast(plan, large))
            assert torch.get_num_threads() == threads
    assert told == [told[0]] * 4
    assert used == {1}
    report = compress(large.path, tmp_path / "out", plan.recipe)
    assert [entry.bytes_after for entry in told[0].entries] == [
        entry.bytes_after for entry in report.entries
    ]
    assert [entry.gain for entry in told[0].entries] == [entry.gain for entry in report.entries]
    assert told[0].exact == (rule != TWO_STREAMS)
    if told[0].exact:
        assert told[0].bytes_after == report.bytes_after


@pytest.mark.parametrize(
    ("fields", "exact"),
    [
        ({"base_codec": STREAM}, True),
        ({"base_codec": TWO_STREAMS}, False),
        ({"base": "auto"}, False),
        ({"base": {"clusters": "auto"}}, False),
        ({"others": {"kinds": "attention", "codec": "lossless"}}, True),
        ({"others": {"kinds": "attention", "codec": "lowrank", "energy": 0.9}}, False),
    ],
)
def test_what_can_be_exact(
    mixtral_dir: Path, tmp_path: Path, fields: dict[str, Any], exact: bool
) -> None:
    """With all rows and experts encoded; `ders plan --whole` says *about* elsewhere, and compares
    with nothing that was not asked for."""
    asked, source = recipe(BY_CHANCE, **fields), open_checkpoint(mixtral_dir)
    told = forecast(resolve(asked, source), source)
    assert told.exact == exact
    file = tmp_path / "recipe.yaml"
    file.write_text(asked.to_yaml())
    line = ders("plan", mixtral_dir, "--recipe", file, "--whole").stdout
    assert ("exactly" in line, "about" in line, "sample" in line) == (exact, not exact, False)
    if exact:
        report = compress(mixtral_dir, tmp_path / "out", asked)
        assert told.bytes_after == report.bytes_after
        assert f"exactly {report.bytes_after:,} bytes" in line


def losses_of(told: Forecast) -> list[tuple[Any, ...]]:
    """Of each group, and of each other tensor."""
    of_groups = [(each.base, each.gain, each.noise, each.noise_cost) for each in told.entries]
    return [*of_groups, *((each.rel_error_weight, each.noise_cost) for each in told.others)]


@pytest.mark.parametrize("base", ["mean", "none", "auto"])
def test_losses_are_told_by_fewer_rows_than_bytes_are(
    large: Checkpoint, base: str, tmp_path: Path
) -> None:
    """A sample for each. Without losses the bytes are the same, and nothing else is told."""
    of_everything(large, tmp_path / "c.safetensors")
    others = {"kinds": "attention", **STREAM}
    fields: dict[str, Any] = {"base": base, "calibration": tmp_path / "c.safetensors"}
    if base != "none":
        fields |= {"base_codec": STREAM, "base_error": "shared"}
    plan = resolve(recipe(STREAM, others=others, **fields), large)
    every, few = 256 * 384, 64 * 384
    both = forecast(plan, large, extent=Extent(every, few, 3), with_lossless=True)
    of_all, of_few, alone = (
        forecast(plan, large, extent=extent, with_lossless=True)
        for extent in (Extent(every, every, 3), Extent(few, few, 3), Extent(every, 0, 3))
    )
    for told in (both, alone):
        assert told.bytes_after == of_all.bytes_after != of_few.bytes_after
        assert told.exact == of_all.exact == (base != "auto")
        assert [(entry.bytes_after, entry.bytes_lossless) for entry in told.entries] == [
            (entry.bytes_after, entry.bytes_lossless) for entry in of_all.entries
        ]
    losses = [(each.predicted_kl, *losses_of(each)) for each in (both, of_few, of_all)]
    assert losses[0] == losses[1] != losses[2]
    assert all(entry.noise_cost for entry in both.entries)
    assert all(other.noise_cost for other in both.others)
    # a gradient along deltas is measured against the mean, and `auto` takes the median here
    assert (both.predicted_kl is None) == (base == "auto")
    assert alone.predicted_kl is None
    if base != "auto":  # which has to know what is lost
        assert [(e.gain, e.noise) for e in alone.entries] == [(None, None)] * len(alone.entries)


def test_rows_that_see_other_bases_tell_losses_alone(checkpoint_of: MakeCheckpoint) -> None:
    """The first rows of four experts have one start, the others two."""
    random = torch.Generator().manual_seed(4)
    starts = torch.randn(2, 64, 64, generator=random)
    starts[1, :16] = starts[0, :16]
    experts = starts[[0, 0, 1, 1]] + 0.05 * torch.randn(4, 64, 64, generator=random)
    source = checkpoint_of(experts.bfloat16())
    plan = resolve(recipe(STREAM, base={"clusters": "auto"}), source)
    both, of_all = (
        forecast(plan, source, extent=Extent(64 * 64, judged * 64, 4)) for judged in (16, 64)
    )
    assert (both.entries[0].base, of_all.entries[0].base) == ("mean", "clusters")
    assert both.bytes_after == of_all.bytes_after
