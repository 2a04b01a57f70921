"""The experts of a packed checkpoint: Ŵ_i = W_base + F(Δ_i), from the parts of their groups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from ders_core.codecs import EncodeContext
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.group import GroupCodec, packed_parts
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.dtype import Dtype
from ders_core.files.store import TensorStore
from ders_core.files.tensor import FileTensor
from ders_core.later import torch
from ders_core.packed.manifest import PackedGroup

KEPT_BASES = 3
"""gate, up and down of one layer: checkpoints list an expert's projections side by side."""


class PackedExperts:
    """Reads the groups of a packed checkpoint. Safe to use from several threads.

    store: the packed tensors. seed: the recipe's. Raises CheckpointError if a group's parts are not
    what its codec writes.
    """

    def __init__(self, store: TensorStore, groups: Iterable[PackedGroup], seed: int) -> None:
        self._store, self._seed = store, seed
        self._parts: dict[str, list[FileTensor]] = {}
        self._codecs = {group.prefix: self._check(group) for group in groups}
        self._bases: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()  # transformers reads from several threads

    def weight(
        self, group: PackedGroup, expert: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Ŵ_i `[out, in]` of one expert, in the group's dtype.

        Raises CheckpointError if a file cannot be read, CodecError if a part is damaged.
        """
        codec, dtype = self._codecs[group.prefix], Dtype[group.dtype]
        if codec.keeps:
            return self._row(group, "weight", expert).to(device)

        def read(part: str, rows: slice) -> torch.Tensor:
            return self._tensor(group, part).read(rows).to(device)

        shape = (group.shape[1], group.shape[2])
        parts = codec.take(expert, read, shape, dtype, group.lengths)
        seed = expert_seed(self._seed, group.layer, group.projection, expert)
        base = self._base_on(group, expert, device)
        return codec.expert(expert).unpack(parts, base, EncodeContext(dtype.torch, seed))

    def bias(self, group: PackedGroup, expert: int) -> torch.Tensor:
        """`[out]` of one expert, in the group's dtype."""
        return self._row(group, "bias", expert)

    def biases(self, group: PackedGroup) -> torch.Tensor:
        """`[experts, out]`, in the group's dtype."""
        return self._tensor(group, "bias").read()

    def base(self, group: PackedGroup, expert: int = 0) -> torch.Tensor | None:
        """The base `[out, in]` of one expert, in the group's dtype; None with the codec `keep`."""
        tensor = self._store.tensors.get(f"{group.prefix}.base")
        if tensor is None:
            return None
        number = slice(group.bases[expert], group.bases[expert] + 1) if group.bases else None
        return tensor.read(number).reshape(group.shape[1:])

    def is_lossless(self, group: PackedGroup) -> bool:
        """Whether every expert's codec keeps all bits."""
        return all(codec.lossless for codec in self._codecs[group.prefix].codecs)

    def parts(self, group: PackedGroup) -> list[FileTensor]:
        """All tensors of a group on disk."""
        return self._parts[group.prefix]

    def _tensor(self, group: PackedGroup, part: str) -> FileTensor:
        return self._store.tensors[f"{group.prefix}.{part}"]

    def _row(self, group: PackedGroup, part: str, expert: int) -> torch.Tensor:
        return self._tensor(group, part).read(slice(expert, expert + 1))[0]

    def _base_on(self, group: PackedGroup, expert: int, device: torch.device | str) -> torch.Tensor:
        """The base on a device; the last few are kept there."""
        number = group.bases[expert] if group.bases else 0
        key = f"{group.prefix}#{number}@{device}"
        with self._lock:
            if key not in self._bases:
                base = self.base(group, expert)
                assert base is not None, "a group without a base is not decoded"
                self._bases[key] = base.to(device)
                while len(self._bases) > KEPT_BASES:
                    self._bases.popitem(last=False)
            self._bases.move_to_end(key)
            return self._bases[key]

    def _check(self, group: PackedGroup) -> GroupCodec:
        """The group's codec, if the parts on disk are exactly those that it writes."""
        where = f"{self._store.path}: layer {group.layer}, {group.projection}"
        try:
            codec = group.group_codec()
        except CodecError as error:
            raise CheckpointError(f"{where}: {error}") from error
        dtype = Dtype.__members__.get(group.dtype)
        fits = dtype is not None and codec.fits(group.lengths, group.shape[1:], dtype)
        if dtype is None or not fits or not codec.settled:
            raise CheckpointError(f"{where}: the manifest is malformed; copy the directory again")
        bases = max(group.bases) + 1 if group.bases else None
        for part, spec in packed_parts(
            codec,
            group.shape,
            dtype,
            bases=bases,
            biases=bool(group.biases),
            lengths=group.lengths,
        ).items():
            tensor = self._store.tensors.get(f"{group.prefix}.{part}")
            if tensor is None or tensor.spec != spec:
                raise CheckpointError(
                    f"{where}: the part {part!r} is missing or not what {codec.label!r} writes; "
                    "copy the directory again"
                )
            self._parts.setdefault(group.prefix, []).append(tensor)
        return codec
