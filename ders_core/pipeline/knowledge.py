"""One matrix encoded, with what is known of its inputs and of what errors cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ders_core.checkpoint import ExpertGroup, MatrixStack, OtherTensor
from ders_core.codecs import Codec, DeltaCodec, EncodeContext, Parts
from ders_core.codecs.coding.prng import base_seed, expert_seed, tensor_seed
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting.codes import TOGETHER
from ders_core.compute.buffers import fresh
from ders_core.compute.sent import sent
from ders_core.decompose.distortion import sums_of, sums_of_pieces
from ders_core.errors import DersError
from ders_core.later import torch
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.given_back import keeping, whole
from ders_core.pipeline.judge import (
    Judge,
    Losses,
    probe_in_turn,
    probe_sums,
    sums_of_weights,
)
from ders_core.pipeline.moments import guiding_moments, moments_of_experts
from ders_core.pipeline.together import Packed, packed_alone

Shared = Callable[[Sequence[int]], "Curvature | None"]
"""Of experts by their numbers: the curvature of an error that they share."""

PROBED_ROWS = 1000
"""Rows of a matrix by which what rounding does is judged, if it has more: of all of them the sum in
float32 would take twice as much memory as the matrix."""


@dataclass(frozen=True)
class Knowledge:
    """inputs: their second moments as they were measured, for what errors do to outputs. guiding:
    what codecs and costs go by (`ders_core.pipeline.moments`). own: the latter of each routed
    expert alone; empty where these are not known. All three on the device that encodes. curvatures,
    routers: of each matrix, the second of how far errors move later choices. removal: as of
    `EncodeContext`, of each expert; fewer where it is not known of the last. groups: how many of
    the model are encoded. of_base, routers_of_base: of a base that experts share, and of how far
    its errors move choices. shrinks: whether what is missing of the deltas is no part of the noise;
    its cost is known otherwise then (`ders_core.pipeline.predicted`). charged: what errors of each
    matrix are predicted to cost, where codecs had better go by something else; None for
    `curvatures`."""

    inputs: Inputs | None = None
    guiding: torch.Tensor | None = None
    curvatures: tuple[Curvature, ...] | None = None
    removal: tuple[float, ...] = ()
    groups: int = 1
    routers: tuple[Curvature, ...] | None = None
    of_base: Shared | None = None
    routers_of_base: Shared | None = None
    shrinks: bool = True
    charged: tuple[Curvature, ...] | None = None
    own: tuple[torch.Tensor, ...] = ()

    def charge(self, expert: int) -> Curvature | None:
        """What errors of a matrix are predicted to cost."""
        known = self.charged or self.curvatures
        return known[expert] if known else None

    def router(self, expert: int) -> Curvature | None:
        return self.routers[expert] if self.routers else None

    def on(self, device: torch.device) -> Knowledge:
        """The same for work on a device."""
        if self.inputs is None or self.guiding is None:
            return self
        inputs = self.inputs.on(device)
        is_same = self.guiding is self.inputs.believed
        return replace(
            self,
            inputs=inputs,
            guiding=inputs.believed if is_same else self.guiding.to(device),
            own=tuple(sent(each, device) for each in self.own),
        )

    def base_context(
        self, stack: MatrixStack, number: int, members: Sequence[int], seed: int
    ) -> EncodeContext:
        """What the codec of a base may know. members: the experts that have it."""
        assert isinstance(stack, ExpertGroup)
        curvature = self.of_base(members) if self.of_base is not None else None
        own_seed = base_seed(seed, *stack.key, number)
        return EncodeContext(stack.dtype.torch, own_seed, self.guiding, curvature)

    def context(self, stack: MatrixStack, expert: int, seed: int) -> EncodeContext:
        """What the codec of a matrix may know."""
        return EncodeContext(
            stack.dtype.torch,
            _seed(stack, expert, seed),
            self.own[expert] if expert < len(self.own) else self.guiding,
            self.curvatures[expert] if self.curvatures else None,
            self.removal[expert] if expert < len(self.removal) else None,
            self.groups,
        )

    def of_rows(self, pieces: Sequence[slice], share: float) -> Knowledge:
        """The same of some rows alone, which are a `share` of all."""
        curvatures = self.curvatures and tuple(each.of_rows(pieces) for each in self.curvatures)
        routers = self.routers and tuple(each.of_rows(pieces) for each in self.routers)
        charged = self.charged and tuple(each.of_rows(pieces) for each in self.charged)
        removal = tuple(share * each for each in self.removal)
        return replace(
            self,
            curvatures=curvatures,
            routers=routers,
            charged=charged,
            removal=removal,
            of_base=_of_rows(self.of_base, pieces),
            routers_of_base=_of_rows(self.routers_of_base, pieces),
        )


def _of_rows(whole: Shared | None, pieces: Sequence[slice]) -> Shared | None:
    """As `whole`, of some rows alone."""
    if whole is None:
        return None
    measured = whole

    def of_members(members: Sequence[int]) -> Curvature | None:
        curvature = measured(members)
        return curvature and curvature.of_rows(pieces)

    return of_members


def group_knowledge(
    group: ExpertGroup,
    calibration: Calibration | None,
    removal: tuple[float, ...] = (),
    groups: int = 1,
    shrinks: bool = True,
    *,
    with_own: bool = True,
) -> Knowledge:
    """What a calibration knows of a group. removal, groups, shrinks: as of `Knowledge`. with_own:
    whether moments of each expert alone are read, the most by far."""
    if calibration is None:
        return Knowledge(removal=removal, groups=groups, shrinks=shrinks)
    moments = calibration.moments(*group.key)
    inputs: Inputs | None = None
    guiding: torch.Tensor | None = None
    own: tuple[torch.Tensor, ...] = ()
    if moments is not None:
        count = calibration.inputs(group.layer)
        inputs = Inputs.of(moments, count)
        guiding = guiding_moments(inputs, calibration.weighted_moments(*group.key), count)
        each = calibration.expert_moments(*group.key) if with_own else None
        if each is not None:
            counts = calibration.routed(group.layer).tolist()
            own = moments_of_experts(each, guiding, counts)
    return Knowledge(
        inputs,
        guiding,
        calibration.curvatures(group),
        removal,
        groups,
        calibration.router_curvatures(group),
        partial(calibration.base_curvature, group),
        partial(calibration.base_router_curvature, group),
        shrinks,
        own=own,
    )


def tensor_knowledge(tensor: OtherTensor, calibration: Calibration | None) -> Knowledge:
    """What a calibration knows of a tensor outside the experts."""
    if calibration is None:
        return Knowledge(shrinks=False)
    curvature = calibration.others.curvature(tensor.name)
    moments, axis = calibration.others.moments(tensor.name) or (None, 1)
    inputs: Inputs | None = None
    guiding: torch.Tensor | None = None
    if moments is not None and axis == 1:  # else they are those of its rows: no codec's
        weighted = calibration.others.weighted_moments(tensor.name)
        inputs = Inputs.of(moments, calibration.tokens)
        guiding = guiding_moments(inputs, weighted, calibration.tokens)
    return Knowledge(
        inputs,
        guiding,
        _of_pieces(tensor, curvature),
        routers=_of_pieces(tensor, calibration.others.router_curvature(tensor.name)),
        shrinks=False,
        charged=_of_pieces(tensor, calibration.others.curvature_as_measured(tensor.name))
        if tensor.kind == "head"
        else None,
    )


def _of_pieces(tensor: OtherTensor, curvature: Curvature | None) -> tuple[Curvature, ...] | None:
    """The curvature of each piece of a tensor."""
    if curvature is None:
        return None
    pieces, rows, _ = tensor.shape
    starts = range(0, pieces * rows, rows)
    return tuple(curvature.of_rows([slice(start, start + rows)]) for start in starts)


def _seed(stack: MatrixStack, number: int, seed: int) -> int:
    if isinstance(stack, OtherTensor):
        return tensor_seed(seed, stack.name, number)
    assert isinstance(stack, ExpertGroup)
    return expert_seed(seed, *stack.key, number)


@dataclass(frozen=True)
class EncodedExpert:
    """parts: on the device of the weight. sums: of `Judge.sums`, and 1 for each check that holds, 0
    for one that does not; there too. errors: of these checks."""

    parts: Parts
    sums: torch.Tensor
    errors: tuple[DersError, ...] = ()

    def losses_by(self, numbers: Sequence[float]) -> Losses:
        """What it loses. numbers: of `sums`. Raises the error of a check that does not hold."""
        count = len(numbers) - len(self.errors)
        for error, holds in zip(self.errors, numbers[count:], strict=True):
            if not holds:
                raise error
        return Losses.of(numbers[:count])

    @property
    def losses(self) -> Losses:
        """The same; a GPU is waited for."""
        return self.losses_by(self.sums.tolist())


def encode_expert(
    codec: Codec,
    weight: torch.Tensor,
    base: torch.Tensor,
    context: EncodeContext,
    charge: Curvature | None = None,
    router: Curvature | None = None,
    inputs: Inputs | None = None,
    *,
    shrinks: bool = True,
    origin: torch.Tensor | None = None,
    rounded_from: torch.Tensor | None = None,
    packed: Packed | None = None,
) -> EncodedExpert:
    """Pack one matrix `[out, in]`, unpack it again, and compare. charge, router: as of the methods
    of `Knowledge`; inputs, shrinks: as of `Knowledge`. origin: what the delta is taken against, if
    it is not the base that it will be added to; then costs are those of the delta alone.
    rounded_from: that base, in float32 if the delta does not know its rounding, to measure what
    rounding does to PROBED_ROWS; None: not measured. packed: the matrix, if that was done with
    others. Raises CodecError; of what is checked on a GPU, `EncodedExpert.losses_by` does."""
    start = base if origin is None or not isinstance(codec, DeltaCodec) else origin
    packed = packed or packed_alone(codec, weight, start, context)
    parts, checks = packed.parts, packed.checks
    probe, probed_later = None, rounded_from
    if isinstance(codec, DeltaCodec) and codec.rows_at_once and rounded_from is not None:
        pieces, decode = codec.unpack_and_decode(parts, base, context)
        delta, rows, probed_later = None, slice(0, 0), None
        probed = _probed_rows(len(base))
        probe = probe_in_turn(decode, codec.rows_at_once, probed, weight, base, rounded_from)
        del decode  # what it reads from is in memory no longer than the pieces
    else:
        pieces, delta, rows = _given_back(codec, parts, base, context, rounded_from is not None)
    judge, chosen, judged = None, None, None
    if inputs is not None or charge is not None:
        judge = Judge(weight, start, context, charge, router, inputs, shrinks)
        pieces, chosen, judged = _looked_at(judge, pieces, base)
    some = torch.empty_like(weight[rows])
    squares = own = sums_of_pieces(keeping(pieces, [rows], some), weight, base)
    if delta is not None and probed_later is not None:
        probe = probe_sums(some, probed_later[rows], delta, weight[rows])
    probe = squares.new_zeros(2) if probe is None else probe
    if start is not base:
        judged = whole(codec.unpack_in_pieces(parts, start, context), start)
        own = sums_of(judged, weight, start)
    if judge is not None and chosen is not None:
        sums = judge.sums(chosen, judged, squares, own, probe)
    else:  # nothing else of the matrix is looked at
        sums = sums_of_weights(squares, own, probe)
    if checks:
        sums = torch.cat([sums, torch.stack([each.holds for each in checks]).double()])
    return EncodedExpert(parts, sums, tuple(each.error for each in checks))


def _looked_at(
    judge: Judge, pieces: Iterable[torch.Tensor], base: torch.Tensor
) -> tuple[Iterable[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    """The pieces of Ŵ; Ŵ, or only the rows of it that outputs are judged by, which are there once
    the pieces have gone by; and Ŵ, if more of it is looked at than these."""
    numbers = judge.row_numbers()
    if judge.charge is None and numbers is not None and base.device.type == "cpu":
        chosen = fresh((len(numbers), base.shape[1]), base.dtype)
        rows = [slice(number, number + 1) for number in numbers.tolist()]
        return keeping(pieces, rows, chosen), chosen, None
    judged = whole(pieces, base)
    return [judged.view(-1)], judged, judged


def _given_back(
    codec: Codec, parts: Parts, base: torch.Tensor, context: EncodeContext, probes: bool
) -> tuple[Iterable[torch.Tensor], torch.Tensor | None, slice]:
    """Ŵ in pieces; and, if rounding is probed and the codec knows deltas, the delta of some rows,
    and which these are."""
    if not probes or not isinstance(codec, DeltaCodec):
        return codec.unpack_in_pieces(parts, base, context), None, slice(0, 0)
    rows = _probed_rows(len(base))
    return *codec.unpack_with_rows(rows, parts, base, context), rows


def _probed_rows(count: int) -> slice:
    """PROBED_ROWS from the middle of so many, or all."""
    first = max(count - PROBED_ROWS, 0) // 2 // TOGETHER * TOGETHER
    return slice(first, min(first + PROBED_ROWS, count))
