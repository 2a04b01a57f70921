"""A dense model that can be upcycled: where its FFNs are and how large, read from headers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ders_core.checkpoint import recognise
from ders_core.checkpoint.dense import DenseFFN, dense_ffns
from ders_core.errors import CheckpointError
from ders_core.files.address import as_local
from ders_core.files.store import TensorStore
from ders_core.packed.open import is_packed

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "stablelm",
)
"""The model types whose forward pass is known to stay right with MoE blocks."""


@dataclass(frozen=True)
class DenseModel:
    """A dense causal language model on disk; only headers have been read."""

    store: TensorStore
    ffns: tuple[DenseFFN, ...]
    """By layer."""

    @classmethod
    def open(cls, path: str | Path) -> DenseModel:
        """Raises CheckpointError if the directory is not a dense model of a known family."""
        store = TensorStore.open(as_local(path))
        family = store.config.get("model_type")
        packed = is_packed(store.path)
        if packed or recognise(store.path, store.config, store.specs) is not None:
            more = "; to train further deltas on it, use --continue" if packed else ""
            raise CheckpointError(
                f"{store.path} is a Mixture-of-Experts already; give a dense model{more}"
            )
        if family not in FAMILIES:
            raise CheckpointError(
                f"{store.path} is of the family {family!r}, which cannot be upcycled yet; "
                f"known are {', '.join(FAMILIES)}"
            )
        if store.config.get("quantization_config"):
            raise CheckpointError(
                f"{store.path} is quantized; give the bfloat16, float16 or float32 original"
            )
        ffns = tuple(sorted(dense_ffns(store.specs), key=lambda ffn: ffn.layer))
        if [ffn.layer for ffn in ffns] != list(range(len(ffns))) or not ffns:
            raise CheckpointError(
                f"{store.path}: its FFNs are not those of a {family} model, one for each layer; "
                "the checkpoint is incomplete or its config belongs to another one"
            )
        return cls(store, ffns)

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def config(self) -> dict[str, Any]:
        return self.store.config

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def layers(self) -> int:
        return len(self.ffns)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.ffns[0].weights["up"].shape[1]

    @property
    def intermediate(self) -> int:
        """Width of the first FFN."""
        return self.ffns[0].weights["up"].shape[0]

    @cached_property
    def parameters(self) -> int:
        """Values of all tensors."""
        return sum(info.nbytes // info.dtype.itemsize for info in self.store.tensors.values())

    def bias_of(self, ffn: DenseFFN, projection: str) -> bool:
        """Whether a projection of a layer's FFN has a bias."""
        name = ffn.weights[projection].tensor
        return f"{name.removesuffix('.weight')}.bias" in self.store.tensors
