"""`lowrank`: the delta becomes the product of a tall and a wide matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import Codec, DeltaCodec, EncodeContext, Parts, register
from ders_core.codecs.factor_bands import FactorBands
from ders_core.codecs.fitting import directions
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.metric import Metric, metric_of
from ders_core.codecs.fitting.pooled_energy import rank_that_keeps
from ders_core.codecs.fitting.stored_products import RoutedFactors, takes_matrices
from ders_core.codecs.fitting.thin_factors import fitted_left
from ders_core.codecs.fitting.thin_products import HELD_BYTES, ThinProduct
from ders_core.codecs.fitting.triples import first, triples_of, triples_of_each
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.plain_fields import omit_defaults
from ders_core.codecs.routed import CodedExperts, RoutedDeltas
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.tried_matrix import TriedDelta
from ders_core.codecs.tunable import Tunable, TunedKind
from ders_core.compute.buffers import held_elsewhere
from ders_core.compute.krylov import TILE_BYTES, Triples
from ders_core.compute.sent import sent
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts

EXACT_BYTES = 22
"""A weight, that an exact SVD holds at most."""

LARGE = 1 << 24
"""Entries of a matrix from which on blocks of its Krylov space go back to the system after it."""

FactorBits = Literal[2, 3, 4, 5, 6, 7, 8]


@register
class LowRank(DeltaCodec):
    """Δ ≈ L·R with L `[out, rank]`, R `[rank, in]`, the best in squared error (Eckart-Young 1936).

    Give a `rank` (a smaller matrix keeps all its directions); or the share `energy`
    of Σσ² that the group's experts must keep together (the smallest such rank is then the same for
    all experts of the group); or `bits`, the most bits per entry of Δ that the factors may take.

    With a calibration the best is meant for outputs: E‖(Δ − LR)x‖² is least, by an SVD of Δ·C with
    C·Cᵀ = E[x xᵀ] (as in D2-MoE, arXiv 2502.17298, and ASVD, arXiv 2312.05821).
    factor_bits: factors in so few bits, `leading` directions of them in `leading_bits` (Delta-CoMe,
    arXiv 2406.08903); L is fitted again to R as stored.
    svd: `randomized` (block Krylov, Musco and Musco, arXiv 1504.05477, until little more is to be
    gained, with 8 directions more than requested) leaves 0.1 % more than the least error, and keeps
    99.5 % of the energy that `exact` keeps; 99 % where the spectrum is flat. `auto` takes it where
    the shorter side is above 512 and the rank small.
    """

    name: ClassVar[str] = "lowrank"
    summary: ClassVar[str] = "Keeps each delta's strongest directions as two thin matrices."
    source: ClassVar[str] = "DeRS (arXiv 2503.01359) §3; D2-MoE (arXiv 2502.17298); Delta-CoMe"
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("low rank", strength=Strength("rank", "rank", 16, 1, 4096, 1, 1, is_rank=True)),
    )
    menu_place: ClassVar[int] = 5
    use_of_calibration: ClassVar[str] = "finds the directions that matter to outputs"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"rank": 1},
        {"rank": 7},
        {"energy": 0.9},
        {"bits": 2.0},
        {"rank": 3, "svd": "randomized"},
        {"rank": 3, "factor_bits": 4, "leading": 1},
        {"bits": 1.0, "factor_bits": 6},
    )

    rank: int | None = Field(default=None, ge=1, description="directions that are kept")
    energy: float | None = Field(
        default=None, gt=0, le=1, description="share of the squared singular values to keep"
    )
    bits: float | None = Field(default=None, gt=0, description="the most bits per entry")
    factor_bits: FactorBits | None = Field(
        default=None, description="bits of the factors' entries; none for the model's dtype"
    )
    leading: int = Field(default=0, ge=0, description="directions that get leading_bits")
    leading_bits: FactorBits = Field(default=8, description="bits of the leading directions")
    svd: Literal["auto", "exact", "randomized"] = Field(
        default="auto", description="how the directions are computed"
    )

    @model_validator(mode="after")
    def _check(self) -> LowRank:
        limits = [limit for limit in (self.rank, self.energy, self.bits) if limit is not None]
        if len(limits) != 1:
            raise ValueError("give one of rank, energy and bits, and only one")
        if self.leading and self.factor_bits is None:
            raise ValueError("leading directions differ from the others only with factor_bits")
        return self

    def dump(self) -> dict[str, Any]:
        """Omit svd and leading that have their default, and leading_bits without leading."""
        fields = omit_defaults(self, super().dump(), ("svd", "leading"))
        return {
            name: value for name, value in fields.items() if self.leading or name != "leading_bits"
        }

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        """Of deltas, ranks with factors in 4 bits: more directions lose less than finer ones at
        equal bytes."""
        if context.part == "matrices":
            return ()
        return tuple(cls(rank=rank, factor_bits=4) for rank in (1, 4, 16, 64))

    @property
    def is_hardware_friendly(self) -> bool:
        return True

    def fields_beside_strength(self) -> dict[str, Any]:
        """A rank takes the place of energy and bits."""
        fields = super().fields_beside_strength()
        return {key: value for key, value in fields.items() if key not in ("energy", "bits")}

    def expected(self, statistics: DeltaStatistics) -> Expected | None:
        """From the spectrum, with factors as they are; unknown where bits decide the rank."""
        kept = self.energy
        if kept is None and self.rank is not None:
            kept = statistics.energy_of_rank(self.rank)
        return None if kept is None else Expected.of_least_squares(math.sqrt(max(1 - kept, 0.0)))

    @property
    def label(self) -> str:
        if self.rank:
            label = f"rank {self.rank}"
        elif self.energy:
            label = f"rank for {100 * self.energy:g} %"
        else:
            label = f"rank for {self.bits:g} bits"
        if self.factor_bits is None:
            return label
        lead = f"{self.leading} at {self.leading_bits} bits, " if self.leading else ""
        return f"{label}, {lead}factors at {self.factor_bits} bits"

    @property
    def acts_by_rows(self) -> bool:
        return False

    @property
    def is_encoded_together(self) -> bool:
        """Solvers wait."""
        return True

    @property
    def settled(self) -> bool:
        return self.energy is None

    def _rank(self, shape: tuple[int, int], dtype: Dtype) -> int:
        if self.bits is None:
            return min(self.rank or min(shape), *shape)
        low, high = 0, min(shape)
        while low < high:  # the largest that fits
            rank = (low + high + 1) // 2
            size = sum(spec.nbytes for spec in self._parts(shape, dtype, rank).values())
            low, high = (
                (rank, high) if 8 * size <= self.bits * math.prod(shape) else (low, rank - 1)
            )
        return low

    def working_bytes(self, shape: tuple[int, int]) -> int:
        """Without an exact SVD, the weight, the next one, which is read meanwhile, and the rest."""
        if self._is_exact(shape, self._rank(shape, Dtype.F32)):
            return EXACT_BYTES * math.prod(shape)
        return 4 * math.prod(shape) + self.beside_bytes(shape)

    def beside_bytes(self, shape: tuple[int, int]) -> int:
        """Without an exact SVD, the factors, the Krylov space with its images, and a tile; and half
        as much that the allocator keeps between blocks of these."""
        rank = self._rank(shape, Dtype.F32)
        if self._is_exact(shape, rank):
            return super().beside_bytes(shape)
        held = max(directions.held_by_leading(shape, rank) + TILE_BYTES, HELD_BYTES)
        return held + held // 2 + 4 * rank * sum(shape)

    def remark(self, shape: tuple[int, int]) -> str:
        if self.rank is None or self.rank <= min(shape):
            return ""
        return (
            f"rank {self.rank} is above that of a {shape[0]} × {shape[1]} matrix, so all its "
            f"{min(shape)} directions are kept"
        )

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return self._parts(shape, dtype, self._rank(shape, dtype))

    def _parts(self, shape: tuple[int, int], dtype: Dtype, rank: int) -> dict[str, TensorSpec]:
        if self.factor_bits is None:
            return {
                "left": TensorSpec(dtype, (shape[0], rank)),
                "right": TensorSpec(dtype, (rank, shape[1])),
            }
        return self._bands(rank).parts(shape, dtype)

    def _bands(self, rank: int) -> FactorBands:
        """Of factors in a few bits."""
        return FactorBands(rank, self.leading, self.leading_bits, self.factor_bits or 8)

    def fit(self, deltas: Iterable[torch.Tensor]) -> DeltaCodec:
        if self.energy is None:
            return self
        rank = rank_that_keeps(self.energy, deltas)
        return self.model_copy(update={"energy": None, "rank": rank})

    def tried_delta(self, delta: TriedDelta, context: EncodeContext) -> tuple[torch.Tensor, float]:
        """Directions are found once for all that have them in common: an exact SVD for all ranks,
        others for each."""
        if delta.whole is not None:
            return super().tried_delta(delta, context)
        rank, deltas = self._rank(delta.shape, Dtype.of(context.dtype)), Deltas(delta.matrix)
        found = None if self._is_exact(delta.shape, rank) else rank
        metric = delta.once("metric", lambda: _metric(deltas.device, context))
        triples = delta.once(
            ("directions", found), lambda: triples_of(deltas, metric, found, context.seed)
        )
        parts = self._encoded(deltas, first(rank, triples), metric, context)
        return sent(self.decode(parts, delta.shape, context), deltas.device), 0.0

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        if weight.device.type != "cpu":
            return super().pack(weight, base, context)
        return self._packed(Deltas(weight, base), context)

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        if delta.device.type != "cpu":
            return self.encode_each([delta], [context])[0]
        return self._packed(Deltas(delta), context)

    def _packed(self, deltas: Deltas, context: EncodeContext) -> Parts:
        rank = self._rank(deltas.shape, Dtype.of(context.dtype))
        metric = _metric(deltas.device, context)
        found = None if self._is_exact(deltas.shape, rank) else rank
        is_large = math.prod(deltas.shape) >= LARGE
        with held_elsewhere(self.beside_bytes(deltas.shape)) if is_large else nullcontext():
            triples = triples_of(deltas, metric, found, context.seed)
            return self._encoded(deltas, first(rank, triples), metric, context)

    def encode_each(
        self, deltas: Sequence[torch.Tensor], contexts: Sequence[EncodeContext]
    ) -> list[Parts]:
        """On a GPU, which is waited for once: the directions of all are found together."""
        if not deltas or deltas[0].device.type == "cpu":
            return super().encode_each(deltas, contexts)
        shape, dtype = (deltas[0].shape[0], deltas[0].shape[1]), Dtype.of(contexts[0].dtype)
        rank = self._rank(shape, dtype)
        metrics = [_metric(deltas[0].device, context) for context in contexts]
        is_exact = self._is_exact(shape, rank)
        seeds = None if is_exact else [context.seed for context in contexts]
        found = triples_of_each(zip(deltas, metrics, strict=True), rank, seeds)
        return [*map(self._encoded, map(Deltas, deltas), found, metrics, contexts)]

    def _encoded(
        self, deltas: Deltas, triples: Triples, metric: Metric | None, context: EncodeContext
    ) -> Parts:
        """From the triples that are kept."""
        left, sigma, right = triples
        rank, root = len(sigma), sigma.sqrt()
        left, right = left * root, root[:, None] * right
        if metric is not None:
            right = metric.plain(right)
        if self.factor_bits is None:
            return {
                "left": left.to(context.dtype).contiguous(),
                "right": right.to(context.dtype).contiguous(),
            }
        if not rank:
            return {}
        plain = EncodeContext(context.dtype, context.seed)
        bands = self._bands(rank)
        parts = bands.encode("right", right, plain)
        stored = bands.decode("right", parts, right.shape[1], plain)
        left = fitted_left(deltas, stored, context.moments)
        return parts | bands.encode("left", left.T.contiguous(), plain)

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        rank = self._rank(shape, Dtype.of(context.dtype))
        if not rank:
            device = next((part.device for part in parts.values()), None)  # or no part at all
            return torch.zeros(shape, device=device)
        return self._factors(parts, rank, shape, context).whole()

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        """A few rows at a time: the delta is never whole."""
        shape = base.shape[0], base.shape[1]
        rank = self._rank(shape, Dtype.of(context.dtype))
        if not rank:
            return super().unpack(parts, base, context)
        return self._factors(parts, rank, shape, context).added(base)

    def unpack_in_pieces(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> Iterable[torch.Tensor]:
        return self.unpack_with_rows(slice(0, 0), parts, base, context)[0]

    def unpack_with_rows(
        self,
        rows: slice,
        parts: Mapping[str, torch.Tensor],
        base: torch.Tensor,
        context: EncodeContext,
    ) -> tuple[Iterable[torch.Tensor], torch.Tensor]:
        """Nor is the weight."""
        shape = base.shape[0], base.shape[1]
        rank = self._rank(shape, Dtype.of(context.dtype))
        if not rank:
            return super().unpack_with_rows(rows, parts, base, context)
        factors = self._factors(parts, rank, shape, context)
        return factors.added_in_pieces(base), factors.of_rows(rows)

    def product(
        self,
        parts: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> torch.Tensor:
        """By the two thin factors."""
        rank = self._rank(shape, Dtype.of(context.dtype))
        if not rank:
            return x.new_zeros(len(x), shape[0])
        factors = self._factors(parts, rank, shape, context)
        return x @ factors.right.to(x.dtype).T @ factors.left.to(x.dtype).T

    def multiplies(self, tokens: int) -> bool:
        return True

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        """By factors as they are kept, or by their codes."""
        if not coded.parts:
            return None
        if self.factor_bits is not None:
            rank = self._rank(coded.shape, Dtype.of(coded.contexts[0].dtype))
            return self._bands(rank).routed(coded)
        left, right = coded.parts["left"], coded.parts["right"]
        return RoutedFactors(left, right) if takes_matrices(left, right) else None

    def grouped(self, coded: CodedExperts) -> GroupedProducts | None:
        if self.factor_bits is not None or not coded.parts:
            return None
        from ders_core.compute.grouped.matrices import GroupedFactors

        left, right = (coded.parts[side].contiguous() for side in ("left", "right"))
        return GroupedFactors(left, right)

    def _factors(
        self,
        parts: Mapping[str, torch.Tensor],
        rank: int,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> ThinProduct:
        """The rank is at least 1."""
        if self.factor_bits is None:
            return ThinProduct(parts["left"].float(), parts["right"].float())
        bands = self._bands(rank)
        left = bands.decode("left", parts, shape[0], context)
        return ThinProduct(left.T, bands.decode("right", parts, shape[1], context))

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        """Both factors; of factors in a few bits, their scales."""
        if self.factor_bits is None:
            both = {"left": parts["left"], "right": parts["right"]}
            kinds: dict[str, TunedKind] = dict.fromkeys(both, "factors")
            return Tunable(lambda values: values["left"] @ values["right"], both, kinds, dict)
        rank = self._rank(shape, Dtype.of(context.dtype))
        if not rank:
            return Tunable.fixed(torch.zeros(shape))
        return self._bands(rank).tunable(parts, shape, context)

    def _is_exact(self, shape: tuple[int, int], rank: int) -> bool:
        """Whether a matrix of this shape takes the exact SVD."""
        asked = self.svd == "exact" or (self.svd == "auto" and directions.is_small(shape, rank))
        return asked or not directions.has_room(shape, rank)


def _metric(device: torch.device, context: EncodeContext) -> Metric | None:
    """Of its inputs; None without a calibration."""
    return None if context.moments is None else metric_of(context.moments.to(device))
