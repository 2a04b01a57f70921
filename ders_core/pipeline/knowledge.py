"""One matrix encoded, with what is known of its inputs and of what errors cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ders_core.checkpoint import ExpertGroup, MatrixStack, OtherTensor
from ders_core.codecs import Codec, DeltaCodec, EncodeContext, Parts
from ders_core.codecs.coding.prng import base_seed, expert_seed, tensor_seed
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.synthesis import combine, difference
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.decompose.distortion import Squares, compare, output_squared
from ders_core.later import torch
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.effective_gain import Correlated, effective_gain
from ders_core.pipeline.moments import guiding_moments, moments_of_experts

Shared = Callable[[Sequence[int]], "Curvature | None"]
"""Of experts by their numbers: the curvature of an error that they share."""

OUTPUT_ROWS = 1024
"""Rows of a matrix by which the error of its outputs is judged, if it has more: products of all of
them with full moments take longer than rounding that makes up for errors."""


@dataclass(frozen=True)
class Knowledge:
    """moments, guiding: E[x xᵀ] of inputs as it was measured, for what errors do to outputs, and
    what codecs and costs go by (`ders_core.pipeline.moments`). own: the latter of each routed
    expert alone; empty where these are not known. All three on the device that encodes. curvatures,
    routers: of each matrix, the second of how far errors move later choices. removal: as of
    `EncodeContext`, of each expert; fewer where it is not known of the last. groups: how many of
    the model are encoded. of_base, routers_of_base: of a base that experts share, and of how far
    its errors move choices. shrinks: whether what is missing of the deltas is no part of the noise;
    its cost is known otherwise then (`ders_core.pipeline.predicted`). charged: what errors of each
    matrix are predicted to cost, where codecs had better go by something else; None for
    `curvatures`."""

    moments: torch.Tensor | None = None
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

    def on(self, device: str) -> Knowledge:
        """The same for work on a device."""
        if self.moments is None or self.guiding is None:
            return self
        return replace(
            self,
            moments=self.moments.to(device),
            guiding=self.guiding.to(device),
            own=tuple(each.to(device) for each in self.own),
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
) -> Knowledge:
    """What a calibration knows of a group. removal, groups, shrinks: as of `Knowledge`."""
    if calibration is None:
        return Knowledge(removal=removal, groups=groups, shrinks=shrinks)
    moments = calibration.moments(*group.key)
    guiding: torch.Tensor | None = None
    own: tuple[torch.Tensor, ...] = ()
    if moments is not None:
        weighted = calibration.weighted_moments(*group.key)
        guiding = guiding_moments(moments, weighted, calibration.inputs(group.layer))
        each = calibration.expert_moments(*group.key)
        if each is not None:
            counts = calibration.routed(group.layer).tolist()
            own = moments_of_experts(each, guiding, counts)
    return Knowledge(
        moments,
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
    curvature, inputs = (
        calibration.others.curvature(tensor.name),
        calibration.others.moments(tensor.name),
    )
    moments, axis = inputs if inputs is not None else (None, 1)
    weighted = calibration.others.weighted_moments(tensor.name)
    if axis == 0:  # of a matrix that lies `[in, out]`, they are those of its rows: no codec's
        moments = None
    return Knowledge(
        moments,
        None if moments is None else guiding_moments(moments, weighted, calibration.tokens),
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
class Probe:
    """‖Ŵ−W‖² of some experts, rounded to the dtype of the weights, and before that."""

    rounded: float = 0.0
    unrounded: float = 0.0

    def __add__(self, other: Probe) -> Probe:
        return Probe(self.rounded + other.rounded, self.unrounded + other.unrounded)

    @property
    def rounding(self) -> float:
        """The share of ‖Ŵ−W‖² that is rounding; below 0 where that brings weights nearer to what
        they were."""
        return 1 - self.unrounded / self.rounded if self.rounded else 0.0


@dataclass(frozen=True)
class Losses:
    """What one or more experts lose. own: of the deltas alone, where the base has an error that all
    experts share; else as `squares`. output, energy: E‖(Ŵ−W)x‖² and E‖Wx‖² of at most
    OUTPUT_ROWS rows a matrix where moments are full, 0 without second moments. noise_cost: ½ Σ C
    E² of the noise, in nats a token, 0 without gradients. router_noise: ½ Σ R E², 0 where it is
    not known. probe: of the experts whose rounding was measured. correlated: of the deltas, 0
    without gradients."""

    squares: Squares = field(default_factory=Squares)
    own: Squares = field(default_factory=Squares)
    output: float = 0.0
    energy: float = 0.0
    noise_cost: float = 0.0
    router_noise: float = 0.0
    probe: Probe = field(default_factory=Probe)
    correlated: Correlated = field(default_factory=Correlated)

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            self.squares + other.squares,
            self.own + other.own,
            self.output + other.output,
            self.energy + other.energy,
            self.noise_cost + other.noise_cost,
            self.router_noise + other.router_noise,
            self.probe + other.probe,
            self.correlated + other.correlated,
        )

    @property
    def effective_gain(self) -> float:
        """Of the deltas, see `ders_core.pipeline.effective_gain`."""
        return effective_gain(self.own, self.correlated)

    @property
    def output_error(self) -> float | None:
        """√ of E‖(Ŵ−W)x‖² / E‖Wx‖²; None where there is nothing to compare with."""
        return (self.output / self.energy) ** 0.5 if self.energy else None


@dataclass(frozen=True)
class EncodedExpert:
    """parts: on the device of the weight."""

    parts: Parts
    losses: Losses


def encode_expert(
    codec: Codec,
    weight: torch.Tensor,
    base: torch.Tensor,
    context: EncodeContext,
    charge: Curvature | None = None,
    router: Curvature | None = None,
    moments: torch.Tensor | None = None,
    *,
    shrinks: bool = True,
    origin: torch.Tensor | None = None,
    rounded_from: torch.Tensor | None = None,
) -> EncodedExpert:
    """Pack one matrix `[out, in]`, unpack it again, and compare. charge, router: as of the methods
    of `Knowledge`; moments, shrinks: as of `Knowledge`. origin: what the delta is taken against, if
    it is not the base that it will be added to; then costs are those of the delta alone.
    rounded_from: that base, in float32 if the delta does not know its rounding, to measure what
    rounding does; None: not measured. Raises CodecError."""
    start = base if origin is None or not isinstance(codec, DeltaCodec) else origin
    parts = codec.pack(weight, start, context)
    before: float | None = None
    if rounded_from is not None and isinstance(codec, DeltaCodec):
        before = _unrounded(codec, parts, rounded_from, weight, context)
    judged = synthesized = codec.unpack(parts, base, context)
    squares = own = compare(synthesized, weight, base)
    if start is not base:
        judged = codec.unpack(parts, start, context)
        own = compare(judged, weight, start)
    output = energy = noise_cost = router_noise = 0.0
    correlated = Correlated()
    if moments is not None:
        few = _few_rows(weight, moments)
        judged_rows = weight[few].float()
        output = output_squared(synthesized[few].float() - judged_rows, moments)
        energy = output_squared(judged_rows, moments)
    if charge is not None:
        noise, delta, kept = difference(judged, start), difference(weight, start), 1.0
        if shrinks:
            correlated = Correlated.of(charge, noise, delta, context.moments)
            kept = effective_gain(own, correlated)
        noise.sub_(delta, alpha=kept)
        noise_cost = charge.cost(noise, context.moments)
        router_noise = router.cost(noise, context.moments) if router is not None else 0.0
    probe = Probe() if before is None else Probe(squares.error, before)
    losses = Losses(squares, own, output, energy, noise_cost, router_noise, probe, correlated)
    return EncodedExpert(parts, losses)


def _few_rows(weight: torch.Tensor, moments: torch.Tensor) -> torch.Tensor | slice:
    """Those by which the error of outputs is judged: all, or some that are spread evenly."""
    if moments.dim() == 1 or len(weight) <= OUTPUT_ROWS:
        return slice(None)
    return torch.arange(OUTPUT_ROWS, device=weight.device) * len(weight) // OUTPUT_ROWS


def _unrounded(
    codec: DeltaCodec,
    parts: Parts,
    base: torch.Tensor,
    weight: torch.Tensor,
    context: EncodeContext,
) -> float:
    """‖Ŵ−W‖² of the sum in float32, which is not rounded to the dtype of the weight. Only the delta
    is whole in float32."""
    delta = codec.decode(parts, (base.shape[0], base.shape[1]), context).to(base.device)
    squares = Squares()
    for rows in row_pieces(weight.shape, chunk_values(weight.device)):
        squares += compare(combine(base[rows].float(), delta[rows]), weight[rows].float())
    return squares.error
