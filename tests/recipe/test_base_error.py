"""Who has the error of a coded base, where a recipe leaves that to its codecs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, make_codec
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.budget import settle
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import HELD_AT_A_LOSS, resolve
from ders_core.recipe import Recipe

BY_CHANCE = {"codec": "entropy", "bits": 0.6, "rounding": "unbiased"}
TWO_BITS = {"codec": "quantized", "bits": 2, "group_size": 16}
COARSE = {"codec": "quantized", "bits": 4, "group_size": 16}


def recipe(*rules: dict[str, Any], **fields: Any) -> Recipe:
    usual = {"version": 2, "name": "r", "base_codec": COARSE, "rules": rules or (BY_CHANCE,)}
    return Recipe.model_validate(usual | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "entropy", "bits": 2, "rounding": "unbiased"},
        {"codec": "entropy", "bits": 1.5, "rounding": "unbiased"},
        {"codec": "entropy", "bits": 1, "rounding": "unbiased"},
        {"codec": "entropy", "bits": 0.2, "rounding": "unbiased", "gain": "auto"},
        {"codec": "entropy", "bits": 0.2, "rounding": "unbiased", "gain": "least_squares"},
        {"codec": "entropy", "bits": 0.6, "rounding": "unbiased", "gain": 0.3},
        {"codec": "entropy", "bits": 0.2, "rounding": "unbiased", "gain": 0.9},
        {"codec": "entropy", "bits": 0.2},
        {"codec": "sparse", "drop_rate": 0.9},
        {"codec": "sparse", "drop_rate": 0.6},
        {"codec": "sparse", "drop_rate": 0.4},
        {"codec": "sparse", "drop_rate": 0.9, "rescale": "least_squares"},
        {"codec": "sparse", "drop_rate": 0.9, "gain": "least_squares"},
        {"codec": "sparse", "drop_rate": 0.9, "gain": 0.1},
        {"codec": "sparse", "drop_rate": 0.9, "gain": 0.5},
        {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
        {"codec": "sparse", "pattern": "1:16"},
        {"codec": "quantized", "bits": 1},
        {"codec": "quantized", "bits": 1, "gain": "unbiased"},
        {"codec": "lowrank", "rank": 1},
        {"codec": "chain", "stages": [{"codec": "lowrank", "rank": 4}, BY_CHANCE]},
        {"codec": "chain", "stages": [BY_CHANCE, {"codec": "quantized", "bits": 4}]},
    ],
    ids=lambda fields: make_codec(fields).label,
)
def test_codecs_know_whether_their_error_is_larger_than_a_delta(fields: dict[str, Any]) -> None:
    """By coding Gaussian numbers; of a chain, what its last stage gets."""
    codec = make_codec(fields)
    last = getattr(codec, "stages", (codec,))[-1]
    delta, zeros = gauss((96, 128), 4, 1.0), torch.zeros(96, 128)
    context = EncodeContext(torch.float32, 5, groups=24)
    error = last.unpack(last.pack(delta, zeros, context), zeros, context) - delta
    assert codec.error_exceeds_delta == bool(error.norm() > delta.norm())


@pytest.mark.parametrize(
    ("chosen", "is_shared"),
    [
        (recipe(), True),
        (recipe(TWO_BITS), False),
        (recipe(BY_CHANCE, {"layers": 0, **TWO_BITS}), False),
        (recipe(BY_CHANCE, {"layers": 0, "codec": "keep"}), True),
        (recipe(TWO_BITS, BY_CHANCE), True),
        (recipe({"experts": "0-1", **TWO_BITS}, BY_CHANCE), True),
        (recipe(BY_CHANCE, {"projections": "up", **TWO_BITS}), False),
        (recipe(BY_CHANCE, {"experts": 1, **TWO_BITS}), False),
        (recipe(BY_CHANCE, {"codec": "keep"}), False),
        (recipe(base_codec=[COARSE, {"codec": "lossless"}]), False),
        (recipe(base_codec=[COARSE, {"layers": 0, "codec": "lossless"}]), True),
        (recipe({"codec": "lossless"}), False),
        (recipe(base_codec="lossless"), False),
        (recipe(base_codec=()), False),
        (recipe(base_error="absorbed"), False),
        (recipe(TWO_BITS, base_error="shared"), True),
        (recipe(version=1), False),
        (recipe(version=1, base_error="shared"), True),
    ],
)
def test_codecs_decide_in_version_2_alone(chosen: Recipe, is_shared: bool) -> None:
    assert chosen.shares_base_error == is_shared


def test_files_say_what_was_decided(mixtral_dir: Path, tmp_path: Path) -> None:
    """So that they are read as they were written, whatever is decided later; the same bytes as with
    the word in the recipe."""
    compress(mixtral_dir, tmp_path / "decided", recipe())
    compress(mixtral_dir, tmp_path / "said", recipe(version=1, base_error="shared"))
    files = [tmp_path / name / "model.safetensors" for name in ("decided", "said")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert PackedCheckpoint(tmp_path / "decided").manifest.recipe["base_error"] == "shared"
    source = open_checkpoint(mixtral_dir)
    assert settle(recipe(TWO_BITS), source).base_error == "absorbed"
    undecided, decided = recipe(), settle(recipe(), source)
    assert forecast(resolve(undecided, source), source) == forecast(
        resolve(decided, source), source
    )
    for unchanged in (recipe(version=1), recipe(base_codec=()), recipe(base_error="absorbed")):
        assert settle(unchanged, source) == unchanged


def test_a_plan_says_where_the_other_word_is_better(mixtral_dir: Path) -> None:
    source = open_checkpoint(mixtral_dir)
    start = HELD_AT_A_LOSS.partition("{}")[0]
    for held, names_version in ((recipe(version=1), True), (recipe(base_error="absorbed"), False)):
        (remark,) = (each for each in resolve(held, source).remarks if each.startswith(start))
        assert "`base_error: shared`" in remark
        assert ("`version: 2`" in remark) == names_version
    for good in (recipe(), recipe(TWO_BITS), recipe(version=1, base_codec="lossless")):
        assert not any(remark.startswith(start) for remark in resolve(good, source).remarks)
