"""`Checkpoint`: the experts of a store, recognised by its headers and read one slice at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ders_core.checkpoint.dense import dense_ffns
from ders_core.checkpoint.grouping import WEIGHT_DTYPES, CodedTensors, gather
from ders_core.checkpoint.groups import Block, ExpertGroup
from ders_core.checkpoint.layouts import LAYOUT_FILE, Layout
from ders_core.checkpoint.numbering import NumberedNames
from ders_core.checkpoint.others import OtherTensor, Surroundings, can_be_coded, other_tensor
from ders_core.checkpoint.quantized import Scheme, detect
from ders_core.checkpoint.recognition import (
    Recognition,
    declared_experts,
    declared_top_k,
    recognise,
    walk,
)
from ders_core.checkpoint.stacks import MatrixStack
from ders_core.errors import CheckpointError
from ders_core.files.address import is_file
from ders_core.files.dtype import Dtype
from ders_core.files.few_collections import few_collections
from ders_core.files.side_files import Beside
from ders_core.files.spec import TensorSpec
from ders_core.files.store import Store
from ders_core.files.tensor import TensorReader
from ders_core.later import torch


class Checkpoint:
    """An MoE checkpoint. `ders_core.packed.open.open_checkpoint` opens one by its path or address.

    store: its tensors, whether they are stored in files or synthesized from packed ones. Raises
    CheckpointError if they contradict the config, or if nothing looks like experts.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.scheme: Scheme | None = detect(self.config, self.tensors)
        weights = self.scheme.weights(self.tensors) if self.scheme else {}
        self._of_codes = {
            part.name for weight in weights.values() for part in (weight.codes, weight.scales)
        }
        coded = CodedTensors(
            {weight.codes.name: weight for weight in weights.values()}, numbers_dtype(self.config)
        )
        specs = coded.specs(self.tensors)
        names = NumberedNames.of(specs)
        recognition = recognise(self.path, self.config, specs, names)
        if recognition is None:
            raise CheckpointError(
                f"{self.path} holds no experts that can be recognised "
                f"(model_type {self.config.get('model_type', 'unknown')!r}{self._other(specs)}); "
                "DeRS needs a "
                f"Mixture-of-Experts checkpoint, or a {LAYOUT_FILE} next to its config.json that "
                "says where the experts are"
            )
        self.recognition: Recognition = recognition
        declared = declared_experts(self.config)
        known = min(declared) if len(declared) == 1 else None
        with few_collections():
            groups = gather(self.layout, self.tensors, known, coded, names)
        self._groups = {group.key: group for group in groups}
        self._check_config(declared)

    @property
    def place(self) -> str:
        """The path or address that was opened; an address may hold credentials."""
        return self.store.place

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def config(self) -> dict[str, Any]:
        return self.store.config

    @property
    def tensors(self) -> Mapping[str, TensorReader]:
        return self.store.tensors

    @property
    def layout(self) -> Layout:
        return self.recognition.layout

    @property
    def family(self) -> str:
        return self.recognition.family

    @property
    def identity(self) -> str:
        """Hex name of the content; see `Store.identity`."""
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
        """Name of each stack's blocks (`*` for the layer's number) -> the indices of its layers.

        Stacks, such as an encoder and a decoder, are counted one after another.
        """
        stacks: dict[str, list[int]] = {}
        for block in self.blocks:
            pattern = re.sub(rf"\b{block.layer}\b", "*", block.name, count=1)
            layers = stacks.setdefault(pattern + (f", run {block.run}" if block.run else ""), [])
            if block.index not in layers:
                layers.append(block.index)
        return stacks

    @cached_property
    def num_experts(self) -> int:
        """Experts per MoE layer (the most, where layers differ)."""
        return max(group.shape[0] for group in self.groups())

    @property
    def top_k(self) -> int | None:
        """How many experts a token goes to, if config.json says it."""
        return declared_top_k(self.config)

    @cached_property
    def dtype(self) -> Dtype:
        """The dtype of most expert weights."""
        return Counter(group.dtype for group in self.groups()).most_common(1)[0][0]

    @property
    def bytes_total(self) -> int:
        """Bytes of the weight files; of a packed checkpoint, those of its original."""
        return self.store.bytes_total

    @property
    def packed_bytes(self) -> int | None:
        """Bytes of the packed weight files, if the checkpoint is packed."""
        return self.store.packed_bytes

    @cached_property
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
        """Raises CheckpointError if there is no such group."""
        group = self._groups.get((layer, projection))
        if group is None:
            raise CheckpointError(
                f"{self.path.name} has no experts at layer {layer}, {projection}; its MoE layers "
                f"are {', '.join(map(str, self.moe_layers))}"
            )
        return group.with_shared() if extended else group

    def other_tensors(self) -> list[TensorReader]:
        """Every tensor that holds no routed expert, in the order of the files."""
        experts = {name for group in self.groups() for name in group.sources}
        return [
            self.tensors[name]
            for names in self.store.files.values()
            for name in names
            if name not in experts
        ]

    @cached_property
    def others(self) -> Mapping[str, OtherTensor]:
        """The tensors outside the experts that a codec can take, by name, in the order of the
        files; codes and their scales are none."""
        shared = [
            matrix.info.name
            for group in self.groups()
            for matrix in (group.shared, group.shared_bias)
            if matrix is not None
        ]
        infos = [info for info in self.other_tensors() if info.name not in self._of_codes]
        ffns = dense_ffns({info.name: info.spec for info in infos})
        names = [weight.tensor for ffn in ffns for weight in ffn.weights.values()]
        around = Surroundings.of(self.blocks, shared, names, self.layout.kinds)
        return {info.name: other_tensor(info, around) for info in infos if can_be_coded(info)}

    def stack(self, key: tuple[int, str] | str, extended: bool = False) -> MatrixStack:
        """What is encoded as one: a group by its layer and projection, another tensor by its name.

        extended: as of `groups`. Raises CheckpointError if there is none.
        """
        if not isinstance(key, str):
            return self.group(*key, extended)
        if key not in self.others:
            raise CheckpointError(f"{self.path.name} has no tensor {key!r} that a codec can take")
        return self.others[key]

    def shared_expert(self, layer: int) -> list[TensorReader]:
        """The always-on expert's tensors of a layer, if it has one."""
        tensors = [
            matrix.info
            for group in self.groups()
            if group.layer == layer
            for matrix in (group.shared, group.shared_bias)
            if matrix is not None
        ]
        return list({tensor.name: tensor for tensor in tensors}.values())

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """One tensor by its name, in its storage dtype. Raises CheckpointError if there is none."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path.name} has no tensor {name!r}")
        return self.tensors[name].read(rows)

    @property
    def beside(self) -> Beside:
        return self.store.beside

    def _other(self, specs: Mapping[str, TensorSpec]) -> str:
        """What a model without experts is, where that can be seen."""
        if is_file(self.path / "modules.json"):
            return ", a sentence-transformers model"
        if dense_ffns(specs):
            return ", a dense model: `ders upcycle` makes an MoE of one"
        return ""

    def _check_config(self, declared: Mapping[int, str]) -> None:
        """The tensors are the truth; a config that contradicts them belongs to another model."""
        for group in self.groups():
            if declared and group.block.run == 0 and group.shape[0] not in declared:
                number = min(declared)
                raise CheckpointError(
                    f"config.json says {declared[number]} = {number}, but the weights of "
                    f"layer {group.layer} hold {group.shape[0]} experts; the checkpoint is "
                    "incomplete or its config belongs to another one"
                )


def numbers_dtype(config: Mapping[str, Any]) -> Dtype:
    """The dtype in which quantized weights are read: the config's if weights can have it, else
    bfloat16."""
    names = (value for key, value in walk(config) if key in ("dtype", "torch_dtype"))
    name = next(names, None)
    return next((dtype for dtype in WEIGHT_DTYPES if dtype.value == name), Dtype.BF16)
