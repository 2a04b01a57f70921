"""What is waited for on a device does not grow with the experts where their inputs, and what errors
cost, are known."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.counted_device import DEVICE, Waits, counted_waits
from support.gate_experts import gates, write_each
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs import CODECS, Codec, make_codec
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.testing import examples_of
from ders_core.codecs.testing.inputs import gaussian, second_moments
from ders_core.compute.threads import one_thread
from ders_core.decompose.base import BaseContext
from ders_core.errors import CodecError
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.encoder import Encoder, Encoding
from ders_core.pipeline.knowledge import Knowledge
from ders_core.pipeline.plan import base_form
from ders_core.recipe import Recipe

LONG = bool(os.environ.get("DERS_HOLD_LONG"))
FEW, MANY = (2, 4) if LONG else (1, 2)
CPU = torch.device("cpu")
QUANTIZED = make_codec({"codec": "quantized", "bits": 2, "scale_bits": 8})
LOW_RANK = make_codec({"codec": "lowrank", "rank": 4})


def examples() -> list[Codec]:
    """Of every codec that a calibration guides, and one that it does not."""
    guided = [cls for cls in CODECS.values() if cls.use_of_calibration or cls.name == "chain"]
    found = [codec for cls in guided for codec in examples_of(cls)]
    return [*found, *examples_of(CODECS.find("keep"))]


CASES = [
    (QUANTIZED, "gradients"),
    (LOW_RANK, "gradients"),
    (LOW_RANK, "diagonal"),
    (make_codec({"codec": "sparse", "pattern": "2:4"}), "gradients"),
    (make_codec({"codec": "sparse", "drop_rate": 0.9, "gain": "auto"}), "gradients"),
    (make_codec({"codec": "keep"}), "moments"),
]
if LONG:
    CASES += product(examples(), ("moments", "gradients", "each"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_each(tmp_path_factory.mktemp("calibrated"), (FEW, MANY))


def known_of(group: ExpertGroup, kind: str) -> Knowledge:
    """kind: moments, those and gradients, the same with diagonal moments, or the moments of each
    expert."""
    experts, out, width = group.shape
    measured = second_moments(width)
    inputs = Inputs.of(measured.diagonal().clone() if kind == "diagonal" else measured, 50)
    known = Knowledge(inputs, inputs.believed)
    if kind == "each":
        own = tuple(second_moments(width, 40 + expert) for expert in range(experts))
        return replace(known, own=own)
    if kind == "moments":
        return known
    costs, routers = (
        tuple(costs_of(out, width, seed + number) for number in range(experts)) for seed in (10, 20)
    )
    return replace(
        known,
        curvatures=costs,
        routers=routers,
        removal=(1e-3,) * experts,
        groups=3,
        of_base=lambda members: Curvature.sum([costs[number] for number in members]),
        routers_of_base=lambda members: Curvature.sum([routers[number] for number in members]),
    )


def costs_of(out: int, width: int, seed: int) -> Curvature:
    columns, rows = (torch.exp(gaussian((size,), seed, 1.0)) for size in (width, out))
    return Curvature(columns * 1e-2 / columns.sum(), rows * 1e-2 / rows.sum())


def encoded(
    directory: Path, codec: Codec, device: torch.device, known: Knowledge, **more: Any
) -> Encoding:
    """more: of the recipe."""
    fields = {"version": 1, "name": "r", "base": "mean", "rules": [codec.dump()], **more}
    fields["calibration"] = "not read: what it says is `known`"
    recipe, group = Recipe.model_validate(fields), gates(directory)
    group_codec, form = recipe.group_codec(*group.key, group.shape[0]), base_form(recipe, group)
    with torch.inference_mode(), one_thread():
        place = group_codec.device_of(device)
        encoder = Encoder.of(recipe, group_codec, form, known.on(place))
        _, decomposition = next(iter(recipe.base.decompositions(group, BaseContext(place))))
        return encoder.encode("mean", decomposition)


def waits(place: Path, codec: Codec, kind: str, count: int, **more: Any) -> tuple[Encoding, Waits]:
    known = known_of(gates(place / str(count)), kind)
    with counted_waits() as counted:
        return encoded(place / str(count), codec, DEVICE, known, **more), counted


def growth(place: Path, codec: Codec, kind: str) -> tuple[Encoding, Counter[str]]:
    """Of many experts, and what they are waited for more than few, also on the way there."""
    _, of_few = waits(place, codec, kind, FEW)
    found, of_many = waits(place, codec, kind, MANY)
    return found, (of_many - of_few) + (of_many.sent - of_few.sent)


def assert_same(found: Encoding, wanted: Encoding) -> None:
    """Codes to the last bit, floats to the last digit of their dtype, and losses as far as orders
    of sums tell. Where directions are found together, which may have other signs, losses to a
    thousandth."""
    assert found.tensors.keys() == wanted.tensors.keys()
    if found.codec.is_encoded_together:
        assert losses(found) == pytest.approx(losses(wanted), rel=1e-3, nan_ok=True)
        return
    for name, tensor in wanted.tensors.items():
        for one, other in zip(found.tensors[name].pieces, tensor.pieces, strict=True):
            if other.is_floating_point():
                digit = torch.finfo(other.dtype).eps
                torch.testing.assert_close(one, other, rtol=digit, atol=1e-6)
            else:
                assert torch.equal(one, other), name
    assert losses(found) == pytest.approx(losses(wanted), rel=1e-4, nan_ok=True)


def losses(encoding: Encoding) -> list[float]:
    """NaN for what is not known."""
    squares, own = encoding.squares, encoding.own
    known = (encoding.output, encoding.noise_cost, encoding.router_noise)
    return [
        *(squares.error, squares.delta, squares.weight, squares.gain, own.error, own.gain),
        *(math.nan if each is None else each for each in known),
        encoding.effective_gain,
    ]


@pytest.mark.parametrize(("codec", "kind"), CASES, ids=lambda each: getattr(each, "label", each))
def test_what_is_known_is_not_asked_of_each_expert(codec: Codec, kind: str, place: Path) -> None:
    """More experts are waited for no more."""
    found, more = growth(place, codec, kind)
    assert not more
    known = known_of(gates(place / str(MANY)), kind)
    assert_same(found, encoded(place / str(MANY), codec, CPU, known))


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ({"codec": "quantized", "bits": 3}, "gradients"),
        ({"codec": "entropy", "bits": 2.0}, "each"),
    ],
    ids=str,
)
def test_a_coded_base_is_asked_once(base: dict[str, Any], kind: str, place: Path) -> None:
    """Its error is that of all experts; where the CPU codes it, what is known of each expert stays
    on the device."""
    more = {"base_codec": base}
    found, of_many = waits(place, LOW_RANK, kind, MANY, **more)
    _, of_few = waits(place, LOW_RANK, kind, FEW, **more)
    assert (of_few, of_few.sent) == (of_many, of_many.sent)
    known = known_of(gates(place / str(MANY)), kind)
    assert_same(found, encoded(place / str(MANY), LOW_RANK, CPU, known, **more))


def test_coded_bases_are_asked_together(tmp_path: Path) -> None:
    """What the errors cost that experts share, of two bases as of three."""
    place, counts = write_each(tmp_path, (6,)) / "6", list[Waits]()
    for bases in (2, 3):
        more = {"version": 2, "base": {"clusters": bases}, "base_codec": [QUANTIZED.dump()]}
        known = known_of(gates(place), "gradients")
        with counted_waits() as counted:
            found = encoded(place, LOW_RANK, DEVICE, known, **more, base_error="shared")
        assert found.bases is not None
        assert len(set(found.bases)) == bases
        assert_same(found, encoded(place, LOW_RANK, CPU, known, **more, base_error="shared"))
        counts.append(counted)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("codec", [QUANTIZED, LOW_RANK], ids=lambda codec: codec.label)
def test_what_cannot_be_second_moments_is_said_when_parts_leave(codec: Codec, place: Path) -> None:
    """Of the inputs of the last expert alone."""
    known = known_of(gates(place / str(MANY)), "each")
    wrong = torch.eye(32)
    wrong[0, 1] = wrong[1, 0] = 2.0
    known = replace(known, own=(*known.own[:-1], wrong))
    for device in (CPU, DEVICE):
        with counted_waits() as counted, raises_saying(CodecError, "second moments", "calibrate"):
            encoded(place / str(MANY), codec, device, known)
        assert counted.total() <= 6
