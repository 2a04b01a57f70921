"""What a codec is, and the registry of all of them.

A codec is a frozen set of parameters with two pure functions, `pack` and `unpack`, between one
expert's weight, with its base known, and a flat dict of tensors. Most look at the delta alone: they
are a `DeltaCodec`, with `encode` and `decode`. A codec says beforehand which tensors it will write.
The parameters travel in recipes and in the manifest; nothing else is needed to decode.

To add a codec, write its class in a file of this package and decorate it with `register`. Plans,
pages and predictions ask the class; `ders_core.codecs.testing` checks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.codecs.choice import Choice
from ders_core.codecs.encode_context import EncodeContext as EncodeContext
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.needed_memory import NeededMemory
from ders_core.codecs.part_begins import PartBegins
from ders_core.codecs.routed import CodedExperts, RoutedDeltas
from ders_core.codecs.rows_in_turn import RowsInTurn
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.synthesis import combine as combine
from ders_core.codecs.synthesis import difference as difference
from ders_core.codecs.tried_matrix import TriedDelta, TriedMatrix
from ders_core.codecs.tunable import Tunable
from ders_core.errors import CodecError, sentence_of
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch
from ders_core.registry import Registry

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts

Parts = dict[str, "torch.Tensor"]
"""What one expert's weight becomes; in the file each part is stacked over the experts."""

MakeWeight = Callable[["torch.Tensor", "torch.dtype"], "torch.Tensor"]
"""(base, dtype) -> Ŵ `[out, in]` in that dtype, as `unpack_as` gives it."""

Need = Literal["nothing", "inputs", "gradients"]
"""What a calibration must hold for a codec."""

NEEDS: tuple[Need, ...] = ("nothing", "inputs", "gradients")
"""From the least to the most."""


class Codec(NeededMemory, BaseModel, ABC):
    """Base of all codecs; a subclass declares its parameters as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """The word in recipes, manifests and on the command line."""
    summary: ClassVar[str]
    """One sentence that helps a person to choose."""
    source: ClassVar[str]
    """The paper or idea that it implements."""
    choices: ClassVar[tuple[Choice, ...]] = ()
    """Its entries in menus and tables; a codec without any is written in YAML only."""
    lossless: ClassVar[bool] = False
    """Whether Ŵ is W, bit for bit, whatever the weights and the parameters are."""
    menu_place: ClassVar[int] = 100
    """The place of its choices in a menu: the lowest come first, equals by name."""
    examples: ClassVar[tuple[Mapping[str, Any], ...]]
    """Parameters of a few codecs of this class, which together reach all of its code."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The codec with its strength, in a few words."""

    @property
    def settled(self) -> bool:
        """Whether no parameter is left for `fit` to determine."""
        return True

    @property
    def needs_of_calibration(self) -> Need:
        """What it cannot do without; what it merely makes use of, `use_of_calibration` says."""
        return "nothing"

    @property
    def error_exceeds_delta(self) -> bool:
        """Whether its error is larger than what it encodes, as that of rounding by chance to few
        bits: what else is in a delta, such as a base's error, grows by it."""
        return False

    @property
    def acts_by_rows(self) -> bool:
        """Whether a part of the rows is encoded as it would be among all of them, so that a sample
        of them foretells the whole."""
        return True

    @property
    def ragged(self) -> frozenset[str]:
        """Parts whose first dimension depends on the data: `parts` gives the most it can be."""
        return frozenset()

    @property
    def host_parts(self) -> frozenset[str]:
        """Parts that stay on the CPU: the CPU reads them to choose what the device computes, and
        would have to wait for the device otherwise."""
        return frozenset()

    def device_of(self, parts: Mapping[str, torch.Tensor]) -> torch.device:
        """Where these parts are decoded: on the device of those that need not stay on the CPU."""
        others = (part.device for name, part in parts.items() if name not in self.host_parts)
        return next(others, torch.device("cpu"))

    @property
    def is_coded_on_cpu(self) -> bool:
        """Whether the CPU encodes and decodes it altogether, whatever the device: all that `pack`
        and `unpack` get is there. A GPU would be waited for with each length."""
        return bool(self.ragged)

    @property
    def choice(self) -> Choice | None:
        """The menu's entry for this codec; None if it can only be written in YAML."""
        return next(
            (
                choice
                for choice in self.choices
                if all(getattr(self, key) == value for key, value in choice.fields.items())
            ),
            None,
        )

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        """Its forms in the strengths that an automatic choice tries, the lightest of a form first;
        none by default."""
        return ()

    def between(self, other: Codec, share: float) -> Self | None:
        """The codec of a strength between this and another one of a ladder, where strengths are
        continuous and bytes and errors follow smoothly; None where they do not. share: 0 for this,
        1 for the other."""
        return None

    @property
    def is_hardware_friendly(self) -> bool:
        """Whether a matrix unit or a lookup decodes it: all codes have one width, N of M are kept,
        or the rank is low."""
        return False

    def fields_beside_strength(self) -> dict[str, Any]:
        """The parameters that stay when the strength of its choice is set to another value."""
        return self.model_dump(exclude_none=True)

    def expected(self, statistics: DeltaStatistics) -> Expected | None:
        """An estimate of gain and noise over a group's deltas, without a calibration; None where
        these statistics are not enough."""
        return None

    @property
    def exact(self) -> bool:
        """Whether `parts` is exact before the data are seen; otherwise it is an upper bound."""
        return self.settled and not self.ragged

    @abstractmethod
    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        """The tensors that one expert's weight `[out, in]` will take."""

    def remark(self, shape: tuple[int, int]) -> str:
        """What it does otherwise than it was asked, for weights `[out, in]`; usually nothing."""
        return ""

    def fit(self, deltas: Iterable[torch.Tensor]) -> Codec:
        """A codec with every choice made that depends on the group's deltas (`[out, in]` fp32).

        deltas: may be gone through more than once.
        """
        return self

    @abstractmethod
    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        """weight and base: `[out, in]` in storage dtype, finite; no part shares their memory.
        Raises CodecError if the weight cannot be represented."""

    @abstractmethod
    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        """Ŵ `[out, in]` in the base's dtype and on its device, where the parts are too. Raises
        CodecError if the parts contradict themselves."""

    def unpack_in_pieces(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> Iterable[torch.Tensor]:
        """Ŵ as `unpack` gives it, flat, in pieces `[n]` one after another, of which all but the
        last hold a multiple of SUMMED_FIRST values (see `compute.sums`). Raises as `unpack` does.
        """
        return [self.unpack(parts, base, context).view(-1)]

    def check(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> None:
        """Raise CodecError for parts, on the CPU, of which `unpack` on a GPU cannot say that they
        contradict themselves: it would wait for that."""
        return

    def tried(self, matrix: TriedMatrix, context: EncodeContext) -> tuple[torch.Tensor, float]:
        """Ŵ as `unpack` would give it, and about the bytes of `ragged` parts, which a codec need
        not make for that. context: always the same of one matrix. Raises as `pack` does."""
        parts = self.pack(matrix.weight, matrix.base, context)
        ragged = float(sum(parts[name].nbytes for name in self.ragged))
        return self.unpack(parts, matrix.base, context), ragged

    def unpack_as(
        self,
        dtype: torch.dtype,
        parts: Mapping[str, torch.Tensor],
        base: torch.Tensor,
        context: EncodeContext,
    ) -> torch.Tensor:
        """Ŵ `[out, in]` as `unpack`, in another dtype of floats, rounded to it once."""
        return self.unpack(parts, base, context).to(dtype)

    def held_form(self, shape: tuple[int, int]) -> Codec:
        """The codec in whose parts a model holds weights `[out, in]` in memory: this one, unless
        another form of the same parts is quicker to multiply with."""
        return self

    def held_parts(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Parts:
        """The parts as those of `held_form`. Raises CodecError as `unpack` does."""
        return dict(parts)

    def held_lengths(self, begins: PartBegins, shape: tuple[int, int]) -> dict[str, int]:
        """How long the variable-length parts of `held_form` are, told before anything is decoded.
        Where data decide, to a hundredth; near the border between two forms the other one may be
        told. Raises CodecError for a part that is damaged where it begins."""
        return {part: begins.lengths[part] for part in self.held_form(shape).ragged}

    def dump(self) -> dict[str, Any]:
        """The codec as it is written in a recipe."""
        return {"codec": self.name, **self.model_dump(exclude_none=True)}

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable | None:
        """What is small in the parts of one expert `[out, in]` and may be tuned while the codes
        stay; parts are not changed. None where Ŵ is not W_base + F(Δ), so that not even the base
        may change. Raises CodecError as `unpack` does."""
        return None


class DeltaCodec(Codec, RowsInTurn):
    """A codec that needs to know nothing but the delta: Ŵ = W_base + F(Δ) (DeRS eq. 2)."""

    reads_any_base: ClassVar[bool] = False
    """Whether `unpack_as` reads a base of another dtype as quickly as one of its own."""

    @property
    def is_encoded_together(self) -> bool:
        """Whether `encode` waits for a GPU, so that many deltas there had better be encoded by one
        `encode_each`."""
        return False

    @abstractmethod
    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        """delta: `[out, in]` float32, finite. Raises CodecError if it cannot be represented."""

    @abstractmethod
    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        """The delta `[out, in]` float32, on the device of the parts. Raises CodecError if the
        parts contradict themselves."""

    def encode_each(
        self, deltas: Sequence[torch.Tensor], contexts: Sequence[EncodeContext]
    ) -> list[Parts]:
        """`encode` of several deltas of one shape on one device, each in its context: on a GPU
        with as many waits as for one. Raises as `encode` does."""
        return [*map(self.encode, deltas, contexts)]

    def tried(self, matrix: TriedMatrix, context: EncodeContext) -> tuple[torch.Tensor, float]:
        delta, nbytes = self.tried_delta(matrix.delta, context)
        return combine(matrix.base, delta.to(matrix.base.device)), nbytes

    def tried_delta(self, delta: TriedDelta, context: EncodeContext) -> tuple[torch.Tensor, float]:
        """The delta as `decode` would give it, and about the bytes of `ragged` parts; see `tried`.
        A codec that does not act on rows is tried on all rows that these are of."""
        whole = delta.whole
        if whole is not None and not self.acts_by_rows:
            of_all = replace(whole.context, seed=context.seed)  # of this stage, in a chain
            decoded, nbytes = self.tried_delta(whole.delta, of_all)
            return whole.rows_of(decoded), whole.share * nbytes
        parts = self.encode(delta.matrix, context)
        ragged = float(sum(parts[name].nbytes for name in self.ragged))
        return self.decode(parts, delta.shape, context), ragged

    def product(
        self,
        parts: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> torch.Tensor:
        """x Δ̂ᵀ `[n, out]` in x's dtype. x: `[n, in]`, on the parts' device. A codec whose delta
        need not be decoded for that does it otherwise, up to the rounding of sums. Raises
        CodecError as `decode` does."""
        return x @ self.decode(parts, shape, context).to(x.dtype).T

    def multiplies(self, tokens: int) -> bool:
        """Whether `product` of so many is quicker than to decode the delta and multiply that."""
        return False

    def maker(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> MakeWeight | None:
        """What makes Ŵ again and again, of which what depends on the parts alone is done once; it
        shares memory with them. None where that saves nothing."""
        return None

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        """Products of a few tokens with the deltas of many experts at once, on a CPU, which share
        memory with the parts; None where there are none that beat one `product` after
        another."""
        return None

    def grouped(self, coded: CodedExperts) -> GroupedProducts | None:
        """As `routed`, on a GPU for which Triton is installed. Raises CodecError if the parts
        contradict themselves."""
        return None

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        """As of every codec. A codec that says no more has nothing to tune, but its base has."""
        return Tunable.fixed(self.decode(parts, shape, context))

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        return self.encode(difference(weight, base), context)

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        shape = (base.shape[0], base.shape[1])
        return combine(base, self.decode(parts, shape, context).to(base.device))

    def unpack_with_rows(
        self,
        rows: slice,
        parts: Mapping[str, torch.Tensor],
        base: torch.Tensor,
        context: EncodeContext,
    ) -> tuple[Iterable[torch.Tensor], torch.Tensor]:
        shape = (base.shape[0], base.shape[1])
        delta = self.decode(parts, shape, context).to(base.device)
        return [combine(base, delta).view(-1)], delta[rows].clone()

    def unpack_as(
        self,
        dtype: torch.dtype,
        parts: Mapping[str, torch.Tensor],
        base: torch.Tensor,
        context: EncodeContext,
    ) -> torch.Tensor:
        """As of `Codec`; the sum is taken in float32 and rounded from there, not from the
        base's dtype."""
        return self.unpack(parts, start_of(base, dtype), context).to(dtype)


def start_of(base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a delta is added to for a weight of a dtype that is rounded once: the base, in float32
    if it has another dtype."""
    return base if dtype is base.dtype else base.float()


CODECS: Registry[Codec] = Registry("codec", "ders_core.codecs", CodecError)
register = CODECS.register
"""Class decorator: make a codec known by its name."""


def codec_class(name: object) -> type[Codec]:
    """The codec of that name. Raises CodecError that lists the known ones."""
    return CODECS.find(name)


def make_codec(fields: Mapping[str, Any]) -> Codec:
    """A codec from `{"codec": name, **parameters}`. Raises CodecError for anything unknown."""
    parameters = {key: value for key, value in fields.items() if key != "codec"}
    cls = codec_class(fields.get("codec"))
    try:
        return cls.model_validate(parameters)
    except ValidationError as error:
        known = cls.model_fields or ("none",)
        sentence = sentence_of(error, f"codec {cls.name!r}", "parameter", known)
        raise CodecError(sentence) from error
