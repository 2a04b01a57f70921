"""`entropy`: entries are rounded to multiples of a step, and the multiples are entropy-coded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import Codec, DeltaCodec, EncodeContext, Need, Parts, combine, register
from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.earlier import classed_stream, even_stream
from ders_core.codecs.coding.gains import gain_bytes
from ders_core.codecs.coding.told_bytes import told_bytes, unseen_bytes
from ders_core.codecs.delta_entries import DifferenceEntries, MatrixEntries
from ders_core.codecs.delta_entries import Entries as DeltaEntries
from ders_core.codecs.fitting.by_bits import WithinBytes
from ders_core.codecs.fitting.by_knob import coded_by_knob
from ders_core.codecs.fitting.entries import Coded, Entries
from ders_core.codecs.fitting.rounding import Unbiased
from ders_core.codecs.fitting.stored_codes import encoding_bytes
from ders_core.codecs.fitting.tunable_streams import tunable_stream
from ders_core.codecs.gain import GainField, exceeds_delta, expected_with, gain_factor, label_of
from ders_core.codecs.held_levels import (
    HELD,
    HeldLevels,
    held_bytes,
    held_levels,
    streamed_bytes,
)
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.part_begins import PartBegins
from ders_core.codecs.plain_fields import omit_defaults
from ders_core.codecs.rows_in_turn import ReadOnce
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.tried_matrix import TriedDelta
from ders_core.codecs.tunable import Tunable
from ders_core.compute import gaussian_error
from ders_core.compute.buffers import fresh
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import np, torch
from ders_core.units import number_text

MOST_FAR = 1e-3
"""Share of entries so many steps from zero that several multiples share a code, where a knob
decides."""

MOST_BYTES = 2
"""Of an entry, where a knob decides."""

KNOB_DIGITS = 6
"""Significant digits of a knob in its label, which tells one from another."""

LADDER_STEP = 1.0
"""Octaves between the knobs of its ladder."""

BITS = Strength("bits", "most bits per entry", 1, 0.02, 8, 0.05, 0.1)
UNBIASED: Mapping[str, Any] = {"knob": None, "rounding": "unbiased"}


@register
class Entropy(ReadOnce, DeltaCodec):
    """Δ ≈ a level for each multiple k of a step; the multiples are entropy-coded.

    rounding `nearest`: the level is the centroid of all entries that round to k, with an adaptive
    zero: the least squared error (entropy-coded scalar quantization). For a Gaussian it is 0.2 dB
    above the Shannon bound at 0.1 bit, 1.4 dB at 1 bit and 1.53 dB (¼ bit) at many (Gish and Pierce
    1968). `compensated`: column by column, and those after it make up for errors as the inputs'
    second moments let them, where these are known and that pays. `unbiased`: an entry is rounded
    upwards with the probability of its remainder, by chance drawn from the seed, and the level is
    k·s: a larger error of weights and, because errors of many weights cancel, a far smaller one of
    the model (QSGD, arXiv 1610.02132).

    steps `even`: a matrix has one step. `sensitive`: with a calibration that has gradients steps
    are smaller for rows and columns where errors cost more, s_ij ∝ C_ij^(−½) (reverse
    water-filling); with inputs alone, for columns.

    Either `bits`: the step is about the smallest with which an expert takes at most as many per
    entry, tables included. Or `knob`: s_ij = knob · C_ij^(−½), so that what is sensitive gets more
    bits in the whole model. Slower to decode than `quantized`, and on the CPU.
    """

    name: ClassVar[str] = "entropy"
    summary: ClassVar[str] = "Rounds entries to multiples of a step and entropy-codes them."
    source: ClassVar[str] = (
        "Gish and Pierce 1968; QSGD (arXiv 1610.02132); ANS (arXiv 1311.2540); WaterSIC (arXiv "
        "2603.04956)"
    )
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("unbiased rounding", {**UNBIASED, "steps": "even"}, BITS, {"gain": "auto"}),
        Choice(
            "unbiased by sensitivity", {**UNBIASED, "steps": "sensitive"}, BITS, {"gain": "auto"}
        ),
        Choice("entropy", {"knob": None, "rounding": "nearest"}, BITS),
        Choice(
            "entropy with feedback",
            {"knob": None, "rounding": "compensated", "steps": "sensitive"},
            BITS,
        ),
    )
    menu_place: ClassVar[int] = 2
    rows_at_once: ClassVar[int] = 1 << 20
    use_of_calibration: ClassVar[str] = "takes smaller steps where errors cost more"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"bits": 0.3},
        {"bits": 1.5},
        {"bits": 8},
        {"bits": 1, "gain": "unbiased"},
        {"bits": 0.3, "rounding": "unbiased", "gain": "auto"},
        {"bits": 2, "rounding": "unbiased", "steps": "sensitive"},
        {"bits": 1, "steps": "sensitive", "gain": 0.9},
        {"bits": 3, "rounding": "compensated"},
        {"bits": 2, "rounding": "compensated", "steps": "sensitive"},
    )

    bits: float | None = Field(
        default=None, gt=0, le=8, description="the most bits per entry, tables included"
    )
    knob: float | None = Field(
        default=None, gt=0, description="instead of bits: one for the whole model"
    )
    rounding: Literal["nearest", "unbiased", "compensated"] = Field(
        default="nearest",
        description="to the nearest multiple, up or down by chance, or so that errors make up",
    )
    steps: Literal["even", "sensitive"] = Field(
        default="even", description="one step for a matrix, or smaller where errors cost more"
    )
    gain: GainField = Field(default=None, description="how much of a delta is given back")

    @model_validator(mode="after")
    def _bits_or_knob(self) -> Entropy:
        if (self.bits is None) == (self.knob is None):
            raise ValueError("give either bits or a knob, and not both")
        if self.knob is not None and self.steps != "sensitive":
            raise ValueError("a knob multiplies sensitive steps: give `steps: sensitive` with it")
        return self

    @property
    def label(self) -> str:
        if self.knob is None:
            strength = f"{self.bits:g} bits"
        else:
            digits = np.format_float_positional(
                self.knob, precision=KNOB_DIGITS, fractional=False, trim="-"
            )
            strength = f"knob {digits}"
        extras = [
            self.rounding if self.rounding != "nearest" else "",
            "sensitive steps" if self.steps == "sensitive" else "",
            label_of(self.gain),
        ]
        return ", ".join(["entropy-coded", strength, *filter(None, extras)])

    def dump(self) -> dict[str, Any]:
        """Omit rounding and steps that have their default."""
        return omit_defaults(self, super().dump(), ("rounding", "steps"))

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        """Knobs: with them the strength of one matrix is the same as that of another where an error
        costs as much. Deltas are rounded by chance, and so that errors make up too, which is better
        where bits are many."""
        knobs = context.knobs(LADDER_STEP)
        forms: list[tuple[tuple[float, ...], dict[str, Any]]] = [(knobs, {"rounding": "unbiased"})]
        if context.part == "matrices":
            forms = [(knobs, {"rounding": "compensated"})]
        else:  # with large steps the nearest multiple is 0, and deltas shrink
            fine = knobs[len(knobs) // 2 :]
            forms.append((fine, {"rounding": "compensated", "gain": "unbiased"}))
        return tuple(
            cls(knob=knob, steps="sensitive", **form) for some, form in forms for knob in some
        )

    def between(self, other: Codec, share: float) -> Entropy | None:
        """Of two knobs."""
        if not isinstance(other, Entropy) or self.knob is None or other.knob is None:
            return None
        knob = math.exp((1 - share) * math.log(self.knob) + share * math.log(other.knob))
        found = self.model_copy(update={"knob": float(f"{knob:.6g}")})
        return found if other.model_copy(update={"knob": found.knob}) == found else None

    def fields_beside_strength(self) -> dict[str, Any]:
        """Bits take the place of a knob."""
        return {k: v for k, v in super().fields_beside_strength().items() if k != "knob"}

    @property
    def needs_of_calibration(self) -> Need:
        if self.knob is not None:
            return "gradients"
        knows_inputs = self.steps == "sensitive" or self.rounding == "compensated"
        return "inputs" if knows_inputs else "nothing"

    @property
    def error_exceeds_delta(self) -> bool:
        """By chance in few bits; with a knob too, of which nobody knows the bits."""
        if self.rounding != "unbiased":
            return False
        error = gaussian_error.of_unbiased_rounding(self.bits) if self.bits else math.inf
        return exceeds_delta(self.gain, error**2)

    @property
    def ragged(self) -> frozenset[str]:
        return frozenset({"stream"})

    def _limit(self, shape: tuple[int, int]) -> int:
        """The most bytes of a stream: the budget, or what zeros alone take."""
        count = math.prod(shape)
        least = level_stream.LEAST_BYTES
        if self.steps == "sensitive":
            least = level_stream.LEAST_CLASSED_BYTES
        if self.bits is None:
            return MOST_BYTES * (count + sum(shape)) + 16 * least
        return max(math.floor(self.bits * count / 8), least)

    def beside_bytes(self, shape: tuple[int, int]) -> int:
        """Codes or symbols and streams (`fitting.stored_codes`); more where a knob or a gain
        decides, or errors are made up for."""
        if self.bits is None or self.gain is not None or self.rounding == "compensated":
            return super().beside_bytes(shape)
        return encoding_bytes(math.prod(shape), self._limit(shape)) + 4 * self.rows_at_once

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return {"stream": TensorSpec(Dtype.U8, (self._limit(shape),))}

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        return {"stream": self._encoded(MatrixEntries(delta), context)}

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        return {"stream": self._encoded(DifferenceEntries(weight, base), context)}

    def _encoded(self, deltas: DeltaEntries, context: EncodeContext) -> torch.Tensor:
        coded = self._by_bits if self.knob is None else self._by_knob
        return coded(deltas, context)

    def _by_bits(self, deltas: DeltaEntries, context: EncodeContext) -> torch.Tensor:
        coder = WithinBytes(
            deltas,
            context,
            self._limit(deltas.shape),
            self.steps == "sensitive",
            lambda entries, coded: self._written(entries, coded, context),
        )
        if self.rounding == "compensated":
            return coder.compensated()
        by_chance = self.rounding == "unbiased"
        return coder.apart((Unbiased(context.seed),)) if by_chance else coder.apart()

    def _by_knob(self, deltas: DeltaEntries, context: EncodeContext) -> torch.Tensor:
        entries, coded = self._coded_by_knob(TriedDelta(deltas.matrix), context)
        stream = self._written(entries, coded, context)
        self._check_by_knob(coded, stream.numel(), deltas.shape)
        return stream

    def tried_delta(self, delta: TriedDelta, context: EncodeContext) -> tuple[torch.Tensor, float]:
        """By a knob no stream is written: its bytes are told from how often each code occurs."""
        if self.knob is None:
            return super().tried_delta(delta, context)
        entries, coded = self._coded_by_knob(delta, context)
        nbytes = told_bytes(entries.steps, coded.counts_within)
        self._check_by_knob(coded, nbytes, delta.shape)
        levels = self._levels(entries, coded, context)
        return entries.decoded(coded, levels), nbytes

    def told_bytes(self, delta: TriedDelta, context: EncodeContext, copies: int) -> float:
        """About how many bytes a delta takes, by a knob, that has these rows so many times, with
        the tables of one. Raises CodecError if the knob is too fine."""
        entries, coded = self._coded_by_knob(delta, context)
        nbytes = told_bytes(entries.steps, copies * coded.counts_within)
        nbytes += (copies - 1) * unseen_bytes(entries.steps, coded.counts_within)
        self._check_by_knob(coded, nbytes / copies, delta.shape)
        return nbytes

    def _coded_by_knob(self, delta: TriedDelta, context: EncodeContext) -> tuple[Entries, Coded]:
        assert self.knob is not None
        if context.curvature is None:
            raise CodecError(
                "a knob needs a calibration with gradients: run ders calibrate --gradients and "
                "name its file in the recipe"
            )
        by_chance = Unbiased(context.seed) if self.rounding == "unbiased" else None
        moments = context.moments if self.rounding == "compensated" else None
        return coded_by_knob(delta, self.knob, context.curvature, moments, by_chance)

    def _check_by_knob(self, coded: Coded, nbytes: float, shape: tuple[int, int]) -> None:
        """Raises CodecError if the steps are too fine. nbytes: of the stream."""
        if coded.far_share > MOST_FAR or nbytes > self._limit(shape):
            assert self.knob is not None
            raise CodecError(
                f"a knob of {number_text(self.knob)} is too small for these deltas: they take "
                f"more than {8 * MOST_BYTES} bits an entry, or steps finer than can be told; give "
                "a larger one"
            )

    def _written(self, entries: Entries, coded: Coded, context: EncodeContext) -> torch.Tensor:
        """The stream of codes."""
        return entries.write(coded, self._levels(entries, coded, context))

    def _levels(self, entries: Entries, coded: Coded, context: EncodeContext) -> torch.Tensor:
        """What the codes stand for that occur, by the gain that was asked for: float32."""
        levels = entries.levels(coded)
        if self.gain is not None:
            decoded = entries.decoded(coded, levels)
            by_chance = self.rounding == "unbiased"
            exact = entries.deltas.matrix
            levels *= gain_factor(self.gain, exact, decoded, context, by_chance=by_chance)
        if not levels.isfinite().all():
            raise CodecError(
                "these deltas are so large that a multiple of the step is more than float32 holds; "
                "give them the codec `keep` or `lossless`"
            )
        return levels

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        stream = parts["stream"]
        if level_stream.is_one(stream):
            delta = level_stream.read(stream, shape).matrix()
        elif self.steps == "even":
            delta = even_stream.read(stream, math.prod(shape)).view(shape)
        else:
            delta = classed_stream.read(stream, shape)
        return delta.to(stream.device)  # a model may hold it on a GPU

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        stream = parts["stream"]
        if base.device.type != "cpu" or not level_stream.is_one(stream):
            return super().unpack(parts, base, context)
        shape, weight = (base.shape[0], base.shape[1]), None
        if base.dtype == torch.bfloat16:
            weight = fresh(base.shape, base.dtype)
        return level_stream.read(stream, shape, weight).onto(base, weight=weight)

    def unpack_and_decode(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> tuple[Iterable[torch.Tensor], Callable[[slice], torch.Tensor]]:
        stream = parts["stream"]
        if base.device.type != "cpu" or not level_stream.is_one(stream):
            delta = self.decode(parts, (base.shape[0], base.shape[1]), context).to(base.device)
            return [combine(base, delta).view(-1)], delta.__getitem__
        entries = level_stream.read(stream, (base.shape[0], base.shape[1]))
        return entries.in_pieces_onto(base), entries.matrix

    def held_form(self, shape: tuple[int, int]) -> HeldLevels:
        return HeldLevels(of_streams=self)

    def held_parts(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Parts:
        return held_levels(parts["stream"], shape)

    def held_lengths(self, begins: PartBegins, shape: tuple[int, int]) -> dict[str, int]:
        def tell(begin: np.ndarray) -> int | None:
            if not level_stream.is_one(begin):
                return None  # of an earlier format version: it stays as it is
            return held_bytes(level_stream.about(begin, shape), shape)

        told = begins.told_by("stream", tell)
        return {HELD: told or streamed_bytes(begins.lengths["stream"], shape)}

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        """The levels; 0 stays 0, which entries that are left out have. And gains of rows and
        columns, by a knob and if the stream may be so much longer. Streams of earlier format
        versions stay as they are."""
        stream = parts["stream"]
        if not level_stream.is_one(stream):
            return super().tunable(parts, shape, context)
        room = self._limit(shape) - stream.numel()
        has_room = self.knob is not None and room >= gain_bytes(shape)
        return tunable_stream(stream, shape, has_room=has_room)

    def expected(self, statistics: DeltaStatistics) -> Expected | None:
        """As for Gaussian values of one variance. Unknown where steps differ or errors are made up
        for."""
        if self.bits is None or self.steps == "sensitive" or self.rounding == "compensated":
            return None
        by_chance = self.rounding == "unbiased"
        if by_chance:
            code = Expected(1.0, gaussian_error.of_unbiased_rounding(self.bits))
        else:
            code = Expected.of_least_squares(gaussian_error.of_entropy_coding(self.bits))
        return expected_with(self.gain, code, statistics.groups, by_chance=by_chance)
