"""The coded matrices of a packed checkpoint: Ŵ_i = W_base + F(Δ_i), from their stacks' parts."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ders_core.codecs import Codec, DeltaCodec, EncodeContext
from ders_core.codecs.group import BaseForm, GroupCodec, Lengths, packed_parts
from ders_core.codecs.part_begins import PartBegins
from ders_core.compute.buffers import fresh
from ders_core.compute.sent import sent
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.dtype import Dtype
from ders_core.files.store import TensorStore
from ders_core.files.tensor import FileTensor
from ders_core.later import np, torch
from ders_core.packed.part_reads import ReadRows, rows_in_reused_memory
from ders_core.packed.stacks import PackedStack

KEPT_BASES = 3
"""gate, up and down of one layer: checkpoints list an expert's projections side by side."""


@dataclass(frozen=True)
class HeldCodes:
    """What the codecs of a stack wrote, as a model holds it.

    parts: each over all matrices of its codec. pieces: variable-length parts, of each matrix of its
    codec.
    """

    parts: dict[str, torch.Tensor]
    pieces: dict[str, list[torch.Tensor]]

    def of_row(self, part: str, row: int) -> torch.Tensor:
        """A part of one matrix of its codec."""
        return self.pieces[part][row] if part in self.pieces else self.parts[part][row]


class PackedMatrices:
    """Reads the stacks of a packed checkpoint. Safe to use from several threads.

    store: the packed tensors. seed: the recipe's. is_shared: whether deltas were taken against
    bases before these were coded. read: how a part's rows are read, where not all are
    wanted at once, but for what streams begin with. Raises CheckpointError if a stack's parts are
    not what its codec writes.
    """

    def __init__(
        self,
        store: TensorStore,
        stacks: Iterable[PackedStack],
        seed: int,
        *,
        is_shared: bool = False,
        read: ReadRows = rows_in_reused_memory,
    ) -> None:
        self._read = read
        self._store, self.seed, self._is_shared = store, seed, is_shared
        self._parts: dict[str, list[FileTensor]] = {}
        self._codecs: dict[str, GroupCodec] = {}
        self._base_forms: dict[str, BaseForm | None] = {}
        for stack in stacks:
            self._check(stack)
        self._bases: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()  # transformers reads from several threads

    def weight(
        self,
        stack: PackedStack,
        number: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Ŵ_i `[out, in]` of one matrix, in the stack's dtype or in `dtype`, which base and delta
        are added in float32 and rounded to once.

        Raises CheckpointError if a file cannot be read, CodecError if a part is damaged.
        """
        group, stored = self._codecs[stack.prefix], Dtype[stack.dtype].torch
        wanted = dtype or stored
        if group.keeps:
            return self._row(stack, "weight", number).to(device, wanted)
        codec, where = group.expert(number), group.device_of(device)
        is_delta = isinstance(codec, DeltaCodec)
        base_dtype = self.base_dtype(stack, wanted) if is_delta else stored
        context = EncodeContext(stored, stack.seed(self.seed, number))
        parts = self._take(stack, "", group, number, stack.lengths)
        base = self._base_on(stack, number, where, base_dtype)
        with naming(self.place(stack, number)):
            there = _sent(codec, parts, stack.stacked[1:], where)
            return codec.unpack_as(wanted, there, base, context).to(device)

    def device_of(self, stack: PackedStack, device: torch.device | str) -> torch.device:
        """Where `weight` decodes what is wanted on a device."""
        return self._codecs[stack.prefix].device_of(device)

    def place(self, stack: PackedStack, number: int) -> str:
        """Where one matrix lies, as messages name it."""
        matrix = f", expert {number}" if stack.stacked[0] > 1 else ""
        return f"{self._store.path}: {stack.prefix}{matrix}"

    def base_dtype(self, stack: PackedStack, wanted: torch.dtype) -> torch.dtype:
        """In which a base is added to a delta, for weights in the dtype `wanted`: the stack's, or
        float32 where a delta knows nothing of the base's own rounding."""
        stored = Dtype[stack.dtype].torch
        return torch.float32 if wanted is not stored and self._is_shared else stored

    def bias(self, stack: PackedStack, number: int) -> torch.Tensor:
        """`[out]` of one expert, in the stack's dtype."""
        return self._row(stack, "bias", number)

    def biases(self, stack: PackedStack) -> torch.Tensor:
        """`[experts, out]`, in the stack's dtype."""
        return self._tensor(stack, "bias").read()

    def base(self, stack: PackedStack, number: int = 0) -> torch.Tensor | None:
        """The base `[out, in]` of one matrix, in the stack's dtype, not to be written to: zeros
        where there is none; None with the codec `keep`."""
        if self._codecs[stack.prefix].keeps:
            return None
        return self._base_on(stack, number, "cpu", Dtype[stack.dtype].torch)

    def is_lossless(self, stack: PackedStack) -> bool:
        """Whether every matrix's codec keeps all bits; a coded base is the one that they know."""
        return all(codec.lossless for codec in self._codecs[stack.prefix].codecs)

    def held_codes(self, stack: PackedStack) -> HeldCodes:
        """What its codecs wrote, in the form in which a model holds it (see `Codec.held_form`); not
        the bases. Where that is not the form on disk, matrices are read one by one.

        Raises CheckpointError if a file cannot be read, CodecError if a part is damaged.
        """
        group, shape, dtype = self._codecs[stack.prefix], stack.stacked[1:], Dtype[stack.dtype]
        held, codes = group.held_form(shape), HeldCodes({}, {})
        for number, (codec, form) in enumerate(zip(group.codecs, held.codecs, strict=True)):
            members, specs = group.members(number), form.parts(shape, dtype)
            for part, spec in specs.items():
                name = held.part_name(members[0], part)
                if form != codec and part in form.ragged:
                    codes.pieces[name] = []
                elif form != codec:
                    codes.parts[name] = fresh((len(members), *spec.shape), spec.dtype.torch)
                elif part in form.ragged:
                    whole = self._tensor(stack, name).read()
                    codes.pieces[name] = [*whole.split(list(stack.lengths[name]))]
                else:
                    codes.parts[name] = self._tensor(stack, name).read()
            if form != codec:
                self._hold(stack, codec, members, codes)
                continue
            for row, member in enumerate(members):
                parts = {part: codes.of_row(held.part_name(member, part), row) for part in specs}
                with naming(self.place(stack, member)):
                    codec.check(parts, shape)
        return codes

    def _hold(self, stack: PackedStack, codec: Codec, members: list[int], codes: HeldCodes) -> None:
        """Fill the parts of a codec's experts that are not as on disk."""
        group, shape = self._codecs[stack.prefix], stack.stacked[1:]
        stored = Dtype[stack.dtype].torch
        for row, number in enumerate(members):
            parts = self._take(stack, "", group, number, stack.lengths)
            context = EncodeContext(stored, stack.seed(self.seed, number))
            with naming(self.place(stack, number)):
                codec.check(parts, shape)
                held = codec.held_parts(parts, shape, context)
            for part, tensor in held.items():
                name = group.part_name(number, part)
                if name in codes.pieces:
                    codes.pieces[name].append(tensor)
                else:
                    codes.parts[name][row] = tensor

    def held_bytes(self, stack: PackedStack) -> int:
        """Bytes of what `held_codes` gives, told before anything is decoded; where they depend on
        the data, as near as `Codec.held_lengths` tells. Raises CheckpointError if a file cannot be
        read, CodecError if a part is damaged where it begins."""
        group, shape, dtype = self._codecs[stack.prefix], stack.stacked[1:], Dtype[stack.dtype]
        total = 0
        for number, codec in enumerate(group.codecs):
            form, members = codec.held_form(shape), group.members(number)
            widths = {}
            for part, spec in form.parts(shape, dtype).items():
                if part in form.ragged:
                    widths[part] = math.prod(spec.shape[1:]) * spec.dtype.itemsize
                else:
                    total += len(members) * spec.nbytes
            for member in members if widths else []:
                lengths = self._held_lengths(stack, member)
                total += sum(lengths[part] * width for part, width in widths.items())
        return total

    def _held_lengths(self, stack: PackedStack, number: int) -> Mapping[str, int]:
        """Of the variable-length parts of one matrix, as they are held."""
        group = self._codecs[stack.prefix]
        codec, row = group.expert(number), group.row(number)
        names = {part: group.part_name(number, part) for part in codec.ragged}
        lengths = {part: stack.lengths[name][row] for part, name in names.items()}

        def read(part: str, count: int) -> np.ndarray:
            begin, taken = sum(stack.lengths[names[part]][:row]), min(count, lengths[part])
            part_bytes = self._tensor(stack, names[part])
            return part_bytes.words(begin, (1, taken), (taken, 1)).reshape(taken)

        with naming(self.place(stack, number)):
            return codec.held_lengths(PartBegins(lengths, read), stack.stacked[1:])

    def parts(self, stack: PackedStack) -> list[FileTensor]:
        """All tensors of a stack on disk."""
        return self._parts[stack.prefix]

    def _tensor(self, stack: PackedStack, part: str) -> FileTensor:
        return self._store.tensors[f"{stack.prefix}.{part}"]

    def _row(self, stack: PackedStack, part: str, number: int) -> torch.Tensor:
        return self._read(self._tensor(stack, part), slice(number, number + 1))[0]

    def _take(
        self,
        stack: PackedStack,
        head: str,
        codec: GroupCodec,
        number: int,
        lengths: Lengths,
    ) -> Mapping[str, torch.Tensor]:
        """The parts of one matrix, or of one base; head: what their names begin with."""

        def read(part: str, rows: slice) -> torch.Tensor:
            return self._read(self._tensor(stack, f"{head}{part}"), rows)

        _, out, width = stack.stacked
        return codec.take(number, read, (out, width), Dtype[stack.dtype], lengths)

    def _base_on(
        self, stack: PackedStack, number: int, device: torch.device | str, dtype: torch.dtype
    ) -> torch.Tensor:
        """The base on a device; the last few are kept there."""
        form, which = self._base_forms[stack.prefix], stack.base_of(number)
        key = f"{stack.prefix if form else stack.stacked[1:]}#{which}#{dtype}@{device}"
        with self._lock:
            if key not in self._bases:
                self._bases[key] = self.made_base(stack, which, device, dtype)
                while len(self._bases) > KEPT_BASES:
                    self._bases.popitem(last=False)
            self._bases.move_to_end(key)
            return self._bases[key]

    def made_base(
        self, stack: PackedStack, which: int, device: torch.device | str, dtype: torch.dtype
    ) -> torch.Tensor:
        """The base `[out, in]` of that number, rounded once, to `dtype`; zeros where there is none.

        Raises CheckpointError if a file cannot be read, CodecError if a part is damaged.
        """
        form = self._base_forms[stack.prefix]
        shape, stored = stack.stacked[1:], Dtype[stack.dtype].torch
        if form is not None and not form.is_coded:
            rows = slice(None) if form.count is None else slice(which, which + 1)
            base = self._read(self._tensor(stack, "base"), rows).reshape(shape)
            return sent(base, torch.device(device)).to(dtype)
        if form is None:
            return torch.zeros(shape, dtype=dtype, device=device)
        where = form.stacked.device_of(device)
        zeros = torch.zeros(shape, dtype=stored, device=where)
        context = EncodeContext(stored, stack.base_seed(self.seed, which))
        parts = self._take(stack, "base.", form.stacked, which, form.lengths or {})
        with naming(f"{self._store.path}: {stack.prefix}.base"):
            there = _sent(form.codec, parts, shape, where)
            return form.codec.unpack_as(dtype, there, zeros, context).to(device)

    def _check(self, stack: PackedStack) -> None:
        """Take the codecs of a stack whose parts on disk are exactly those that they write."""
        where = f"{self._store.path}: {stack.title}"
        try:
            codec, form = stack.group_codec(), stack.base_form()
        except CodecError as error:
            raise CheckpointError(f"{where}: {error}") from error
        shape, dtype = stack.stacked[1:], Dtype.__members__.get(stack.dtype)
        fits = dtype is not None and codec.fits(stack.lengths, shape, dtype)
        if fits and dtype is not None and form is not None:
            fits = form.fits(shape, dtype) and not (codec.keeps and form.is_coded)
        if dtype is None or not fits or not codec.settled:
            raise CheckpointError(f"{where}: the manifest is malformed; copy the directory again")
        for part, spec in packed_parts(
            codec,
            stack.stacked,
            dtype,
            base=form,
            biases=stack.has_biases,
            lengths=stack.lengths,
        ).items():
            tensor = self._store.tensors.get(f"{stack.prefix}.{part}")
            if tensor is None or tensor.spec != spec:
                raise CheckpointError(
                    f"{where}: the part {part!r} is missing or not what {codec.label!r} writes; "
                    "copy the directory again"
                )
            self._parts.setdefault(stack.prefix, []).append(tensor)
        self._codecs[stack.prefix], self._base_forms[stack.prefix] = codec, form


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Let the CodecError of a block, which decodes what lies at `place`, say so."""
    try:
        yield
    except CodecError as error:
        raise CodecError(f"{place}: {error}") from error


def _sent(
    codec: Codec, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], device: torch.device
) -> Mapping[str, torch.Tensor]:
    """Parts of a matrix that are read, on a device. Raises CodecError for damage of which it is not
    asked there."""
    if device.type == "cpu":
        return parts
    codec.check(parts, shape)
    return {name: sent(part, device) for name, part in parts.items()}
