"""The tensors of the original, read out of a packed checkpoint under their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ders_core.checkpoint.quantized import QuantizedWeight, Scheme, declared, detect
from ders_core.errors import CheckpointError
from ders_core.files.spec import TensorSpec
from ders_core.files.store import TensorStore
from ders_core.files.tensor import TensorReader
from ders_core.later import torch
from ders_core.packed.assembler import Assembler
from ders_core.packed.manifest import Manifest
from ders_core.packed.matrices import PackedMatrices
from ders_core.packed.names import MANIFEST
from ders_core.packed.reassembly import assemble, find_scheme
from ders_core.packed.synthesized import Synthesis, SynthesizedTensor


class OriginalTensors:
    """The original's tensors, in the order in which its files held them.

    store: the packed tensors. config: the original's. Raises CheckpointError if a tensor is
    missing, or the packed groups do not make every tensor that they should.
    """

    def __init__(
        self,
        store: TensorStore,
        manifest: Manifest,
        matrices: PackedMatrices,
        config: Mapping[str, Any],
    ) -> None:
        self._store = store
        coded: dict[str, QuantizedWeight] = {}
        assembled = assemble(manifest.stacks, store.path / MANIFEST)
        self.assembler = Assembler(matrices, assembled, coded)
        synthesis = Synthesis(self.assembler)
        self.readers: dict[str, TensorReader] = {}
        """Every tensor by its name, to be read in parts."""
        for name in (name for names in manifest.source.files.values() for name in names):
            if name in assembled:
                self.readers[name] = SynthesizedTensor(name, assembled[name].spec, synthesis)
            elif name in store.tensors:
                self.readers[name] = store.tensors[name]
            else:
                raise CheckpointError(
                    f"{store.path} lacks the tensor {name!r}; copy the directory again"
                )
        self.scheme = _scheme(manifest, config, self.readers)
        """How the original stores weights as codes; None if they are plain numbers."""
        weights = self.scheme.weights(self.readers) if self.scheme else {}
        coded |= {weight.codes.name: weight for weight in weights.values()}

    def names(self) -> list[str]:
        return list(self.readers)

    def carried(self) -> dict[str, TensorReader]:
        """The tensors that the packed files hold as they were, by name."""
        assembled = self.assembler.tensors
        return {name: reader for name, reader in self.readers.items() if name not in assembled}

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape. Raises CheckpointError if there is no such tensor."""
        return self._reader(name).spec

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """A tensor as the original stores it.

        Raises CheckpointError if there is no such tensor or a file cannot be read, CodecError if a
        part is damaged.
        """
        reader, assembled = self._reader(name), self.assembler.tensors.get(name)
        if assembled is None:
            return reader.read().to(device)
        if assembled.is_coded:
            return torch.cat(list(self.pieces(name, device))).view(reader.shape)
        return self.assembler.numbers(name, device)

    def pieces(self, name: str, device: torch.device | str = "cpu") -> Iterator[torch.Tensor]:
        """The same elements in order, as flat pieces: of a tensor that holds many experts one
        expert's at a time, so that the tensor need not fit in memory."""
        if name in self.assembler.tensors:
            yield from self.assembler.pieces(name, device)
        else:
            yield self._reader(name).read().flatten()

    def _reader(self, name: str) -> TensorReader:
        if name not in self.readers:
            raise CheckpointError(f"{self._store.path} has no tensor {name!r}")
        return self.readers[name]


def _scheme(
    manifest: Manifest, config: Mapping[str, Any], readers: Mapping[str, TensorReader]
) -> Scheme | None:
    """The scheme that the packed groups name, with the settings of the original's config; or the
    one of the tensors that were not packed."""
    names = {group.stored for group in manifest.groups if group.stored}
    if not names:
        return detect(config, readers)
    quantization = declared(config)
    settings = {**quantization, "quant_method": quantization.get("quant_method")}
    return find_scheme(min(names)).of(settings)
