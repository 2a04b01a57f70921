"""`chain`: several codecs one after another, each on the residual of those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from ders_core.codecs.codec import (
    NEEDS,
    Codec,
    DeltaCodec,
    EncodeContext,
    Need,
    Parts,
    make_codec,
    register,
)
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.part_begins import PartBegins
from ders_core.codecs.part_names import prefixed, within
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, RoutedSum
from ders_core.codecs.tried_matrix import TriedDelta
from ders_core.codecs.tunable import Tunable
from ders_core.compute.sent import sent
from ders_core.compute.together import batches
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts

LADDER_STEP = 2.0
"""Octaves between the knobs of its ladder."""

SEED_STEP = 0x9E3779B97F4A7C15
"""Between the seeds of two stages (the golden ratio of 2⁶⁴)."""


@register
class Chain(DeltaCodec):
    """F(Δ) = F_1(Δ) + F_2(Δ − F_1(Δ)) + …, in the order of the list: each stage encodes the
    residual of those before it, as they were stored."""

    name: ClassVar[str] = "chain"
    summary: ClassVar[str] = "Several codecs in a row, each on the residual of those before it."
    source: ClassVar[str] = "residual coding; low-rank plus sparse (Candès et al. 2011)"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            "stages": [
                {"codec": "lowrank", "rank": 2},
                {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
                {"codec": "quantized", "bits": 2, "group_size": 16},
            ]
        },
        {"stages": [{"codec": "entropy", "bits": 1.0}, {"codec": "lowrank", "energy": 0.2}]},
    )

    stages: tuple[DeltaCodec, ...] = Field(
        min_length=2, description="codecs with their parameters, in order"
    )

    @field_validator("stages", mode="before")
    @classmethod
    def _make(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("stages is a list of codecs with their parameters")
        return tuple(_stage(number, item) for number, item in enumerate(value, 1))

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        """Of deltas: a few directions, and what they leave by a knob, or in few bits."""
        if context.part == "matrices":
            return ()
        few = {"codec": "lowrank", "rank": 4, "factor_bits": 4}
        rests: list[dict[str, Any]] = [
            {"codec": "entropy", "knob": knob, "steps": "sensitive", "rounding": "unbiased"}
            for knob in context.knobs(LADDER_STEP)
        ]
        rests += [
            {"codec": "quantized", "bits": bits, "scale_bits": 8, "gain": "auto"} for bits in (1, 2)
        ]
        return tuple(cls.model_validate({"stages": [few, rest]}) for rest in rests)

    @property
    def is_hardware_friendly(self) -> bool:
        return all(stage.is_hardware_friendly for stage in self.stages)

    def dump(self) -> dict[str, Any]:
        return {"codec": self.name, "stages": [stage.dump() for stage in self.stages]}

    @property
    def label(self) -> str:
        return " + ".join(stage.label for stage in self.stages)

    @property
    def needs_of_calibration(self) -> Need:
        return max((stage.needs_of_calibration for stage in self.stages), key=NEEDS.index)

    @property
    def error_exceeds_delta(self) -> bool:
        """That of the last stage, which gets what those before it leave."""
        return self.stages[-1].error_exceeds_delta

    @property
    def acts_by_rows(self) -> bool:
        return all(stage.acts_by_rows for stage in self.stages)

    @property
    def is_coded_on_cpu(self) -> bool:
        return any(stage.is_coded_on_cpu for stage in self.stages)

    @property
    def is_encoded_together(self) -> bool:
        return any(stage.is_encoded_together for stage in self.stages)

    @property
    def settled(self) -> bool:
        return all(stage.settled for stage in self.stages)

    @property
    def ragged(self) -> frozenset[str]:
        return self._of_stages(stage.ragged for stage in self.stages)

    @property
    def host_parts(self) -> frozenset[str]:
        return self._of_stages(stage.host_parts for stage in self.stages)

    @staticmethod
    def _of_stages(each: Iterable[frozenset[str]]) -> frozenset[str]:
        """Names of parts, of stages in their order, as those of the chain."""
        return frozenset(
            name
            for number, names in enumerate(each)
            for name in prefixed(str(number), dict.fromkeys(names))
        )

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        parts: dict[str, TensorSpec] = {}
        for number, stage in enumerate(self.stages):
            parts |= prefixed(str(number), stage.parts(shape, dtype))
        return parts

    def check(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        for number, stage in enumerate(self.stages):
            stage.check(within(str(number), parts), shape)

    def shared_bytes(self, width: int) -> int:
        return sum(stage.shared_bytes(width) for stage in self.stages)

    def remark(self, shape: tuple[int, int]) -> str:
        remarks = (stage.remark(shape) for stage in self.stages)
        return "; ".join(dict.fromkeys(filter(None, remarks)))

    def fit(self, deltas: Iterable[torch.Tensor]) -> Codec:
        stages: list[DeltaCodec] = []
        for stage in self.stages:
            fitted = stage.fit(_Residuals(deltas, tuple(stages)))
            assert isinstance(fitted, DeltaCodec), "a codec of deltas is fitted to one"
            stages.append(fitted)
        return Chain(stages=tuple(stages))

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        return self.encode_each([delta], [context])[0]

    def encode_each(
        self, deltas: Sequence[torch.Tensor], contexts: Sequence[EncodeContext]
    ) -> list[Parts]:
        parts, rests = [Parts() for _ in deltas], [*deltas]
        for number, stage in enumerate(self.stages):
            coded = _encoded(stage, number, rests, contexts)
            for known, more in zip(parts, coded, strict=True):
                known |= prefixed(str(number), more)
            if number + 1 < len(self.stages):
                _subtract(stage, number, rests, coded, contexts)
        return parts

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        device = self.device_of(parts)
        first, *others = (
            stage.decode(within(str(number), parts), shape, _of_stage(context, number))
            for number, stage in enumerate(self.stages)
        )
        first = sent(first, device)
        for other in others:
            first += sent(other, device)
        return first

    def tried_delta(self, delta: TriedDelta, context: EncodeContext) -> tuple[torch.Tensor, float]:
        """What stages before the last leave is made once for all chains that begin with them."""
        *before, last = self.stages
        rest, given, nbytes = delta, list[torch.Tensor](), 0.0
        for number, stage in enumerate(before):
            after = _after(number, stage, rest, context)
            rest, nbytes = after.rest, nbytes + after.nbytes
            given.append(after.given)
        of_last, last_bytes = last.tried_delta(rest, _of_stage(context, len(before)))
        decoded, *others = (*given, of_last)
        for other in others:
            decoded = decoded + other
        return decoded, nbytes + last_bytes

    def product(
        self,
        parts: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> torch.Tensor:
        """The sum of the stages'."""
        first, *others = (
            stage.product(within(str(number), parts), x, shape, _of_stage(context, number))
            for number, stage in enumerate(self.stages)
        )
        for other in others:
            first = first + other
        return first

    def held_form(self, shape: tuple[int, int]) -> Codec:
        return Chain(stages=tuple(stage.held_form(shape) for stage in self.stages))

    def held_parts(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Parts:
        held: Parts = {}
        for number, stage in enumerate(self.stages):
            of_stage = within(str(number), parts), shape, _of_stage(context, number)
            held |= prefixed(str(number), stage.held_parts(*of_stage))
        return held

    def held_lengths(self, begins: PartBegins, shape: tuple[int, int]) -> dict[str, int]:
        lengths: dict[str, int] = {}
        for number, stage in enumerate(self.stages):
            of_stage = stage.held_lengths(begins.within(str(number)), shape)
            lengths |= prefixed(str(number), of_stage)
        return lengths

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        """The sum of the stages', if all have one."""
        stages = [stage.routed(each) for stage, each in self._coded_stages(coded)]
        each = [stage for stage in stages if stage is not None]
        return RoutedSum(each) if len(each) == len(stages) else None

    def grouped(self, coded: CodedExperts) -> GroupedProducts | None:
        """The sum of the stages', if all have one."""
        from ders_core.compute.grouped.calls import GroupedSum

        stages = [stage.grouped(each) for stage, each in self._coded_stages(coded)]
        each = [stage for stage in stages if stage is not None]
        return GroupedSum(each) if len(each) == len(stages) else None

    def _coded_stages(self, coded: CodedExperts) -> Iterator[tuple[DeltaCodec, CodedExperts]]:
        for number, stage in enumerate(self.stages):
            contexts = [_of_stage(context, number) for context in coded.contexts]
            parts, pieces = within(str(number), coded.parts), within(str(number), coded.pieces)
            yield stage, CodedExperts(parts, coded.shape, contexts, pieces)

    def multiplies(self, tokens: int) -> bool:
        return all(stage.multiplies(tokens) for stage in self.stages)

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        stages = {
            str(number): stage.tunable(
                within(str(number), parts), shape, _of_stage(context, number)
            )
            for number, stage in enumerate(self.stages)
        }
        device = self.device_of(parts)
        return Tunable.joined(
            stages,
            lambda deltas: torch.stack([sent(each, device) for each in deltas.values()]).sum(0),
        )


@dataclass(frozen=True)
class _After:
    """What a stage gives of a delta `[out, in]` float32, its ragged bytes, and what is left."""

    given: torch.Tensor
    nbytes: float
    rest: TriedDelta


def _after(number: int, stage: DeltaCodec, delta: TriedDelta, context: EncodeContext) -> _After:
    """Of a stage, by its number. context: the chain's."""

    def whole_given() -> torch.Tensor:
        whole = delta.whole
        assert whole is not None, "these are not all rows"
        return _after(number, stage, whole.delta, whole.context).given

    def made() -> _After:
        given, nbytes = stage.tried_delta(delta, _of_stage(context, number))
        return _After(given, nbytes, delta.without(given, whole_given))

    return delta.once(("stage", number, stage), made)


class _Residuals:
    """The residuals of deltas after the first stages; can be iterated over more than once."""

    def __init__(self, deltas: Iterable[torch.Tensor], stages: tuple[DeltaCodec, ...]) -> None:
        self._deltas, self._stages = deltas, stages

    def __iter__(self) -> Iterator[torch.Tensor]:
        experts = count()
        for rests in batches(self._deltas, self._held):
            contexts = [EncodeContext(torch.float32, next(experts)) for _ in rests]
            for number, stage in enumerate(self._stages):
                coded = _encoded(stage, number, rests, contexts)
                _subtract(stage, number, rests, coded, contexts)
            yield from rests

    def _held(self, delta: torch.Tensor) -> int:
        """Bytes, while one is encoded."""
        shape = (delta.shape[0], delta.shape[1])
        return max((stage.working_bytes(shape) for stage in self._stages), default=delta.nbytes)


def _encoded(
    stage: DeltaCodec,
    number: int,
    rests: Sequence[torch.Tensor],
    contexts: Sequence[EncodeContext],
) -> list[Parts]:
    """What a stage, by its number, makes of what those before it left of some deltas. contexts: the
    chain's."""
    return stage.encode_each(rests, [_of_stage(context, number) for context in contexts])


def _subtract(
    stage: DeltaCodec,
    number: int,
    rests: list[torch.Tensor],
    coded: Sequence[Parts],
    contexts: Sequence[EncodeContext],
) -> None:
    """Leave what the stage does not give back."""
    for place, (parts, context) in enumerate(zip(coded, contexts, strict=True)):
        rest = rests[place]
        shape = (rest.shape[0], rest.shape[1])
        given = stage.decode(parts, shape, _of_stage(context, number))
        rests[place] = rest - sent(given, rest.device)


def _of_stage(context: EncodeContext, number: int) -> EncodeContext:
    """The context of one stage: the same with another seed."""
    return replace(context, seed=stage_seed(context.seed, number))


def stage_seed(seed: int, number: int) -> int:
    """The seed of a stage in a chain; the first stage has the chain's."""
    return (seed + number * SEED_STEP) % (1 << 62)


def _stage(number: int, item: Any) -> DeltaCodec:
    if isinstance(item, Mapping):
        try:
            item = make_codec(item)
        except CodecError as error:
            raise ValueError(f"stage {number}: {error}") from error
    if not isinstance(item, DeltaCodec) or isinstance(item, Chain):
        what = item.name if isinstance(item, Codec) else item
        raise ValueError(f"stage {number}: {what!r} cannot be part of a chain")
    return item
