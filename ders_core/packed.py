"""`PackedCheckpoint`: reads a packed checkpoint as if it were the original.

Tensors are asked for by their original names; an expert's weight is synthesized on the way,
Ŵ_i = W_base + F(Δ_i).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint import DTYPES, TensorInfo, TensorSpec, TensorStore
from ders_core.checkpoint.store import read_json
from ders_core.codecs import DeltaCodec, EncodeContext, make_codec
from ders_core.codecs.prng import expert_seed
from ders_core.decompose import combine
from ders_core.errors import CheckpointError, CodecError
from ders_core.manifest import MANIFEST, QUANT_METHOD, Manifest, PackedGroup

KEPT_BASES = 3
"""gate, up and down of one layer: checkpoints list an expert's projections side by side."""


def is_packed(path: str | Path) -> bool:
    """Whether a directory is a packed DeRS checkpoint."""
    directory = Path(path).expanduser()
    if (directory / MANIFEST).is_file():
        return True
    if not (directory / "config.json").is_file():
        return False
    quantization = read_json(directory / "config.json").get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def checksum(info: TensorInfo) -> str:
    """Hex SHA-256 of a tensor's bytes on disk."""
    digest = hashlib.sha256()
    for chunk in info.raw():
        digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Expert:
    group: PackedGroup
    codec: DeltaCodec
    index: int


class PackedCheckpoint:
    """A packed checkpoint. Opening it reads headers and the manifest.

    Raises CheckpointError if it is damaged or its parts do not fit the manifest.
    """

    def __init__(self, path: str | Path) -> None:
        self.store = TensorStore.open(path)
        self.manifest = Manifest.read(self.store.path)
        self._seed = int(self.manifest.recipe.get("seed", 0))
        self._experts: dict[str, _Expert] = {}
        for group in self.manifest.groups:
            codec = self._check(group)
            for index, name in enumerate(group.experts):
                self._experts[name] = _Expert(group, codec, index)
        missing = [
            name
            for name in self.names()
            if name not in self._experts and name not in self.store.tensors
        ]
        if missing:
            raise CheckpointError(
                f"{self.path} lacks the tensor {missing[0]!r}; copy the directory again"
            )
        self._bases: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()  # transformers reads from several threads

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def config(self) -> dict[str, Any]:
        """The original's config."""
        return {
            key: value for key, value in self.store.config.items() if key != "quantization_config"
        }

    @property
    def bytes_total(self) -> int:
        """Bytes of the packed weight files."""
        return self.store.bytes_total

    def names(self) -> list[str]:
        """The original tensors' names, in the order in which they lay on disk."""
        return [name for names in self.manifest.source.files.values() for name in names]

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of an original tensor."""
        expert = self._experts.get(name)
        if expert is not None:
            return TensorSpec(DTYPES[expert.group.dtype], expert.group.shape[1:])
        return self._info(name).spec

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """An original tensor, synthesized if it is an expert's, in its original dtype."""
        expert = self._experts.get(name)
        if expert is None:
            return self._info(name).read().to(device)
        group = expert.group
        seed = expert_seed(self._seed, group.layer, group.projection, expert.index)
        shape = (group.shape[1], group.shape[2])
        only = slice(expert.index, expert.index + 1)
        parts = {
            part: self._info(f"{group.prefix}.{part}").read(only)[0].to(device)
            for part in expert.codec.parts(shape, DTYPES[group.dtype])
        }
        context = EncodeContext(DTYPES[group.dtype], seed)
        delta = expert.codec.decode(parts, shape, context)
        return combine(self._base(group, device), delta)

    def base(self, group: PackedGroup) -> torch.Tensor:
        """W_base `[out, in]` of a group, in storage dtype."""
        return self._info(f"{group.prefix}.base").read()

    def _base(self, group: PackedGroup, device: torch.device | str) -> torch.Tensor:
        key = f"{group.prefix}@{device}"
        with self._lock:
            if key not in self._bases:
                self._bases[key] = self.base(group).to(device)
                while len(self._bases) > KEPT_BASES:
                    self._bases.popitem(last=False)
            self._bases.move_to_end(key)
            return self._bases[key]

    def _info(self, name: str) -> Any:
        info = self.store.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        return info

    def _check(self, group: PackedGroup) -> DeltaCodec:
        """The group's codec, if the parts on disk are exactly what it would have written."""
        where = f"{self.path}: layer {group.layer}, {group.projection}"
        try:
            codec = make_codec(group.codec)
        except CodecError as error:
            raise CheckpointError(f"{where}: {error}") from error
        dtype = DTYPES.get(group.dtype)
        if dtype is None or not codec.exact:
            raise CheckpointError(f"{where}: the manifest is malformed; copy the directory again")
        experts, out, width = group.shape
        wanted = {"base": TensorSpec(dtype, (out, width))} | {
            part: TensorSpec(spec.dtype, (experts, *spec.shape))
            for part, spec in codec.parts((out, width), dtype).items()
        }
        for part, spec in wanted.items():
            info = self.store.tensors.get(f"{group.prefix}.{part}")
            if info is None or info.spec != spec:
                raise CheckpointError(
                    f"{where}: the part {part!r} is missing or not what {codec.label!r} writes; "
                    "copy the directory again"
                )
        return codec


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
