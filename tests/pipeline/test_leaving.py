"""Parts leave a device together: what is waited for does not grow with the experts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.codec_support import gauss
from support.counted_device import DEVICE, Waits, counted_waits
from support.gate_experts import gates, write_each
from support.messages import raises_saying

from ders_core.codecs import CODECS, Codec, EncodeContext, make_codec
from ders_core.codecs.fitting import lloyd
from ders_core.codecs.group import GroupCodec
from ders_core.codecs.testing import examples_of
from ders_core.compute import together as compute_together
from ders_core.compute.threads import one_thread
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import without_base
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.spec import TensorSpec
from ders_core.pipeline import leaving
from ders_core.pipeline.compress import compress
from ders_core.pipeline.encoder import Encoder, Encoding
from ders_core.pipeline.knowledge import EncodedExpert, Knowledge
from ders_core.pipeline.plan import base_form
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe

FEW, MANY = 1, 3
LOW_RANK: dict[str, Any] = {"codec": "lowrank", "rank": 4}
NO_ROOM: dict[str, Any] = {"codec": "lowrank", "bits": 0.01, "factor_bits": 4}
"""A rank of 0, of which there is not one part."""

LONG = bool(os.environ.get("DERS_HOLD_LONG"))
SHORT: tuple[dict[str, Any], ...] = (
    {"codec": "entropy", "bits": 0.3, "rounding": "unbiased", "gain": "auto"},
    {"codec": "keep"},
    {"codec": "lossless"},
    {"codec": "lowrank", "energy": 0.9},
    {"codec": "lowrank", "bits": 0.5, "factor_bits": 4},
    {"codec": "lowrank", "bits": 2.5, "factor_bits": 4, "leading": 1},
    {"codec": "lowrank", "rank": 1, "svd": "randomized"},
    {"codec": "chain", "stages": [NO_ROOM, {"codec": "lowrank", "energy": 0.5}]},
    {"codec": "chain", "stages": [{"codec": "quantized", "bits": 1}, NO_ROOM]},
    {"codec": "quantized", "bits": 1},
    {"codec": "quantized", "grid": "ternary", "gain": "auto", "group_size": 16},
    {"codec": "quantized", "bits": 3, "grid": "learned", "group_size": 0},
    {"codec": "sparse", "drop_rate": 0.99, "method": "magnitude", "positions": "fixed"},
    {"codec": "sparse", "pattern": "2:4"},
    {"codec": "sparse", "drop_rate": 0.9, "gain": "auto"},
)
EXAMPLES = [
    codec
    for cls in CODECS.values()
    for codec in examples_of(cls)
    if codec.needs_of_calibration == "nothing"
]
"""Of every codec. None asks the host for each expert, but those that the CPU codes altogether."""

CODED_BASES: list[dict[str, Any]] = [
    {"codec": "quantized", "grid": "ternary", "gain": "auto"},
    {"codec": "entropy", "bits": 2.0},
    LOW_RANK,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_each(tmp_path_factory.mktemp("leaving"), (FEW, MANY))


def encoded(
    place: Path, codec: dict[str, Any], device: torch.device | str, **more: Any
) -> Encoding:
    """The gates of a checkpoint against their first base, on a device. more: of the recipe."""
    return encoded_each(place, codec, device, **more)[0]


def encoded_each(
    place: Path, codec: dict[str, Any], device: torch.device | str, **more: Any
) -> list[Encoding]:
    """Against each base that is tried."""
    fields = {"version": 1, "name": "r", "base": "mean", "rules": [codec], **more}
    recipe, group = Recipe.model_validate(fields), gates(place)
    group_codec = recipe.group_codec(*group.key, group.shape[0])
    encoder = Encoder.of(recipe, group_codec, base_form(recipe, group), Knowledge())
    context = BaseContext(group_codec.device_of(device))
    with torch.inference_mode(), one_thread():
        tried = recipe.base.decompositions(group, context)
        return [encoder.encode(name, decomposition) for name, decomposition in tried]


def waits(place: Path, codec: dict[str, Any], **more: Any) -> tuple[Encoding, Waits]:
    with counted_waits() as counted:
        return encoded(place, codec, DEVICE, **more), counted


def assert_same(found: Encoding, expected: Encoding) -> None:
    """Every part to the last bit; where directions are found together, which may have other signs,
    parts of the same kind, and errors to a thousandth."""
    assert specs_of(found) == specs_of(expected)
    is_near = found.codec.is_encoded_together
    is_near_base = found.form is not None and found.form.stacked.is_encoded_together
    near = pytest.approx(astuple(expected.squares), rel=1e-3 if is_near else 1e-6)
    assert astuple(found.squares) == near
    for name, tensor in expected.tensors.items():
        for one, other in zip(found.tensors[name].pieces, tensor.pieces, strict=True):
            is_exact = not (is_near_base if name.startswith("base") else is_near)
            assert torch.equal(one, other) or not is_exact, name


def specs_of(encoding: Encoding) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in encoding.tensors.items()}


@pytest.mark.parametrize(
    "codec",
    EXAMPLES if LONG else [make_codec(each) for each in SHORT],
    ids=lambda codec: codec.label,
)
def test_waits_do_not_grow_with_the_experts(
    codec: Codec, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lloyd, "SWEEPS", 2)  # all are alike
    found, of_many = waits(place / str(MANY), codec.dump())
    if GroupCodec.same(codec, MANY).device_of(DEVICE).type == "cpu":
        assert of_many.total() == of_many.sent.total() == 0
    else:
        _, of_few = waits(place / str(FEW), codec.dump())
        assert (of_few, of_few.sent) == (of_many, of_many.sent)
        assert 0 < of_many.total() <= 6
    assert_same(found, encoded(place / str(MANY), codec.dump(), "cpu"))


def test_a_rank_is_fitted_to_what_others_leave_of_all(place: Path) -> None:
    """Two stages find directions, the first of them also when the second is fitted."""
    codec = {"codec": "chain", "stages": [LOW_RANK, {"codec": "lowrank", "energy": 0.5}]}
    _, of_few = waits(place / str(FEW), codec)
    found, of_many = waits(place / str(MANY), codec)
    assert (of_few, of_few.sent) == (of_many, of_many.sent)
    assert of_many["aten::linalg_eigh"] == 3
    assert_same(found, encoded(place / str(MANY), codec, "cpu"))


def test_few_experts_are_encoded_together(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory there is bounded: with room for none, each is encoded alone, and nothing else
    changes."""
    together, at_once = waits(place / str(MANY), LOW_RANK)
    monkeypatch.setattr(compute_together, "LEAST_BYTES", 1)
    alone, each = waits(place / str(MANY), LOW_RANK)
    assert each["aten::linalg_eigh"] == MANY
    assert each.total() == at_once.total() + MANY - 1
    assert_same(alone, together)


def test_several_codecs_of_a_group(place: Path) -> None:
    """Experts of one codec are encoded together, wherever they are."""
    rules = [LOW_RANK, {"experts": [1], "codec": "quantized", "bits": 2}]
    found, counted = waits(place / str(MANY), LOW_RANK, rules=rules)
    assert counted["aten::linalg_eigh"] == 1
    expected = encoded(place / str(MANY), LOW_RANK, "cpu", rules=rules)
    assert found.codec.uses == expected.codec.uses == (0, 1, 0)
    assert specs_of(found) == specs_of(expected)
    for name in ("1.codes", "1.scales"):
        ours, theirs = found.tensors[name].pieces, expected.tensors[name].pieces
        assert all(map(torch.equal, ours, theirs))
    assert found.squares.error == pytest.approx(expected.squares.error, rel=1e-3)


@pytest.mark.parametrize("rule", [LOW_RANK | {"svd": "exact"}, {"codec": "lowrank", "energy": 0.9}])
def test_an_exact_svd_waits_once_where_memory_holds_all(
    rule: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a matrix holds decides that, and nothing else of its size: with room for one it waits
    for each, and with room for all as often as for few."""
    shape, group = (24, 32), gates(place / str(MANY))
    assert group.shape[1:] == shape
    held = make_codec({"codec": "lowrank", "rank": 24, "svd": "exact"}).working_bytes(shape)
    counts = dict[int, Waits]()
    for room in (1, MANY):
        monkeypatch.setattr(compute_together, "LEAST_BYTES", room * held)
        _, counts[room] = waits(place / str(MANY), rule)
    _, of_few = waits(place / str(FEW), rule)
    assert counts[MANY] == of_few
    assert counts[1]["aten::linalg_eigh"] == MANY
    assert counts[MANY]["aten::linalg_eigh"] == 1


@pytest.mark.parametrize("base", ["none", "median", "auto", {"clusters": "auto"}], ids=str)
def test_bases_ask_nothing_of_each_expert(base: str | dict[str, Any], place: Path) -> None:
    counts = list[Waits]()
    for number in (FEW, MANY):
        experts = place / str(number)
        with counted_waits() as counted:
            found = encoded_each(experts, LOW_RANK, DEVICE, base=base)
        for one, other in zip(
            found, encoded_each(experts, LOW_RANK, "cpu", base=base), strict=True
        ):
            assert_same(one, other)
        counts.append(counted)
    assert (counts[0], counts[0].sent) == (counts[1], counts[1].sent)


@pytest.mark.parametrize(
    "base", CODED_BASES if LONG else CODED_BASES[1:], ids=lambda base: str(base["codec"])
)
def test_waits_do_not_grow_with_coded_bases(base: dict[str, Any], place: Path) -> None:
    counts = list[Waits]()
    for bases in ("mean", {"clusters": 2}):
        more = {"version": 2, "base": bases, "base_codec": [base]}
        found, counted = waits(place / str(MANY), LOW_RANK, **more)
        assert_same(found, encoded(place / str(MANY), LOW_RANK, "cpu", **more))
        counts.append(counted)
    assert counts[0] == counts[1]


def test_pieces_of_the_original_leave_together(place: Path, tmp_path: Path) -> None:
    """Whatever codecs made them: what the CPU decodes stays there."""
    rules = [
        {"codec": "quantized", "grid": "ternary", "group_size": 16},
        {"projections": ["up"], "codec": "sparse", "pattern": "5:7", "value_bits": 4},
        {"projections": ["down"], "codec": "entropy", "bits": 2.0},
    ]
    recipe = Recipe.model_validate({"version": 1, "name": "r", "base": "mean", "rules": rules})
    counts = list[Waits]()
    for number in (FEW, MANY):
        packed = tmp_path / f"packed{number}"
        compress(place / str(number), packed, recipe)
        expected = synthesize(packed, tmp_path / f"cpu{number}")
        with counted_waits() as counted:
            assert synthesize(packed, tmp_path / f"there{number}", device="meta") == expected
        counts.append(counted)
    assert counts[0] == counts[1]
    assert counts[0].total() == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "quantized", "grid": "ternary"},
        {"codec": "sparse", "pattern": "5:7"},
        {"codec": "chain", "stages": [LOW_RANK, {"codec": "quantized", "grid": "ternary"}]},
    ],
    ids=str,
)
def test_damage_is_found_before_parts_go_to_the_device(fields: dict[str, Any]) -> None:
    """What unpacks there does not look for it, since that would wait."""
    codec, shape, context = make_codec(fields), (14, 14), EncodeContext(torch.float32, 5)
    parts = codec.pack(gauss(shape), torch.zeros(shape), context)
    codec.check(parts, shape)
    name = next(name for name in parts if name.endswith(("codes", "positions")))
    damaged = parts | {name: torch.full_like(parts[name], 255)}
    with raises_saying(CodecError, "damaged"):
        codec.check(damaged, shape)
    with counted_waits() as counted:
        there = {name: part.to(DEVICE) for name, part in damaged.items()}
        unpacked = codec.unpack(there, torch.zeros(shape, device=DEVICE), context)
        assert counted.total() == 0
        assert unpacked.cpu().isfinite().all()


LOUD = torch.where(torch.arange(50) == 7, 1e6, 1.0).expand(40, 50)
"""Weights of columns, of which one is far louder than the others; its values are small."""


@pytest.mark.parametrize("weights", [None, gauss((40, 50), 2).square(), LOUD])
def test_levels_that_are_learnt_there_are_those_of_the_cpu(weights: torch.Tensor | None) -> None:
    values = gauss((40, 50), 1) ** 3
    values[:, 7] /= 1000
    with counted_waits() as counted:
        there = weights if weights is None else weights.to(DEVICE)
        table = lloyd.learnt(values.to(DEVICE), 3, there)
        assert counted.total() == 0
        found = table.cpu()
    torch.testing.assert_close(found, lloyd.learnt(values, 3, weights), rtol=1e-4, atol=0)


def test_what_is_on_the_cpu_waits_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many tensors of the CPU after a small one of the device, few are in memory."""
    monkeypatch.setattr(leaving, "AT_ONCE", 100)
    made = list[int]()

    def tensors() -> Iterator[torch.Tensor]:
        for number in range(30):
            made.append(number)
            tensor = torch.full((10,), number, dtype=torch.uint8)
            yield tensor.to(DEVICE) if number == 0 else tensor

    with counted_waits() as counted:
        left = [(int(each[0]), len(made)) for each in leaving.tensors_on_cpu(tensors())]
    assert [number for number, _ in left] == [*range(30)]
    assert max(before - number for number, before in left) == 10
    assert counted.total() == 1


def test_few_experts_wait_on_the_device(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory there is bounded: with room for none, each leaves alone, and nothing else changes."""
    together, at_once = waits(place / str(MANY), LOW_RANK)
    monkeypatch.setattr(leaving, "AT_ONCE", 1)
    alone, each = waits(place / str(MANY), LOW_RANK)
    assert each.total() == at_once.total() + MANY - 1
    assert (alone.squares, alone.lengths) == (together.squares, together.lengths)


def test_what_has_left_is_free_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last expert."""
    made = list[ref[torch.Tensor]]()

    def encoded_expert() -> EncodedExpert:
        codes, sums = torch.zeros(10, dtype=torch.uint8), torch.zeros(16, dtype=torch.float64)
        parts = {"codes": codes.to(DEVICE)}
        made.append(ref(parts["codes"]))
        return EncodedExpert(parts, sums.to(DEVICE))

    monkeypatch.setattr(leaving, "AT_ONCE", 30)
    with counted_waits():
        left = leaving.on_cpu(encoded_expert() for _ in range(5))
        alive = [sum(each() is not None for each in made) for _ in left]
    assert len(made) == 5
    assert alive == [1] * 5


def test_an_expert_that_is_not_finite_is_named(place: Path, tmp_path: Path) -> None:
    """It is found before it goes to the device, and after those before it."""
    shutil.copytree(place / str(MANY), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    wrong = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    tensors[wrong][3, 4] = float("nan")
    save_file(tensors, file)
    done = list[int]()
    with counted_waits() as counted, raises_saying(CheckpointError, wrong):
        for number in without_base(gates(tmp_path), DEVICE).each(lambda number, _: number):
            done.append(number)
    assert done == [0, 1]
    assert counted.total() == 0
