"""A budget becomes one knob: it is met, foretold, and set aside where rules say otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.budgets import asking
from support.gradient_calibrations import of_everything
from support.messages import raises_saying
from support.shell import ders, error_of

from ders_core.codecs import Entropy, Keep, Lossless
from ders_core.errors import CheckpointError, RecipeError
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.budget import (
    Settled,
    check_budget,
    missed,
    settle,
    settled,
    with_knob,
)
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import Forecast, forecast
from ders_core.pipeline.foretold import ForecastEntry, OtherForecast
from ders_core.pipeline.plan import Plan, resolve
from ders_core.pipeline.sampling import BYTES_ALONE, LARGER, Extent
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe
from ders_core.recipe.budget import Budget
from ders_core.units import bytes_text


@pytest.fixture(scope="module")
def unmeasured() -> str:
    return "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def calibration(
    mixtral_dir: Path, unmeasured: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("budget") / "c.safetensors"
    of_everything(open_checkpoint(mixtral_dir), path, but=unmeasured)
    return path


def test_a_share_is_met(mixtral_dir: Path, calibration: Path, tmp_path: Path) -> None:
    """By the files themselves, and not by much less than there may be; the same each time. Where a
    sample is all there is, their bytes are foretold to the last one."""
    recipe = asking(calibration, {"share": "30%"})
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    written = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 0.97 * 0.3 <= written / report.bytes_before <= 0.3
    assert verify(tmp_path / "out", mixtral_dir).ok
    manifest = PackedCheckpoint(tmp_path / "out").manifest
    assert "budget" not in manifest.recipe  # it travels as the rules that it became
    assert recipe.budget is not None
    again = settled(recipe, recipe.budget, open_checkpoint(mixtral_dir), with_lossless=True)
    assert again.recipe.public().model_dump(mode="json") == manifest.recipe
    assert again.told is not None
    assert again.told.exact
    assert again.told.bytes_after == written
    assert all(entry.bytes_lossless for entry in again.told.entries)


def test_a_run_that_misses_its_budget_says_so(
    mixtral_dir: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how much, with an exit status, and what was written stays."""
    recipe, source = asking(calibration, {"share": "5%"}), open_checkpoint(mixtral_dir)
    wrong = with_knob(recipe, 2.0**-10, check_budget(recipe, source))  # no search: too fine a knob
    monkeypatch.setattr("ders_core.pipeline.compress.settle", lambda *_, progress: wrong)
    file = tmp_path / "budget.yaml"
    file.write_text(recipe.to_yaml())
    done = ders("compress", mixtral_dir, tmp_path / "out", "--recipe", file, "--device", "cpu")
    assert done.returncode == 1
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    over = sum(sizes) - 0.05 * open_checkpoint(mixtral_dir).bytes_total
    assert over > 0
    line = error_of(done)
    for fact in (str(tmp_path / "out"), bytes_text(sum(sizes)), bytes_text(over), "budget"):
        assert fact in line
    assert verify(tmp_path / "out", mixtral_dir).ok


def test_what_counts_as_missed() -> None:
    share, nbytes, kl = (Budget(share=0.25), Budget(bytes=1000), Budget(kl=0.01))
    assert not missed(share, 4000, 1000, None)
    assert "250 B" in missed(share, 4000, 1250, None)
    assert not missed(nbytes, 4000, 1000, None)
    assert "1 B" in missed(nbytes, 4000, 1001, None)
    assert not missed(kl, 4000, 5000, 0.01)
    assert "0.02" in missed(kl, 4000, 5000, 0.02)
    near = missed(Budget(kl=0.0123456), 4000, 5000, 0.0130001)
    assert "0.0130001 nats" in near
    assert "budget of kl 0.0123456" in near
    over = missed(Budget(bytes=123_456_789), 4 * 10**8, 123_456_800, None)
    assert "123,456,800 bytes" in over
    assert "11 B more than the budget of 123.456789 MB" in over
    assert not missed(kl, 4000, 5000, None)
    assert not missed(Budget(knob=1.0), 4000, 5000, 1.0)  # it promises nothing else


def test_one_knob_for_all(mixtral_dir: Path, calibration: Path, unmeasured: str) -> None:
    """Deltas by chance, bases and others so that later columns make up for errors; what was not
    measured loses nothing."""
    source = open_checkpoint(mixtral_dir)
    plan = resolve(settle(asking(calibration, {"knob": 0.01}), source), source)
    for entry in plan.entries:
        assert isinstance(entry.codec.codec, Entropy)
        assert entry.codec.codec.rounding == "unbiased"
        assert entry.base is not None
        assert isinstance(entry.base.codec, Entropy)
        assert entry.base.codec.rounding == "compensated"
        assert entry.base.codec.knob == 0.01
    codecs = {other.name: other.codec for other in plan.others}
    assert isinstance(codecs.pop(unmeasured), Lossless)
    assert {codec.knob for codec in codecs.values() if isinstance(codec, Entropy)} == {0.01}
    assert len(codecs) == 9  # attention of two layers but one, embeddings, the output layer
    assert not any("norm" in name or "gate" in name for name in codecs)


def test_steps_are_those_of_the_knob(mixtral_dir: Path, calibration: Path, tmp_path: Path) -> None:
    """Errors of a matrix, over knob · C^(-1/2), are spread over a step: their mean square is 1/12,
    more where steps have factors of a quarter of an octave."""
    exact = [{"layers": 0, "codec": "lossless"}]
    asked = asking(calibration, {"knob": 5e-5}, rules=exact)
    report = compress(mixtral_dir, tmp_path / "out", asked)
    file = tmp_path / "knob.yaml"
    file.write_text(asked.to_yaml())
    told = ders("plan", mixtral_dir, "--recipe", file).stdout
    assert f"exactly {report.bytes_after:,} bytes" in told, told
    assert "knob 0.00005," in told
    assert "budget of knob 0.0000500" in told.splitlines()
    for entry in report.entries:  # exact experts do not have the error that their base has
        assert (entry.noise_cost == 0) == (entry.layer == 0)
    name = "lm_head.weight"
    source = open_checkpoint(mixtral_dir)
    error = PackedCheckpoint(tmp_path / "out").original.read(name).double()
    error -= source.tensors[name].read().double()
    from ders_core.pipeline.calibration import Calibration

    curvature = Calibration.open(calibration).others.curvature(name)
    assert curvature is not None
    entries = torch.outer(curvature.rows.double(), curvature.columns.double()) / curvature.total
    mean_square = float((error.square() * entries).mean()) / 5e-5**2
    assert 0.8 / 12 < mean_square < 1.25 / 12


def test_a_budget_of_kl(mixtral_dir: Path, calibration: Path, tmp_path: Path) -> None:
    """Predicted KL is what was asked, in a sample and of all that was written."""
    recipe = asking(calibration, {"kl": 0.02})
    assert recipe.budget is not None
    found = settled(recipe, recipe.budget, open_checkpoint(mixtral_dir))
    assert found.told is not None
    assert found.told.predicted_kl is not None
    assert 0.99 * 0.02 <= found.told.predicted_kl <= 0.02
    assert not any(entry.bytes_lossless for entry in found.told.entries)  # not asked
    report = compress(mixtral_dir, tmp_path / "out", found.recipe)
    assert report.predicted_kl == pytest.approx(0.02, rel=0.15)
    assert found.told.bytes_after == report.bytes_after
    assert not forecast(
        found.plan, open_checkpoint(mixtral_dir), extent=Extent(1 << 9, 1 << 9, 4)
    ).exact


def test_rules_may_lose_more_than_a_budget_of_kl(mixtral_dir: Path, calibration: Path) -> None:
    """Whatever the knob is: one sentence says what to do, about the rules too."""
    rules = [{"codec": "sparse", "drop_rate": 0.99, "rescale": "unbiased"}]
    recipe = asking(calibration, {"kl": 1e-6}, rules=rules)
    assert recipe.budget is not None
    with raises_saying(RecipeError, "kl 0.00000100", "fewer rules", "lossless-whole"):
        settled(recipe, recipe.budget, open_checkpoint(mixtral_dir))


def test_a_plan_says_where_lossless_takes_less(
    mixtral_dir: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a sample foretells, here a made-up one, for the knob that meets the budget."""
    source, asked = open_checkpoint(mixtral_dir), asking(calibration, {"share": "90%"})
    chosen = with_knob(asked, 1e-4, check_budget(asked, source))
    plan = resolve(chosen, source)
    entries = [
        ForecastEntry(
            *entry.key, "quantized", "mean", 2_000_000, 1.0, 0.1, None, bytes_lossless=1_000_000
        )
        for entry in plan.entries
    ]
    others = [
        OtherForecast(other.name, 1000, None, None, None, other.bytes_before)
        for other in plan.others
    ]
    told = Forecast(tuple(entries), 9_000_000, None, tuple(others))
    asked_of = list[Plan]()
    extents, compared = list[Extent](), list[bool]()

    def foretell(plan: Plan, *_: Any, extent: Extent, with_lossless: bool, **__: Any) -> Forecast:
        extents.append(extent)
        compared.append(with_lossless)
        asked_of.append(plan)
        return told

    asked_to = list[bool]()

    def settle_so(*_: Any, progress: Any, with_lossless: bool) -> Settled:
        asked_to.append(with_lossless)
        return Settled(chosen, 1e-4, plan, told)

    monkeypatch.setattr("ders_core.pipeline.budget.settled", settle_so)
    monkeypatch.setattr("ders_core.pipeline.forecast.forecast", foretell)
    file = tmp_path / "budget.yaml"
    file.write_text(asked.to_yaml())
    done = ders("plan", mixtral_dir, "--recipe", file)
    assert "lossless would take about 6.0 MB less" in done.stdout, done.stdout
    assert "about 9.0 MB, by a sample" in done.stdout
    ders("plan", mixtral_dir, "--recipe", file, "--predict")
    assert asked_of == []  # what was foretold of the knob that was taken is told
    whole = ders("plan", mixtral_dir, "--recipe", file, "--whole").stdout
    assert extents[-1] == Extent.of_all(source)
    assert min(extents[-1].values, extents[-1].judged) >= source.bytes_total > 0
    assert "about 9.0 MB" in whole
    assert "sample" not in whole
    ders("plan", mixtral_dir, "--recipe", file, "--whole", "--predict")
    assert compared == [False, True]
    for more in ((), ("--predict",)):
        found_in = json.loads(ders("plan", mixtral_dir, "--recipe", file, "--json", *more).stdout)
        assert (found_in["knob"], found_in["bytes_after"]) == (1e-4, 9_000_000)
        assert (found_in["exact"], found_in["predicted_kl"]) == (False, None)
    assert asked_of == [plan, plan]
    assert asked_to == [True, True, False, True, False, True]  # JSON alone does not tell of it
    of_knob = Settled(chosen, 1e-4, plan, None)  # no sample was needed to find it
    monkeypatch.setattr("ders_core.pipeline.budget.settled", lambda *_, **__: of_knob)
    done = ders("plan", mixtral_dir, "--recipe", file)
    assert "lossless would take about 6.0 MB less" in done.stdout, done.stdout
    assert asked_of == [plan, plan, plan]
    assert extents[-1] == LARGER


def test_all_rows_tell_losses_where_a_sample_tells_bytes_exactly(
    mixtral_dir: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = open_checkpoint(mixtral_dir), asking(calibration, {"share": "90%"})
    chosen = with_knob(asked, 1e-4, check_budget(asked, source))
    of_sample = Forecast((), 9_000_000, 0.1, exact=True)
    found = Settled(chosen, 1e-4, resolve(chosen, source), of_sample)
    extents = list[Extent]()

    def foretell(*_: Any, extent: Extent, **__: Any) -> Forecast:
        extents.append(extent)
        return Forecast((), 9_000_000, 0.2, exact=True)

    monkeypatch.setattr("ders_core.pipeline.budget.settled", lambda *_, **__: found)
    monkeypatch.setattr("ders_core.pipeline.forecast.forecast", foretell)
    file = tmp_path / "budget.yaml"
    file.write_text(asked.to_yaml())
    done = ders("plan", mixtral_dir, "--recipe", file, "--whole", "--json")
    assert json.loads(done.stdout)["predicted_kl"] == 0.2
    assert extents == [Extent.of_all(source)]


@pytest.mark.parametrize("budget", [{"share": 0.4}, {"kl": 0.02}])
def test_a_run_settles_as_a_plan_does_and_foretells_no_more_than_it_must(
    mixtral_dir: Path,
    calibration: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: dict[str, float],
) -> None:
    recipe, source = asking(calibration, budget), open_checkpoint(mixtral_dir)
    assert recipe.budget is not None
    of_plan = settled(recipe, recipe.budget, source)
    extents = list[Extent]()

    def foretell(*args: Any, extent: Extent, **fields: Any) -> Forecast:
        extents.append(extent)
        return forecast(*args, extent=extent, **fields)

    monkeypatch.setattr("ders_core.pipeline.budget.forecast", foretell)
    assert settle(recipe, source) == of_plan.recipe
    assert extents[-1] == (BYTES_ALONE if recipe.budget.kl is None else LARGER)


def test_rules_are_exceptions(mixtral_dir: Path, calibration: Path) -> None:
    source = open_checkpoint(mixtral_dir)
    recipe = asking(
        calibration,
        {"knob": 0.01},
        rules=[{"layers": 0, "codec": "keep"}],
        base_codec=[{"projections": "down", "codec": "keep"}],
        others=[{"kinds": "embedding", "codec": "keep"}],
    )
    plan = resolve(settle(recipe, source), source)
    for entry in plan.entries:
        assert entry.codec.keeps == (entry.layer == 0)
        assert entry.base is not None
        assert isinstance(entry.base.codec, Keep) == (entry.projection == "down")
    assert "model.embed_tokens.weight" not in {other.name for other in plan.others}


@pytest.mark.parametrize("given", [None, "absorbed", "shared"])
def test_who_has_the_error_of_bases_can_be_said(
    mixtral_dir: Path, calibration: Path, given: str | None
) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    recipe = settle(asking(calibration, {"knob": 0.01}, base_error=given), checkpoint)
    assert recipe.base_error == (given or "shared")
    assert Recipe(name="plain").base_error is None
    assert "base_error" not in Recipe(name="plain").model_dump()


def test_without_a_base_weights_are_rounded_as_bases_are(
    mixtral_dir: Path, calibration: Path
) -> None:
    source = open_checkpoint(mixtral_dir)
    plan = resolve(settle(asking(calibration, {"knob": 0.01}, base="none"), source), source)
    for entry in plan.entries:
        assert isinstance(entry.codec.codec, Entropy)
        assert entry.codec.codec.rounding == "compensated"
        assert entry.base is None


@pytest.mark.parametrize(
    ("budget", "fields", "facts"),
    [
        ({"share": 0.0001}, {}, ["budget", "larger"]),
        ({"share": 0.2}, {"rules": [{"codec": "keep"}]}, ["budget", "larger"]),
    ],
)
def test_what_no_knob_meets(
    mixtral_dir: Path,
    calibration: Path,
    budget: dict[str, Any],
    fields: dict[str, Any],
    facts: list[str],
) -> None:
    with raises_saying(RecipeError, *facts):
        settle(asking(calibration, budget, **fields), open_checkpoint(mixtral_dir))


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("version: 1\nname: b\ncalibration: c\nbudget: {share: 0.3}", ["line 4", "version: 2"]),
        ("version: 2\nname: b\nbudget: {share: 0.3}", ["line 3", "calibration"]),
        ("version: 2\nname: b\ncalibration: c\nbudget: {share: 130%}", ["line 4", "share"]),
        ("version: 2\nname: b\ncalibration: c\nbudget: {bytes: 3XB}", ["line 4", "3XB"]),
        ("version: 2\nname: b\ncalibration: c\nbudget: {kl: 1, knob: 2}", ["line 4", "one of"]),
        ("version: 2\nname: b\ncalibration: c\nbudget: {}", ["line 4", "one of"]),
        ("version: 2\nname: b\ncalibration: c\nbudget: {size: 3}", ["line 4", "size", "share"]),
        ("version: 2\nname: b\ncalibration: c\nbudget: 25%", ["line 4", "share: 25%"]),
    ],
)
def test_budgets_that_say_nothing(text: str, facts: list[str]) -> None:
    with raises_saying(RecipeError, *facts):
        Recipe.from_yaml(text)


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        ("{share: 12.55%}", "12.55 % of the original"),
        ("{bytes: 12.3456MB}", "12.3456 MB"),
        ("{kl: 0.003}", "kl 0.00300"),
        ("{kl: 1.2345e-7}", "kl 1.2345e-7"),
        ("{knob: 1.2345678e-5}", "knob 0.000012345678"),
    ],
)
def test_a_budget_is_named_with_the_digits_that_were_written(budget: str, label: str) -> None:
    recipe = Recipe.from_yaml(f"version: 2\nname: b\ncalibration: c\nbudget: {budget}")
    assert recipe.budget is not None
    assert recipe.budget.label == label


def test_units() -> None:
    text = "version: 2\nname: b\ncalibration: c\nbudget: {bytes: 6.5GB}"
    recipe = Recipe.from_yaml(text)
    assert recipe.budget is not None
    assert recipe.budget.bytes == 6_500_000_000
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_calibration_of_experts_alone_is_not_enough(mixtral_dir: Path, tmp_path: Path) -> None:
    """Then nothing but experts could be coded by the knob: others stay without loss. Without
    gradients there is no knob at all."""
    from ders_core.pipeline.calibration import write_calibration

    source = open_checkpoint(mixtral_dir)
    tensors = {"0.routed": torch.tensor([3, 3, 3, 3]), "1.routed": torch.tensor([3, 3, 3, 3])}
    write_calibration(tmp_path / "c.safetensors", source.identity, 9, tensors)
    with raises_saying(CheckpointError, "gradients"):
        settle(asking(tmp_path / "c.safetensors", {"knob": 0.01}), source)
