"""`Checkpoint`: an MoE model directory, opened by its headers and read one slice at a time."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint.grouping import WEIGHT_DTYPES, Quantized, gather
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.layouts import LAYOUT_FILE, Layout
from ders_core.checkpoint.quantized import Scheme, detect
from ders_core.checkpoint.quantized.detect import OURS
from ders_core.checkpoint.recognise import (
    Recognition,
    declared_experts,
    declared_top_k,
    recognise,
    walk,
)
from ders_core.errors import CheckpointError
from ders_core.files.header import TensorInfo
from ders_core.files.store import TensorStore

PACKED_READER = "ders_core.packed.original"
"""The module whose `open_original` gives a packed checkpoint's tensors as those of its original."""


class Checkpoint:
    """An MoE checkpoint in a directory, local or at an address. Opening it reads headers only.

    A packed one is read as the original that it stands for; its experts are synthesized on the way.
    Raises CheckpointError if the directory is no checkpoint, is damaged, or holds nothing that
    looks like experts.
    """

    def __init__(self, path: str | Path) -> None:
        self.place = str(path)
        """As it was given: a path, or an address that may hold credentials."""
        self.store = _open(path)
        self.scheme: Scheme | None = detect(self.config, self.tensors)
        weights = self.scheme.weights(self.tensors) if self.scheme else {}
        coded = Quantized(
            {own.codes.name: own for own in weights.values()}, numbers_dtype(self.config)
        )
        shaped = coded.shaped(self.tensors)
        found = recognise(self.path, self.config, shaped)
        if found is None:
            raise CheckpointError(
                f"{self.path} holds no experts that can be recognised "
                f"(model_type {self.config.get('model_type', 'unknown')!r}); DeRS needs a "
                f"Mixture-of-Experts checkpoint, or a {LAYOUT_FILE} beside its config.json that "
                "says where the experts are"
            )
        self.recognition: Recognition = found
        declared = declared_experts(self.config)
        known = min(declared) if len(declared) == 1 else None
        groups = gather(self.layout, shaped, known, coded)
        self._groups = {group.key: group for group in groups}
        self._check_config(declared)

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def config(self) -> dict[str, Any]:
        return self.store.config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.store.tensors

    @property
    def layout(self) -> Layout:
        return self.recognition.layout

    @property
    def family(self) -> str:
        return self.recognition.family

    @property
    def identity(self) -> str:
        """Hex name of the content; see `TensorStore.identity`."""
        return self.store.identity

    @property
    def num_layers(self) -> int:
        """All layers, MoE or not."""
        declared = self.config.get("num_hidden_layers", self.config.get("n_layer"))  # GPT-2's name
        deepest = max(self.moe_layers) + 1
        return max(declared, deepest) if isinstance(declared, int) else deepest

    @cached_property
    def moe_layers(self) -> list[int]:
        return sorted({layer for layer, _ in self._groups})

    @cached_property
    def blocks(self) -> list[Block]:
        """The MoE blocks, by layer."""
        return list(dict.fromkeys(group.block for group in self.groups()))

    @cached_property
    def stacks(self) -> dict[str, list[int]]:
        """Where the blocks of each stack lie (`*` for the layer's own number), and the layers'
        numbers here: stacks, such as an encoder and a decoder, are counted one after another."""
        found: dict[str, list[int]] = {}
        for block in self.blocks:
            numbered = re.sub(rf"\b{block.layer}\b", "*", block.name, count=1)
            where = numbered + (f", run {block.run}" if block.run else "")
            layers = found.setdefault(where, [])
            if block.index not in layers:
                layers.append(block.index)
        return found

    @property
    def num_experts(self) -> int:
        """Experts per MoE layer (the most, where layers differ)."""
        return max(group.shape[0] for group in self.groups())

    @property
    def top_k(self) -> int | None:
        """How many experts a token goes to, where config.json says it."""
        return declared_top_k(self.config)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of most expert weights."""
        return Counter(group.dtype for group in self.groups()).most_common(1)[0][0]

    @property
    def bytes_total(self) -> int:
        """Bytes of the weight files; of a packed checkpoint, those that it stands for."""
        return self.store.bytes_total

    @property
    def packed_bytes(self) -> int | None:
        """Bytes of the weight files as they lie on disk, if they are packed."""
        return self.store.packed_bytes

    @property
    def bytes_experts(self) -> int:
        return sum(group.nbytes for group in self.groups())

    @property
    def expert_share(self) -> float:
        """Share of all weight bytes that the routed experts take."""
        return self.bytes_experts / self.bytes_total

    def groups(self, extended: bool = False) -> list[ExpertGroup]:
        """Every expert group, by layer and then gate, up, down.

        extended: with the always-on expert as one more, where its shape allows (extended DeRS).
        """
        groups = list(self._groups.values())
        return [group.with_shared() for group in groups] if extended else groups

    def group(self, layer: int, projection: str, extended: bool = False) -> ExpertGroup:
        found = self._groups.get((layer, projection))
        if found is None:
            raise CheckpointError(
                f"{self.path.name} has no experts at layer {layer}, {projection}; its MoE layers "
                f"are {', '.join(map(str, self.moe_layers))}"
            )
        return found.with_shared() if extended else found

    def other_tensors(self) -> list[TensorInfo]:
        """Everything that is not a routed expert's weight, in the order it lies on disk."""
        experts = {name for group in self.groups() for name in group.sources}
        return [
            self.tensors[name]
            for names in self.store.files.values()
            for name in names
            if name not in experts
        ]

    def shared_expert(self, layer: int) -> list[TensorInfo]:
        """The always-on expert's tensors of a layer, if it has one."""
        own = [group for group in self.groups() if group.layer == layer]
        found = [
            matrix.info
            for group in own
            for matrix in (group.shared, group.shared_bias)
            if matrix is not None
        ]
        return list({info.name: info for info in found}.values())

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """One tensor by its name on disk, in its storage dtype."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path.name} has no tensor {name!r}")
        return self.tensors[name].read(rows)

    def side_files(self) -> list[Path]:
        return self.store.side_files()

    def _check_config(self, declared: Mapping[int, str]) -> None:
        """The tensors are the truth; a config that contradicts them belongs to another model."""
        for group in self.groups():
            if declared and group.block.run == 0 and group.shape[0] not in declared:
                said = min(declared)
                raise CheckpointError(
                    f"config.json says {declared[said]} = {said}, but the weights of "
                    f"layer {group.layer} hold {group.shape[0]} experts; the checkpoint is "
                    "incomplete or its config belongs to another one"
                )


def _open(path: str | Path) -> TensorStore:
    store = TensorStore.open(path)
    quantization = store.config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != OURS:
        return store
    # by name and late: what unpacks stands above this room, and no caller has to know of it
    original: TensorStore = importlib.import_module(PACKED_READER).open_original(path)
    return original


def numbers_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that quantized weights are read as: the config's, where it is one for weights."""
    said = next((value for key, value in walk(config) if key in ("dtype", "torch_dtype")), None)
    found = getattr(torch, said, None) if isinstance(said, str) else None
    return found if found in WEIGHT_DTYPES else torch.bfloat16
