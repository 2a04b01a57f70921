"""The codecs of one group's experts, and the tensors that the group takes in a packed file.

Usually all experts have one codec. Each of its parts is then stacked over the experts; parts whose
length depends on the data are stored end to end, and the manifest lists their lengths. Where
experts have several codecs, each codec's parts are named by its number and stacked over its
experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ders_core.codecs import Codec, DeltaCodec, Keep, Parts, make_codec
from ders_core.codecs.part_names import prefixed
from ders_core.errors import CodecError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import tensor_bytes
from ders_core.later import torch

Lengths = Mapping[str, Sequence[int]]
"""Variable-length part -> its length for each expert that has it."""


@dataclass(frozen=True)
class Stacked:
    """A tensor in the file, as the pieces that follow one another in it: never a second copy."""

    spec: TensorSpec
    pieces: tuple[torch.Tensor, ...]

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> Stacked:
        return cls(TensorSpec.like(tensor), (tensor,))

    @classmethod
    def over_experts(cls, pieces: Sequence[torch.Tensor]) -> Stacked:
        """Pieces of the same shape and dtype, under a new first dimension."""
        first = TensorSpec.like(pieces[0])
        return cls(TensorSpec(first.dtype, (len(pieces), *first.shape)), tuple(pieces))

    @classmethod
    def end_to_end(cls, pieces: Sequence[torch.Tensor]) -> Stacked:
        """Pieces that differ in their first dimension."""
        length = sum(len(piece) for piece in pieces)
        first = TensorSpec.like(pieces[0])
        return cls(TensorSpec(first.dtype, (length, *first.shape[1:])), tuple(pieces))

    def raw(self) -> Iterator[memoryview]:
        """Its bytes in chunks."""
        for piece in self.pieces:
            yield from tensor_bytes(piece)


@dataclass(frozen=True)
class GroupCodec:
    """codecs: the distinct ones. uses: for each expert, which one."""

    codecs: tuple[Codec, ...]
    uses: tuple[int, ...]

    @classmethod
    def of(cls, per_expert: Sequence[Codec]) -> GroupCodec:
        """From the codec of each expert."""
        distinct = tuple(dict.fromkeys(per_expert))
        return cls(distinct, tuple(distinct.index(codec) for codec in per_expert))

    @classmethod
    def same(cls, codec: Codec, experts: int) -> GroupCodec:
        return cls((codec,), (0,) * experts)

    @classmethod
    def load(cls, codecs: Any, uses: Sequence[int] | None, experts: int) -> GroupCodec:
        """The inverse of `dump`. Raises CodecError for what no group can have."""
        if isinstance(codecs, Mapping) != (uses is None):
            raise CodecError("the experts have one codec, or several, and uses that say whose")
        if uses is None:
            return cls.same(make_codec(codecs), experts)
        distinct = tuple(make_codec(fields) for fields in codecs)
        if len(uses) != experts or set(uses) != set(range(len(distinct))):
            raise CodecError("the experts' codecs are not named for each expert")
        return cls(distinct, tuple(uses))

    def dump(self) -> tuple[Any, tuple[int, ...] | None]:
        """(codec, None), or (codecs, uses) where there are several; plain values."""
        if self.codec is not None:
            return self.codec.dump(), None
        return [codec.dump() for codec in self.codecs], self.uses

    @property
    def codec(self) -> Codec | None:
        """The codec of all experts; None where they have several."""
        return self.codecs[0] if len(self.codecs) == 1 else None

    @property
    def label(self) -> str:
        if self.codec is not None:
            return self.codec.label
        counts = [self.uses.count(number) for number in range(len(self.codecs))]
        pairs = zip(counts, self.codecs, strict=True)
        return "; ".join(f"{count} × {codec.label}" for count, codec in pairs)

    @property
    def keeps(self) -> bool:
        """Whether every expert stays as it is."""
        return isinstance(self.codec, Keep)

    @property
    def exact(self) -> bool:
        return all(codec.exact for codec in self.codecs)

    def device_of(self, device: torch.device | str) -> torch.device:
        """Where the group is encoded and decoded, if that is meant to be on this device: on the CPU
        if a codec of its experts is (see `Codec.is_coded_on_cpu`), or nothing is computed."""
        on_cpu = self.keeps or any(codec.is_coded_on_cpu for codec in self.codecs)
        return torch.device("cpu" if on_cpu else device)

    @property
    def is_encoded_together(self) -> bool:
        """Whether a codec of its experts is (see `DeltaCodec.is_encoded_together`)."""
        return any(isinstance(c, DeltaCodec) and c.is_encoded_together for c in self.codecs)

    @property
    def settled(self) -> bool:
        return all(codec.settled for codec in self.codecs)

    def working_bytes(self, shape: tuple[int, int]) -> int:
        """The most that one of them holds (see `Codec.working_bytes`)."""
        return max(codec.working_bytes(shape) for codec in self.codecs)

    def beside_bytes(self, shape: tuple[int, int]) -> int:
        """The most that one of them holds (see `Codec.beside_bytes`)."""
        return max(codec.beside_bytes(shape) for codec in self.codecs)

    def calibrated_bytes(self, shape: tuple[int, int], *, is_full: bool, makes_whole: bool) -> int:
        """The most that one of them holds (see `Codec.calibrated_bytes`)."""
        known = {"is_full": is_full, "makes_whole": makes_whole}
        return max(codec.calibrated_bytes(shape, **known) for codec in self.codecs)

    def packed_bytes(self, shape: tuple[int, int], dtype: Dtype) -> int:
        """What an expert's parts take at most, of any of them."""
        return max(
            sum(spec.nbytes for spec in codec.parts(shape, dtype).values()) for codec in self.codecs
        )

    def shared_bytes(self, width: int) -> int:
        """What all of them hold for all experts (see `Codec.shared_bytes`)."""
        return sum(codec.shared_bytes(width) for codec in self.codecs)

    def remark(self, shape: tuple[int, int]) -> str:
        """What the codecs do otherwise than they were asked, for experts `[out, in]`."""
        return "; ".join(dict.fromkeys(filter(None, (c.remark(shape) for c in self.codecs))))

    def expert(self, number: int) -> Codec:
        return self.codecs[self.uses[number]]

    def members(self, number: int) -> list[int]:
        """The experts that have the codec of that number."""
        return [expert for expert, use in enumerate(self.uses) if use == number]

    def fit(self, deltas: Callable[[list[int]], Iterable[torch.Tensor]]) -> GroupCodec:
        """Settle every codec on the deltas of its experts; `deltas` gives those of a list."""
        fitted = tuple(
            codec.fit(deltas(self.members(number))) for number, codec in enumerate(self.codecs)
        )
        return GroupCodec(fitted, self.uses)

    def held_form(self, shape: tuple[int, int]) -> GroupCodec:
        """Of the parts in which a model holds experts `[out, in]` (see `Codec.held_form`)."""
        return GroupCodec(tuple(codec.held_form(shape) for codec in self.codecs), self.uses)

    def specs(
        self, shape: tuple[int, int], dtype: Dtype, lengths: Lengths | None = None
    ) -> dict[str, TensorSpec]:
        """Part in the file -> dtype and shape, for experts `[out, in]` stored as `dtype`. Without
        `lengths`, variable-length parts are as long as they can be."""
        specs: dict[str, TensorSpec] = {}
        for number, codec in enumerate(self.codecs):
            count = self.uses.count(number)
            for part, spec in codec.parts(shape, dtype).items():
                name = self._name(number, part)
                if part not in codec.ragged:
                    stacked = (count, *spec.shape)
                elif lengths is None:
                    stacked = (count * spec.shape[0], *spec.shape[1:])
                else:
                    stacked = (sum(lengths[name]), *spec.shape[1:])
                specs[name] = TensorSpec(spec.dtype, stacked)
        return specs

    def variable(self, shape: tuple[int, int], dtype: Dtype) -> frozenset[str]:
        """Parts in the file whose shapes depend on the data, all those of a codec that is not
        settled among them."""
        return frozenset(
            self._name(number, part)
            for number, codec in enumerate(self.codecs)
            for part in (codec.ragged if codec.settled else codec.parts(shape, dtype))
        )

    def ragged_bytes(self, shape: tuple[int, int], dtype: Dtype) -> int:
        """The most bytes of the parts whose length depends on the data."""
        return sum(
            self.uses.count(number) * codec.parts(shape, dtype)[part].nbytes
            for number, codec in enumerate(self.codecs)
            for part in codec.ragged
        )

    def lengths_within(self, shape: tuple[int, int], dtype: Dtype, nbytes: int) -> Lengths:
        """Variable-length parts of so many bytes together, as one length each; several share them
        as they would share the most."""
        share = nbytes / max(self.ragged_bytes(shape, dtype), 1)
        most = self.specs(shape, dtype)
        names = [
            self._name(number, part)
            for number, codec in enumerate(self.codecs)
            for part in codec.ragged
        ]
        return {name: (round(most[name].shape[0] * share),) for name in names}

    def fits(self, lengths: Lengths, shape: tuple[int, int], dtype: Dtype) -> bool:
        """Whether lengths from a file belong to this group's parts, and none is too long."""
        wanted = {}
        for number, codec in enumerate(self.codecs):
            parts = codec.parts(shape, dtype)
            for part in codec.ragged:
                wanted[self._name(number, part)] = (parts[part].shape[0], self.uses.count(number))
        return lengths.keys() == wanted.keys() and all(
            len(lengths[name]) == count and all(0 <= length <= most for length in lengths[name])
            for name, (most, count) in wanted.items()
        )

    def stack(
        self, parts: Sequence[Parts]
    ) -> tuple[dict[str, Stacked], dict[str, tuple[int, ...]]]:
        """Each expert's parts -> the group's tensors, and the lengths of variable-length ones."""
        tensors: dict[str, Stacked] = {}
        lengths: dict[str, tuple[int, ...]] = {}
        for number, codec in enumerate(self.codecs):
            members = [parts[expert] for expert in self.members(number)]
            for part in members[0]:
                name, pieces = self._name(number, part), [member[part] for member in members]
                if part in codec.ragged:
                    tensors[name] = Stacked.end_to_end(pieces)
                    lengths[name] = tuple(len(piece) for piece in pieces)
                else:
                    tensors[name] = Stacked.over_experts(pieces)
        return tensors, lengths

    def take(
        self,
        expert: int,
        read: Callable[[str, slice], torch.Tensor],
        shape: tuple[int, int],
        dtype: Dtype,
        lengths: Lengths,
    ) -> Parts:
        """One expert's parts. `read(part, rows)` gives rows of a group's tensor."""
        number, row = self.uses[expert], self.row(expert)
        codec = self.codecs[number]
        parts: Parts = {}
        for part in codec.parts(shape, dtype):
            name = self._name(number, part)
            if part in codec.ragged:
                begin, end = _span(lengths[name], row)
                parts[part] = read(name, slice(begin, end))
            else:
                parts[part] = read(name, slice(row, row + 1))[0]
        return parts

    def row(self, expert: int) -> int:
        """Its place among the experts of its codec, over which parts are stacked."""
        return self.uses[:expert].count(self.uses[expert])

    @property
    def host_parts(self) -> frozenset[str]:
        """Of all codecs (see `Codec.host_parts`), as they are called in the group."""
        return frozenset(
            self._name(number, part)
            for number, codec in enumerate(self.codecs)
            for part in codec.host_parts
        )

    def part_name(self, expert: int, part: str) -> str:
        """What a part of the expert is called in the group."""
        return self._name(self.uses[expert], part)

    def _name(self, number: int, part: str) -> str:
        return part if self.codec is not None else f"{number}.{part}"


def _span(lengths: Sequence[int], row: int) -> tuple[int, int]:
    ends = [0, *accumulate(lengths)]
    return ends[row], ends[row + 1]


@dataclass(frozen=True)
class BaseForm:
    """How the bases of a group lie in a packed file.

    count: how many are stacked; None for one that is not. codec: of the bases themselves, against
    zeros; `keep`: as they are. lengths: of its variable-length parts; None: the most.
    """

    count: int | None = None
    codec: Codec = field(default_factory=Keep)
    lengths: Lengths | None = None

    @property
    def is_coded(self) -> bool:
        return not isinstance(self.codec, Keep)

    @property
    def exact(self) -> bool:
        """Whether the bytes are known before the bases are."""
        return self.codec.exact

    @property
    def stacked(self) -> GroupCodec:
        """The codec of all bases, as of a stack of matrices."""
        return GroupCodec.same(self.codec, self.count or 1)

    def specs(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        """Part -> dtype and shape, for bases `[out, in]`: `base`, or `base.<part>` each."""
        if not self.is_coded:
            whole = shape if self.count is None else (self.count, *shape)
            return {"base": TensorSpec(dtype, whole)}
        return prefixed("base", self.stacked.specs(shape, dtype, self.lengths))

    def fits(self, shape: tuple[int, int], dtype: Dtype) -> bool:
        """Whether lengths from a file belong to the bases' parts, and the codec is settled."""
        lengths = self.lengths or {}
        if not self.is_coded:
            return not lengths
        return self.codec.settled and self.stacked.fits(lengths, shape, dtype)


_ONE_BASE = BaseForm()


def packed_parts(
    codec: GroupCodec,
    shape: tuple[int, int, int],
    dtype: Dtype,
    *,
    base: BaseForm | None = _ONE_BASE,
    biases: bool = False,
    lengths: Lengths | None = None,
) -> dict[str, TensorSpec]:
    """Part -> dtype and shape of a group of `shape` (experts, out, in) stored as `dtype`.

    base: None if there is none; a group that is kept has none. biases: whether experts have them;
    they stay as they are, `[experts, out]`. lengths: of variable-length parts; without them, the
    most.
    """
    experts, out, width = shape
    parts = codec.specs((out, width), dtype, lengths)
    if base is not None and not codec.keeps:
        parts = {**base.specs((out, width), dtype), **parts}
    if biases:
        parts["bias"] = TensorSpec(dtype, (experts, out))
    return parts


def variable_parts(
    codec: GroupCodec,
    shape: tuple[int, int, int],
    dtype: Dtype,
    *,
    base: BaseForm | None = _ONE_BASE,
    is_sure: bool = True,
) -> frozenset[str]:
    """Which of `packed_parts` are of other shapes than without lengths, or not there, by what the
    data are. is_sure: whether there are bases, and as many as `base` says, whatever they are."""
    _, out, width = shape
    names = codec.variable((out, width), dtype)
    if base is None or codec.keeps:
        return names
    if not is_sure:
        return names.union(base.specs((out, width), dtype))
    if not base.is_coded:
        return names
    return names.union(prefixed("base", dict.fromkeys(base.stacked.variable((out, width), dtype))))
