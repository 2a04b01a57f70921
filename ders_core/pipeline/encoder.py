"""One decomposition as it is packed: bases, then the delta of each matrix, and what they lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from ders_core.checkpoint.held import Holding
from ders_core.checkpoint.room import ROOM
from ders_core.codecs import DeltaCodec, Parts
from ders_core.codecs.group import BaseForm, GroupCodec, Stacked
from ders_core.compute.together import batches
from ders_core.decompose.decomposition import Decomposition
from ders_core.decompose.distortion import Squares
from ders_core.later import torch
from ders_core.pipeline.judge import Losses
from ders_core.pipeline.knowledge import (
    EncodedExpert,
    Knowledge,
    encode_expert,
)
from ders_core.pipeline.leaving import on_cpu
from ders_core.pipeline.placed import PlacedGroup
from ders_core.pipeline.stored_bases import StoredBases, shared_costs, store_bases, too_large
from ders_core.pipeline.together import Packed, packed_alone, packed_together
from ders_core.recipe import Recipe

AS_IT_IS = "keep"
"""The label of bases that are stored as they are."""


@dataclass(frozen=True)
class Encoding:
    """A stack against one base.

    base: its kind. form: how bases are stored, with the lengths of their parts; None without any.
    tensors: by their parts' names; empty if they are `placed`, written to their places already.
    own, effective_gain: as of `Losses`. output: √ of E‖(Ŵ−W)x‖² / E‖Wx‖², None without second
    moments. noise_cost, router_noise, rounding: as of `ReportEntry`.
    """

    base: str
    codec: GroupCodec
    tensors: Mapping[str, Stacked]
    lengths: Mapping[str, tuple[int, ...]]
    form: BaseForm | None = None
    bases: tuple[int, ...] | None = None
    squares: Squares = field(default_factory=Squares)
    own: Squares = field(default_factory=Squares)
    output: float | None = None
    noise_cost: float | None = None
    router_noise: float | None = None
    placed: PlacedGroup | None = None
    rounding: float = 0.0
    effective_gain: float = 1.0

    @property
    def errors(self) -> tuple[float, float]:
        """‖Ŵ−W‖/‖Δ‖ and ‖Ŵ−W‖/‖W‖."""
        return self.squares.relative

    @property
    def loss(self) -> float:
        """What a choice of bases makes small: the error of outputs, if known, else of weights."""
        return self.errors[1] if self.output is None else self.output

    @property
    def base_label(self) -> str:
        """How the base is coded, in a few words."""
        return AS_IT_IS if self.form is None else self.form.codec.label


@dataclass(frozen=True)
class Encoder:
    """codec: of the matrices. form: of the bases, None without any. seed: the recipe's. threads: as
    of `Decomposition.each`. is_shared: whether experts share their base's error. holding: of a
    group whose experts are held."""

    codec: GroupCodec
    form: BaseForm | None
    seed: int
    known: Knowledge
    is_shared: bool
    threads: int = 1
    holding: Holding | None = None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        codec: GroupCodec,
        form: BaseForm | None,
        known: Knowledge,
        threads: int = 1,
        holding: Holding | None = None,
    ) -> Encoder:
        """As the recipe says."""
        return cls(codec, form, recipe.seed, known, recipe.shares_base_error, threads, holding)

    def encode(
        self,
        base: str,
        decomposition: Decomposition,
        seen: Callable[[torch.Tensor], None] | None = None,
        placed: PlacedGroup | None = None,
        finished: Callable[[int], None] | None = None,
    ) -> Encoding:
        """The base and all parts over the matrices, on the CPU; and the errors.

        base: the name of its kind. seen: as of `Decomposition.each`. placed: gets base and parts,
        each matrix's as soon as it is encoded. finished: called with how many matrices are left
        once one is encoded, in order. Sums are taken in the order of the matrices. Raises
        CheckpointError for values that a codec cannot give back, CodecError.
        """
        stored, fitted = self.prepared(decomposition)
        decomposition, form = stored.decomposition, stored.form
        stack, known = decomposition.group, self.known
        parts, losses = list[Parts](), Losses()
        # closed here, also where writing fails: else threads and memory stay with the error
        with closing(self._each(stored, fitted, seen)) as encoded:
            for number, (packed, lost) in enumerate(on_cpu(encoded)):
                if finished is not None:
                    finished(stack.shape[0] - number - 1)
                if not math.isfinite(lost.squares.error):  # as the matrix is finite
                    raise too_large(stack, stack.matrix_name(number), fitted.expert(number).label)
                losses += lost
                if placed is None:
                    parts.append(packed)
                    continue
                if number == 0:  # threads are at the next ones by now
                    placed.append_all(stored.tensors)
                for part, piece in packed.items():
                    placed.append(fitted.part_name(number, part), piece)
        tensors, lengths = fitted.stack(parts) if placed is None else ({}, {})
        shared = shared_costs(stored, known)
        return Encoding(
            base,
            fitted,
            {**stored.tensors, **tensors} if placed is None else {},
            lengths,
            form,
            decomposition.bases,
            losses.squares,
            losses.own,
            losses.output_error,
            total(losses.noise_cost, shared.cost) if known.curvatures else None,
            total(losses.router_noise, shared.router_noise) if known.routers else None,
            placed,
            losses.probe.rounding,
            losses.effective_gain,
        )

    def prepared(self, decomposition: Decomposition) -> tuple[StoredBases, GroupCodec]:
        """Bases in the form that they get, and the codec settled on the deltas."""
        # what knows the base itself, and not a delta alone, takes it as it comes back
        is_shared = self.is_shared and any(isinstance(c, DeltaCodec) for c in self.codec.codecs)
        stored = store_bases(decomposition, self.form, self.known, self.seed, is_shared)
        return stored, self.codec.fit((stored.origin or stored.decomposition).deltas)

    def _each(
        self,
        stored: StoredBases,
        fitted: GroupCodec,
        seen: Callable[[torch.Tensor], None] | None,
    ) -> Generator[EncodedExpert, None, None]:
        """All matrices in order. Arguments as of `one` and `encode`."""
        decomposition = stored.decomposition
        # not a function in this one: an error keeps what such functions refer to
        encode_one = partial(self._one_of_all, stored, fitted)
        if decomposition.base.device.type == "cpu" or not fitted.is_encoded_together:
            yield from decomposition.each(encode_one, self.threads, seen)
            return
        shape = (decomposition.group.shape[1], decomposition.group.shape[2])
        of_inputs = max((each.nbytes for each in self.known.own), default=0)
        numbers, held = count(), fitted.working_bytes(shape) + of_inputs
        # copies, as another expert takes the memory
        with closing(decomposition.each(lambda _, weight: weight.clone(), 1, seen)) as weights:
            for some in batches(weights, lambda _: held):
                experts = [next(numbers) for _ in some]
                starts = [stored.delta_start(number, fitted.expert(number)) for number in experts]
                contexts = [
                    self.known.context(decomposition.group, number, self.seed) for number in experts
                ]
                packed = packed_together(fitted, experts, some, starts, contexts)
                yield from map(encode_one, experts, some, packed)

    def _one_of_all(
        self,
        stored: StoredBases,
        fitted: GroupCodec,
        number: int,
        weight: torch.Tensor,
        packed: Packed | None = None,
    ) -> EncodedExpert:
        """As `one`. The first one of each codec is probed."""
        is_first = fitted.members(fitted.uses[number])[0] == number
        with self._room():
            return self.one(stored, fitted, number, weight, probes=is_first, packed=packed)

    def _room(self) -> AbstractContextManager[None]:
        """For what an expert needs beside those that are held."""
        if self.holding is None:
            return nullcontext()
        return ROOM.beside(self.holding.beside, self.holding.most)

    def packed(
        self, stored: StoredBases, fitted: GroupCodec, number: int, weight: torch.Tensor
    ) -> Parts:
        """The parts of a matrix alone; otherwise as `one`."""
        codec = fitted.expert(number)
        context = self.known.context(stored.decomposition.group, number, self.seed)
        return packed_alone(codec, weight, stored.delta_start(number, codec), context).parts

    def one(
        self,
        stored: StoredBases,
        fitted: GroupCodec,
        number: int,
        weight: torch.Tensor,
        *,
        probes: bool = False,
        packed: Packed | None = None,
    ) -> EncodedExpert:
        """One matrix `[out, in]`. stored, fitted: of `prepared`. probes: whether to measure what
        rounding does. packed: as of `encode_expert`. Raises CodecError."""
        decomposition, known = stored.decomposition, self.known
        return encode_expert(
            fitted.expert(number),
            weight,
            decomposition.base_of(number),
            known.context(decomposition.group, number, self.seed),
            known.charge(number),
            known.router(number),
            known.inputs,
            shrinks=known.shrinks,
            origin=stored.start_of(number),
            rounded_from=stored.unrounded_of(number) if probes else None,
            packed=packed,
        )


def total(one: float | None, other: float | None) -> float | None:
    """The sum of two costs; None if one is not known."""
    return None if one is None or other is None else one + other
