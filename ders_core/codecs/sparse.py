"""`sparse`: a share of the delta's entries is kept, the rest is zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import Codec, DeltaCodec, EncodeContext, Parts, register
from ders_core.codecs.coding.block_draws import most_apart
from ders_core.codecs.coding.patterns import parse_pattern
from ders_core.codecs.coding.positions import POSITION_FORMS
from ders_core.codecs.coding.row_places import stored_places
from ders_core.codecs.delta_entries import DifferenceEntries, Entries, MatrixEntries
from ders_core.codecs.gain import (
    GainField,
    best_gain,
    exceeds_delta,
    expected_with,
    factors_of,
    label_of,
    target_of,
)
from ders_core.codecs.held_entries import MOST_APART, HeldEntries, drawn_by_row
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.needed_memory import PIECES_BYTES
from ders_core.codecs.plain_fields import omit_defaults
from ders_core.codecs.rows_in_turn import ReadOnce
from ders_core.codecs.selection.drawn import RandomSelection, WholeSelection
from ders_core.codecs.selection.pattern import PatternSelection
from ders_core.codecs.selection.placing import (
    Places,
    added,
    added_in_pieces,
    kept_places,
    scaled_by_row,
    scattered,
)
from ders_core.codecs.selection.ranked import DellaSelection, MagnitudeSelection
from ders_core.codecs.selection.selection import Selection
from ders_core.codecs.selection.values import PlainValues, QuantizedValues, ValueCoder
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.tunable import Tunable, Values
from ders_core.compute.buffers import fresh
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

Rescale = Literal["none", "unbiased", "least_squares"]

DROP = Strength("drop_rate", "share of entries dropped", 0.9, 0, 0.999, 0.05, 0.01)


@register
class Sparse(ReadOnce, DeltaCodec):
    """Keep a share 1 − drop_rate of the entries, or (`pattern: N:M`) N of each M neighbours.

    F(Δ) = (1−M) ⊙ Δ / (1−p), where M marks the share p of entries that are dropped (DeRS eq. 4).
    The method chooses them; see the classes in `selection/`: `random` draws them again from the
    seed at decoding, so that positions take no bytes; `magnitude` keeps the largest; `della` draws
    large ones more often.

    budget `row`: every row keeps as many; `matrix`: the matrix as a whole does.
    rescale `unbiased` divides by the chance to be kept; `least_squares` multiplies each row by
    ⟨Δ, Δ̂⟩/⟨Δ̂, Δ̂⟩, in the metric of the second moments where there is a calibration; without one
    it changes nothing unless values are quantized. Default: unbiased for what is drawn at random.
    gain: instead, values are multiplied so that deltas do not shrink, each row's where rows keep
    their shares, else the matrix's: see `codecs.gain`. For magnitude, rescale `unbiased` is that.
    draws `matrix`: as files of format versions before 5 have it, which takes longer.
    value_bits: values in the model's dtype, or with 8 bits, or 4 with 16 learnt levels.
    """

    rows_at_once: ClassVar[int] = 1 << 20
    name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = "Keeps a share of each delta's entries and drops the rest."
    source: ClassVar[str] = (
        "DeRS (arXiv 2503.01359) eq. 4; DARE (arXiv 2311.03099); DELLA (arXiv 2406.11617)"
    )
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("random drop", {"method": "random"}, DROP),
        Choice("magnitude", {"method": "magnitude", "pattern": None}, DROP),
        Choice("della", {"method": "della"}, DROP),
    )
    menu_place: ClassVar[int] = 2
    use_of_calibration: ClassVar[str] = "weighs entries by their inputs"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"drop_rate": 0.0},
        {"drop_rate": 0.9},
        {"drop_rate": 0.8, "rescale": "least_squares", "value_bits": 4},
        {"drop_rate": 0.3, "method": "magnitude"},
        {"drop_rate": 0.99, "method": "magnitude", "positions": "fixed"},
        {"drop_rate": 0.8, "method": "magnitude", "budget": "row", "value_bits": 4},
        {"drop_rate": 0.8, "method": "della", "value_bits": 8},
        {"drop_rate": 0.6, "method": "della", "budget": "row", "spread": 0.5},
        {"pattern": "2:4"},
        {"pattern": "1:16", "value_bits": 8, "rescale": "least_squares"},
        {"drop_rate": 0.9, "method": "magnitude", "gain": "unbiased"},
        {"pattern": "2:8", "value_bits": 4, "gain": 0.9},
        {"drop_rate": 0.9, "gain": "auto"},
    )

    drop_rate: float | None = Field(
        default=None, ge=0, lt=1, description="share of entries that are dropped (p)"
    )
    pattern: str | None = Field(default=None, description="N:M, such as 2:4, instead of drop_rate")
    method: Literal["random", "magnitude", "della"] = Field(
        default="random", description="random drop, keep the largest, or both at once"
    )
    budget: Literal["matrix", "row"] = Field(
        default="matrix", description="what keeps its share: the matrix, or each row"
    )
    rescale: Rescale | None = Field(default=None, description="what is done to the kept values")
    gain: GainField = Field(
        default=None, description="instead of rescale: how much of a delta is given back"
    )
    spread: float = Field(
        default=1.0, ge=0, le=1, description="della: how far chances differ, of what is possible"
    )
    value_bits: Literal[4, 8] | None = Field(
        default=None, description="bits of a value; none for the model's dtype"
    )
    positions: Literal["shortest", "fixed"] = Field(
        default="shortest", description="fixed: in a form whose bytes are known beforehand"
    )
    draws: Literal["blocks", "matrix"] = Field(
        default="blocks", description="random: in blocks of the matrix, or over all of it at once"
    )

    @model_validator(mode="before")
    @classmethod
    def _pattern_chooses(cls, data: Any) -> Any:
        """N:M keeps the largest of each block."""
        if isinstance(data, dict) and data.get("pattern") is not None:
            return {"method": "magnitude", **data}
        return data

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            parse_pattern(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Sparse:
        if (self.drop_rate is None) == (self.pattern is None):
            raise ValueError("give either a drop_rate or a pattern, and not both")
        if self.pattern is not None and self.method != "magnitude":
            raise ValueError("a pattern keeps the largest of each block: its method is magnitude")
        if self.method == "random" and self.budget == "row":
            raise ValueError("the budget row is for magnitude and della; random draws are even")
        if self.method != "random" and self.draws == "matrix":
            raise ValueError("draws are for the method random; leave them out")
        if self.gain is not None and self.rescale is not None:
            raise ValueError("give either rescale or gain, and not both")
        return self

    @property
    def label(self) -> str:
        if self.pattern is not None:
            name = f"{self.pattern} magnitude"
        else:
            name = f"{self.method} drop {self.drop_rate:g}"
        extras = [
            "by row" if self.budget == "row" else "",
            f"{self.value_bits}-bit values" if self.value_bits else "",
            (self.rescale or "").replace("_", " "),
            label_of(self.gain),
        ]
        return ", ".join([name, *filter(None, extras)])

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        """Of deltas: patterns, the largest, and random draws, so that deltas do not shrink.
        Values have 4 bits: more of them lose less than finer ones at equal bytes."""
        if context.part == "matrices":
            return ()
        patterns = ("1:16", "1:8", "1:4", "2:4")
        rates = (0.99, 0.97, 0.9)
        return (
            *(cls(pattern=pattern, value_bits=4, gain="auto") for pattern in patterns),
            *(cls(drop_rate=r, method="magnitude", value_bits=4, gain="auto") for r in rates),
            *(cls(drop_rate=rate, value_bits=4, gain="auto") for rate in rates),
        )

    @property
    def error_exceeds_delta(self) -> bool:
        """p / (1 − p) of ‖Δ‖² where what is drawn at random is divided by 1 − p."""
        if self.method != "random" or self.rescale not in (None, "unbiased"):
            return False
        rate = self.drop_rate or 0.0
        return exceeds_delta(self.gain, rate / (1 - rate))

    @property
    def is_hardware_friendly(self) -> bool:
        return self.pattern is not None

    def dump(self) -> dict[str, Any]:
        """Omit budget, spread, positions and draws that have their default."""
        return omit_defaults(self, super().dump(), ("budget", "spread", "positions", "draws"))

    def expected(self, statistics: DeltaStatistics) -> Expected | None:
        """Random: of the share 1 − p that is kept, a = 1 − p. Magnitude: the energy in the largest
        entries, as if the matrix had one budget. Bits of stored values are taken to be enough.
        Unknown for patterns and della."""
        rate = self.drop_rate
        if rate is None or self.method == "della":
            return None
        lost = rate if self.method == "random" else statistics.energy_of_smallest(rate)
        kept = Expected.of_least_squares(math.sqrt(lost))
        if self.gain is None:
            is_unbiased = self._scaling == "unbiased" or self._target == 1
            return expected_with("unbiased" if is_unbiased else None, kept, statistics.groups)
        return expected_with(self.gain, kept, statistics.groups, by_chance=self._by_chance)

    @property
    def is_coded_on_cpu(self) -> bool:
        """Where places depend on others; in patterns and blocks of draws they do not."""
        return self.pattern is None and (self.method != "random" or self.draws == "matrix")

    def check(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        self._selection.check(parts, shape)

    @property
    def _by_chance(self) -> bool:
        return self.method != "magnitude"

    @property
    def ragged(self) -> frozenset[str]:
        return self._selection.ragged

    @property
    def _selection(self) -> Selection:
        if self.pattern is not None:
            return PatternSelection(*parse_pattern(self.pattern))
        rate = self.drop_rate or 0.0
        if self.method == "random":
            return (RandomSelection if self.draws == "blocks" else WholeSelection)(rate)
        by_row, form = self.budget == "row", POSITION_FORMS[self.positions]
        if self.method == "della":
            return DellaSelection(rate, by_row, form, self.spread)
        return MagnitudeSelection(rate, by_row, form)

    @property
    def _coder(self) -> ValueCoder:
        return PlainValues() if self.value_bits is None else QuantizedValues.of(self.value_bits)

    @property
    def _scaling(self) -> Rescale:
        """What makes values unbiased by the chance to be kept, or what fits them; a gain is brought
        to values as they are."""
        if self.gain is not None or self.method == "magnitude":
            return "least_squares" if "least_squares" in (self.gain, self.rescale) else "none"
        return self.rescale or "unbiased"

    @property
    def _target(self) -> float | None:
        """The gain that values are multiplied for, before the best one is sought."""
        if self.method == "magnitude" and self.rescale == "unbiased":
            return 1.0
        return target_of(self.gain)

    def kept(self, shape: tuple[int, int]) -> int:
        """How many entries of one expert stay; with a pattern, how many values are stored."""
        return self._selection.count(shape)

    def drawn(self, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """The flat places of entries that are drawn at random, in the order of their values: int64
        `[kept]`."""
        assert self.method == "random"
        nothing = torch.empty(0, dtype=torch.int64)
        return torch.cat([nothing, *self._selection.places({}, shape, seed, nothing.device)])

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return self._coder.specs(self.kept(shape), dtype) | self._selection.specs(shape)

    def beside_bytes(self, shape: tuple[int, int]) -> int:
        """Of entries drawn in blocks, and values as they are: these in float32, parts, and rows."""
        is_plain = self.value_bits is None and self._scaling == "unbiased" and self.pattern is None
        if not is_plain or self.method != "random" or self.draws != "blocks":
            return super().beside_bytes(shape)
        return PIECES_BYTES + 6 * self.kept(shape) + 4 * self.rows_at_once

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        return self._encoded(DifferenceEntries(weight, base), context)

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        return self._encoded(MatrixEntries(delta), context)

    def _encoded(self, entries: Entries, context: EncodeContext) -> Parts:
        chosen = self._selection.select(entries, context)
        is_fitted = self._scaling == "least_squares" or self._target is not None
        values = fresh((self.kept(entries.shape),), torch.float32, entries.device)
        pieces = chosen.places.kept() if is_fitted else chosen.places
        pieces.read_into(values, entries)
        if self._scaling == "unbiased" and chosen.chances is not None:
            values /= chosen.chances.view(-1)[torch.cat([*pieces])]
        parts = self._coder.encode(values, context)
        if is_fitted:
            decoded = scattered(self._coder.decode(parts), pieces, entries.shape)
            by_row = self.pattern is not None or self.budget == "row"
            factors = factors_of(self._target, entries.matrix, decoded, context, by_row=by_row)
            parts = self._coder.encode(
                scaled_by_row(values, pieces, factors, entries.shape), context
            )
        if self.gain == "auto":
            decoded = scattered(self._coder.decode(parts), pieces, entries.shape)
            factor = best_gain(entries.matrix, decoded, context, by_chance=self._by_chance)
            parts = self._coder.scaled(parts, factor)
        return parts | chosen.parts

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        shape = (base.shape[0], base.shape[1])
        values, places = self._stored(parts, shape, context)
        return added(values, places, base.reshape(-1), self.kept(shape)).view(shape)

    def unpack_and_decode(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> tuple[Iterable[torch.Tensor], Callable[[slice], torch.Tensor]]:
        """Both from values and places that are read once."""
        shape = (base.shape[0], base.shape[1])
        values, places = self._stored(parts, shape, context)
        pieces = added_in_pieces(values, places, base.reshape(-1), self.kept(shape))
        return pieces, lambda rows: scattered(values, places, shape, rows)

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        values, pieces = self._stored(parts, shape, context)
        return scattered(values, pieces, shape)

    def held_form(self, shape: tuple[int, int]) -> Codec:
        """Entries by row, unless a row of drawn ones has values in a few bits from afar."""
        count = self.kept(shape)
        levels, drawn = 2**self.value_bits if self.value_bits else None, self.method == "random"
        if not count:
            return self
        if drawn and levels:
            far = count if self.draws == "matrix" else most_apart(shape, count)
            if far > MOST_APART:
                return self
        if self.pattern is not None and shape[1] % parse_pattern(self.pattern)[1]:
            return self  # the last block reaches beyond its row
        gain = self._decoding_gain(shape)
        return HeldEntries(count=count, level_count=levels, gain=gain, drawn=drawn)

    def held_parts(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Parts:
        if self.held_form(shape) is self:
            return super().held_parts(parts, shape, context)
        device = self.device_of(parts)
        places = torch.cat([*self._selection.places(parts, shape, context.seed, device)])
        stored = self._coder.held(parts, self.kept(shape))
        if self.method == "random":
            return drawn_by_row(stored, places, shape)
        return {**stored_places(places, shape), **stored}

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        """The kept values; of values in a few bits, their scales and levels."""
        stored, pieces = self._stored(parts, shape, context)
        order, places = kept_places(pieces, stored.device)
        coder = self._coder.tunable(parts)
        gain = self._decoding_gain(shape)

        def decode(values: Values) -> torch.Tensor:
            kept = coder.decode(values).index_select(0, order) * gain
            flat = torch.zeros(math.prod(shape), device=kept.device)
            return flat.index_copy(0, places, kept).view(shape)

        return replace(coder, decode=decode)

    def _decoding_gain(self, shape: tuple[int, int]) -> float:
        return self._selection.decoding_gain(shape) if self._scaling == "unbiased" else 1.0

    def _stored(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> tuple[torch.Tensor, Places]:
        """The kept values `[kept]`, float32, and their places."""
        selection = self._selection
        values = self._coder.decode(parts)[: selection.count(shape)]
        gain = self._decoding_gain(shape)
        values = values if gain == 1 else values.mul_(gain)
        return values, selection.places(parts, shape, context.seed, values.device)
