"""`Checkpoint`: an MoE model directory, opened by its headers and read one slice at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ders_core.checkpoint.header import NAMES, TensorInfo
from ders_core.checkpoint.layouts import PROJECTIONS, Layout, recognise
from ders_core.checkpoint.store import TensorStore
from ders_core.errors import CheckpointError

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class ExpertGroup:
    """The K experts' weights of one projection in one layer, as views: `[K, out, in]`."""

    layer: int
    projection: str
    experts: tuple[TensorInfo, ...]
    router: str | None

    @property
    def key(self) -> tuple[int, str]:
        return self.layer, self.projection

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, out, in)"""
        out, width = self.experts[0].shape
        return len(self.experts), out, width

    @property
    def dtype(self) -> torch.dtype:
        return self.experts[0].dtype

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.experts)

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors' names on disk, one per expert."""
        return tuple(info.name for info in self.experts)

    def read(self, expert: int | None = None, rows: slice | None = None) -> torch.Tensor:
        """`[K, rows, in]`, or `[rows, in]` of one expert, in the storage dtype."""
        if expert is not None:
            return self.experts[expert].read(rows)
        return torch.stack([info.read(rows) for info in self.experts])


class Checkpoint:
    """An MoE checkpoint in a local directory. Opening it reads headers only.

    Raises CheckpointError if the directory is no checkpoint, is damaged, is already packed, or
    holds no experts of a known layout.
    """

    def __init__(self, path: str | Path) -> None:
        self.store = TensorStore.open(path)
        quantization = self.config.get("quantization_config") or {}
        if isinstance(quantization, dict) and quantization.get("quant_method") == "ders":
            raise CheckpointError(
                f"{self.path} is already a packed DeRS checkpoint; "
                "bring it back to its original layout with `ders synthesize` first"
            )
        layout = recognise(self.tensors)
        if layout is None:
            raise CheckpointError(
                f"{self.path} has no experts that are known here "
                f"(model_type {self.config.get('model_type', 'unknown')!r}); DeRS needs a "
                "Mixture-of-Experts checkpoint in the Mixtral or Qwen2-MoE layout"
            )
        self.layout: Layout = layout
        self._groups = _gather(layout, self.tensors)
        self._check_config()

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
    def family(self) -> str:
        return self.layout.family

    @property
    def identity(self) -> str:
        """Hex name of the content; see `TensorStore.identity`."""
        return self.store.identity

    @property
    def num_layers(self) -> int:
        """All layers, MoE or not."""
        declared = self.config.get("num_hidden_layers")
        return declared if isinstance(declared, int) else max(self.moe_layers) + 1

    @cached_property
    def moe_layers(self) -> list[int]:
        return sorted({layer for layer, _ in self._groups})

    @property
    def num_experts(self) -> int:
        """Experts per MoE layer (the most, where layers differ)."""
        return max(group.shape[0] for group in self.groups())

    @property
    def top_k(self) -> int | None:
        value = self.config.get(self.layout.top_k_key)
        return value if isinstance(value, int) else None

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of most expert weights."""
        return Counter(group.dtype for group in self.groups()).most_common(1)[0][0]

    @property
    def bytes_total(self) -> int:
        return self.store.bytes_total

    @property
    def bytes_experts(self) -> int:
        return sum(group.nbytes for group in self.groups())

    @property
    def expert_share(self) -> float:
        """Share of all weight bytes that the routed experts take."""
        return self.bytes_experts / self.bytes_total

    def groups(self) -> list[ExpertGroup]:
        """Every expert group, by layer and then gate, up, down."""
        return list(self._groups.values())

    def group(self, layer: int, projection: str) -> ExpertGroup:
        found = self._groups.get((layer, projection))
        if found is None:
            raise CheckpointError(
                f"{self.path.name} has no experts at layer {layer}, {projection}; its MoE layers "
                f"are {', '.join(map(str, self.moe_layers))}"
            )
        return found

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
        """The always-on expert's tensors of a layer, if the family has one."""
        if self.layout.shared is None:
            return []
        prefix = f"{self.layout.block_of(layer)}.{self.layout.shared}"
        return [info for name, info in self.tensors.items() if name.startswith(prefix)]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """One tensor by its name on disk, in its storage dtype."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path.name} has no tensor {name!r}")
        return self.tensors[name].read(rows)

    def side_files(self) -> list[Path]:
        return self.store.side_files()

    def _check_config(self) -> None:
        declared = self.config.get(self.layout.experts_key)
        for group in self.groups():
            if isinstance(declared, int) and declared != group.shape[0]:
                raise CheckpointError(
                    f"config.json says {self.layout.experts_key} = {declared}, but the weights of "
                    f"layer {group.layer} hold {group.shape[0]} experts; the checkpoint is "
                    "incomplete or its config belongs to another one"
                )


def _gather(
    layout: Layout, tensors: Mapping[str, TensorInfo]
) -> dict[tuple[int, str], ExpertGroup]:
    found: dict[tuple[int, str], dict[int, TensorInfo]] = {}
    for name, info in tensors.items():
        place = layout.match(name)
        if place is not None:
            layer, projection, expert = place
            found.setdefault((layer, projection), {})[expert] = info
    layers = sorted({layer for layer, _ in found})
    keys = [(layer, projection) for layer in layers for projection in PROJECTIONS]
    groups = {key: _group(layout, key, found.get(key, {}), tensors) for key in keys}
    for (layer, projection), group in groups.items():
        most = max(groups[layer, other].shape[0] for other in PROJECTIONS)
        if group.shape[0] < most:
            raise CheckpointError(
                f"layer {layer}, {projection}: expert {group.shape[0]} is missing; "
                "a shard may be missing"
            )
    return groups


def _group(
    layout: Layout,
    key: tuple[int, str],
    experts: dict[int, TensorInfo],
    tensors: Mapping[str, TensorInfo],
) -> ExpertGroup:
    """Check that the experts are whole and alike, then make the group."""
    layer, projection = key
    where = f"layer {layer}, {projection}"
    if not experts:
        raise CheckpointError(f"{where}: all experts are missing; a shard may be missing")
    missing = next((index for index in range(len(experts)) if index not in experts), None)
    if missing is not None:
        raise CheckpointError(f"{where}: expert {missing} is missing; a shard may be missing")
    first = experts[0]
    if first.dtype not in WEIGHT_DTYPES:
        raise CheckpointError(
            f"{where}: the experts are stored as {NAMES[first.dtype]}, an already quantized form; "
            "give the bfloat16, float16 or float32 original"
        )
    if len(first.shape) != 2 or not all(first.shape):
        raise CheckpointError(
            f"{where}: expert 0 has shape {list(first.shape)}, not a matrix; the layout is not "
            f"{layout.family!r}"
        )
    for expert, info in sorted(experts.items()):
        if (info.shape, info.dtype) != (first.shape, first.dtype):
            raise CheckpointError(
                f"{where}: expert {expert} is {NAMES[info.dtype]} {list(info.shape)}, expert 0 "
                f"{NAMES[first.dtype]} {list(first.shape)}; the checkpoint is damaged or its "
                f"layout is not {layout.family!r}"
            )
    router = layout.router_of(layer)
    ordered = tuple(experts[index] for index in range(len(experts)))
    return ExpertGroup(layer, projection, ordered, router if router in tensors else None)
