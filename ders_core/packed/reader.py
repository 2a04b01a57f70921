"""`PackedCheckpoint`: reads a packed checkpoint as if it were the original.

Tensors are asked for by their original names; an expert's weight is synthesized on the way,
Ŵ_i = W_base + F(Δ_i), and put where it lay: alone, or in a tensor that holds many.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint.axes import EXPERT
from ders_core.checkpoint.checkpoint import numbers_dtype
from ders_core.checkpoint.quantized import Scheme, declared, detect
from ders_core.codecs import EncodeContext
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.group import GroupCodec, packed_parts
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.address import as_local
from ders_core.files.checksum import checksum
from ders_core.files.header import TensorInfo
from ders_core.files.spec import DTYPES, TensorSpec
from ders_core.files.store import TensorStore, read_json
from ders_core.files.writer import json_text
from ders_core.packed.manifest import MANIFEST, QUANT_METHOD, Manifest, PackedGroup
from ders_core.packed.reassembly import Assembled, Member, assemble, scheme_class

KEPT_BASES = 3
"""gate, up and down of one layer: checkpoints list an expert's projections side by side."""


def is_packed(path: str | Path) -> bool:
    """Whether a directory is a packed DeRS checkpoint."""
    directory = as_local(path)
    if (directory / MANIFEST).is_file():
        return True
    if not (directory / "config.json").is_file():
        return False
    quantization = read_json(directory / "config.json").get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


class PackedCheckpoint:
    """A packed checkpoint. Opening it reads headers and the manifest.

    Raises CheckpointError if it is damaged or its parts do not fit the manifest.
    """

    def __init__(self, path: str | Path) -> None:
        self.store = TensorStore.open(as_local(path))
        self.manifest = Manifest.read(self.store.path)
        self._seed = int(self.manifest.recipe.get("seed", 0))
        self._parts: dict[str, list[TensorInfo]] = {}
        groups = self.manifest.groups
        self._codecs = {group.prefix: self._check(group) for group in groups}
        self.assembled = assemble(groups, self.path / MANIFEST)
        """The original tensors that do not lie on disk as they were."""
        self._check_cover()
        self._scheme = self._find_scheme()
        infos = self._original_infos() if self._scheme else {}
        weights = self._scheme.weights(infos) if self._scheme else {}
        self._coded = {weight.codes.name: weight for weight in weights.values()}
        for name, packed in self.assembled.items():
            packed.coded = self._coded.get(name)
        self._bases: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()  # transformers reads from several threads

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def config(self) -> dict[str, Any]:
        """The original's config."""
        own = dict(self.store.config)
        original = own.pop("quantization_config", {}).get("original")
        return own | {"quantization_config": original} if original else own

    @property
    def config_text(self) -> str:
        """The original's config.json as it was; anew if it was changed since, or was not kept."""
        text = self.manifest.source.config
        try:
            same = text is not None and json.loads(text) == self.config
        except (ValueError, RecursionError):
            same = False
        return text if same and text is not None else json_text(self.config)

    @property
    def bytes_total(self) -> int:
        """Bytes of the packed weight files."""
        return self.store.bytes_total

    def names(self) -> list[str]:
        """The original tensors' names, in the order in which they lay on disk."""
        return [name for names in self.manifest.source.files.values() for name in names]

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of an original tensor."""
        packed = self.assembled.get(name)
        return packed.spec if packed is not None else self._info(name).spec

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """An original tensor as it lay on disk, synthesized if experts are in it."""
        packed = self.assembled.get(name)
        if packed is None:
            return self._info(name).read().to(device)
        if packed.coded is not None:
            return torch.cat(list(self.pieces(name, device))).view(packed.spec.shape)
        return self._whole(packed, device)

    def pieces(self, name: str, device: torch.device | str = "cpu") -> Iterator[torch.Tensor]:
        """The same tensor's elements in order, as flat pieces: one expert's at a time where a
        tensor holds many, so that no whole one need be in memory."""
        packed = self.assembled.get(name)
        if packed is None:
            yield self._info(name).read().flatten()
            return
        for number in range(packed.pieces):
            yield self.piece(packed, number, device)

    def piece(
        self, packed: Assembled, number: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """One of the equal pieces `[n]` of an assembled tensor."""
        one = packed.pieces > 1
        flat = self._one(packed, number, device) if one else self._whole(packed, device)
        if packed.coded is not None:
            flat = packed.coded.quantize(flat.view(packed.numbers.shape[-2:]), number)
        return flat.flatten()

    def model_names(self) -> dict[str, str]:
        """Name on disk -> name in a model whose weights are plain numbers; scales are left out."""
        if self._scheme is None:
            return {name: name for name in self.names()}
        return self._scheme.dequantized_names(self._original_infos())

    def numbers(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """What an original tensor means, for a model whose weights are plain numbers."""
        packed = self.assembled.get(name)
        if packed is not None and packed.coded is not None:
            whole = self._whole(packed, device)
        elif packed is None and name in self._coded:
            coded = self._coded[name]
            read = [coded.read(expert, device=device) for expert in range(coded.experts)]
            whole = torch.stack(read).to(self._numbers_dtype).view(coded.shape)
        else:
            return self.read(name, device)
        turned = self._scheme is not None and self._scheme.turned and whole.dim() == 3
        return whole.mT.contiguous() if turned else whole

    def numbers_spec(self, name: str) -> TensorSpec:
        """Dtype and shape of what `numbers` gives."""
        packed, coded = self.assembled.get(name), self._coded.get(name)
        if packed is not None:
            spec = packed.numbers
        elif coded is not None:
            spec = TensorSpec(self._numbers_dtype, coded.shape)
        else:
            return self.spec(name)
        *before, out, width = spec.shape
        turned = coded is not None and self._scheme is not None and self._scheme.turned and before
        return TensorSpec(spec.dtype, (*before, width, out)) if turned else spec

    def _whole(self, packed: Assembled, device: torch.device | str) -> torch.Tensor:
        """All numbers of an original tensor, in their shape."""
        member = packed.members[0]
        if len(packed.members) == 1 and member.slot.rows_are_whole:
            return self.member(member, device).reshape(packed.numbers.shape)
        spec = packed.numbers
        flat = torch.empty(math.prod(spec.shape), dtype=spec.dtype, device=device)
        for member in packed.members:
            member.slot.view(flat).copy_(self.member(member, device))
        return flat.view(spec.shape)

    def _one(self, packed: Assembled, expert: int, device: torch.device | str) -> torch.Tensor:
        """The numbers `[n]` of one expert in a tensor whose slowest axis counts them."""
        sizes = packed.members[0].slot.sizes
        count = math.prod(packed.numbers.shape) // sizes[EXPERT]
        flat = torch.empty(count, dtype=packed.numbers.dtype, device=device)
        for member in packed.by_piece[expert]:
            place = replace(member.slot, sizes={**sizes, EXPERT: 1}, expert=0)
            place.view(flat).copy_(self.member(member, device))
        return flat

    def weight(
        self, group: PackedGroup, expert: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Ŵ_i `[out, in]` of one expert, in the group's dtype."""
        codec, dtype = self._codecs[group.prefix], DTYPES[group.dtype]
        if codec.keeps:
            return self._row(group, "weight", expert).to(device)

        def read(part: str, rows: slice) -> torch.Tensor:
            return self._info(f"{group.prefix}.{part}").read(rows).to(device)

        shape = (group.shape[1], group.shape[2])
        parts = codec.take(expert, read, shape, dtype, group.lengths)
        seed = expert_seed(self._seed, group.layer, group.projection, expert)
        base = self._base(group, expert, device)
        return codec.expert(expert).unpack(parts, base, EncodeContext(dtype, seed))

    def base(self, group: PackedGroup, expert: int = 0) -> torch.Tensor | None:
        """The base `[out, in]` of one expert, in the group's dtype; None with the codec `keep`."""
        info = self.store.tensors.get(f"{group.prefix}.base")
        if info is None:
            return None
        number = slice(group.bases[expert], group.bases[expert] + 1) if group.bases else None
        return info.read(number).reshape(group.shape[1:])

    def parts(self, group: PackedGroup) -> list[TensorInfo]:
        """All that lies on disk of a group."""
        return self._parts[group.prefix]

    def biases(self, group: PackedGroup) -> torch.Tensor:
        """`[experts, out]`, in the group's dtype."""
        return self._info(f"{group.prefix}.bias").read()

    def member(self, member: Member, device: torch.device | str = "cpu") -> torch.Tensor:
        """Ŵ_i `[out, in]`, or the bias `[out, 1]`, that lies in an assembled tensor."""
        if member.bias:
            return self._row(member.group, "bias", member.expert).to(device).unsqueeze(1)
        return self.weight(member.group, member.expert, device)

    def _row(self, group: PackedGroup, part: str, expert: int) -> torch.Tensor:
        only = slice(expert, expert + 1)
        return self._info(f"{group.prefix}.{part}").read(only)[0]

    def _base(self, group: PackedGroup, expert: int, device: torch.device | str) -> torch.Tensor:
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

    def _info(self, name: str) -> TensorInfo:
        info = self.store.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        return info

    def _check(self, group: PackedGroup) -> GroupCodec:
        """The group's codec, if the parts on disk are exactly what it would have written."""
        where = f"{self.path}: layer {group.layer}, {group.projection}"
        try:
            codec = group.group_codec()
        except CodecError as error:
            raise CheckpointError(f"{where}: {error}") from error
        dtype = DTYPES.get(group.dtype)
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
            info = self.store.tensors.get(f"{group.prefix}.{part}")
            if info is None or info.spec != spec:
                raise CheckpointError(
                    f"{where}: the part {part!r} is missing or not what {codec.label!r} writes; "
                    "copy the directory again"
                )
            self._parts.setdefault(group.prefix, []).append(info)
        return codec

    def _find_scheme(self) -> Scheme | None:
        """The scheme of the original's codes; the original's config says how it is set."""
        stored = {group.stored for group in self.manifest.groups if group.stored}
        if not stored:
            return detect(self.config, self._original_infos())
        quantization = declared(self.config)
        return scheme_class(min(stored)).of(
            {**quantization, "quant_method": quantization.get("quant_method")}
        )

    def _original_infos(self) -> dict[str, TensorInfo]:
        """The original's tensors as its headers told them; what is packed has no place on disk."""
        infos = {}
        for name in self.names():
            spec = self.spec(name)
            info = self.store.tensors.get(name)
            infos[name] = info or TensorInfo(
                name, spec.dtype, spec.shape, self.path / MANIFEST, 0, spec.nbytes
            )
        return infos

    @property
    def _numbers_dtype(self) -> torch.dtype:
        return numbers_dtype(self.config)

    def _check_cover(self) -> None:
        for name in self.names():
            if name not in self.assembled and name not in self.store.tensors:
                raise CheckpointError(
                    f"{self.path} lacks the tensor {name!r}; copy the directory again"
                )


def checksum_problems(checkpoint: PackedCheckpoint, step: Callable[[int, str], None]) -> list[str]:
    """What differs from the manifest's checksums, as sentences. `step(bytes, message)` is called
    for each tensor read."""
    problems = []
    promised = checkpoint.manifest.checksums
    for name, info in checkpoint.store.tensors.items():
        if name not in promised:
            problems.append(f"{info.file.name} holds {name!r}, which the manifest does not know")
        elif checksum(info) != promised[name]:
            problems.append(f"{info.file.name}: {name!r} is damaged (its checksum differs)")
        step(info.nbytes, f"checksums of {info.file.name}")
    for name in sorted(promised.keys() - checkpoint.store.tensors.keys()):
        problems.append(f"the manifest knows {name!r}, but no file holds it")
    return problems
