"""Make the golden packed checkpoints: `python tests/golden/make.py` from the repository's root.

They were made once, by format version 1, and are read for ever: run this only to add a codec or a
format version, and never overwrite a directory that was released. The sources are checkpoints of
one layer with tiny experts; nothing but their bytes matters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ders_core.checkpoint.quantized import fp8
from ders_core.codecs import DeltaCodec, Keep, LowRank, Quantized, Sparse
from ders_core.compress import compress
from ders_core.recipe import ClusteredBase, Recipe, Rule
from ders_core.synthesize import synthesize

HERE = Path(__file__).parent
CODECS: dict[str, DeltaCodec] = {
    "v1-keep": Keep(),
    "v1-sparse-random": Sparse(drop_rate=0.75),
    "v1-sparse-magnitude": Sparse(drop_rate=0.9, method="magnitude"),
    "v1-sparse-magnitude-bitmap": Sparse(drop_rate=0.4, method="magnitude"),
    "v1-quantized-1": Quantized(bits=1, group_size=8),
    "v1-quantized-3": Quantized(bits=3, group_size=0),
    "v1-lowrank": LowRank(rank=2),
}
"""Rank 2: a sum of two exact products has one rounding, so every machine gets the same bits."""


def source(directory: Path) -> None:
    """One layer, two experts of `[12, 20]`, in bfloat16."""
    generator = torch.Generator().manual_seed(2503_01359)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    block = "model.layers.0.block_sparse_moe"
    tensors = {f"{block}.gate.weight": noise(2, 20)}
    for name, shape in (("w1", (12, 20)), ("w2", (20, 12)), ("w3", (12, 20))):
        start = noise(*shape)
        for expert in range(2):
            tensors[f"{block}.experts.{expert}.{name}.weight"] = start + 0.2 * noise(*shape)
    directory.mkdir()
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 2}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def fused(directory: Path) -> None:
    """GPT-OSS's form with biases: four experts of two starts, gate and up taking turns, turned."""
    generator = torch.Generator().manual_seed(2503_01359)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    starts = {"gate_up_proj": noise(2, 8, 12), "down_proj": noise(2, 6, 8)}
    block = "model.layers.0.mlp"
    tensors = {f"{block}.router.weight": noise(4, 8)}
    for name, start in starts.items():
        own = start[[0, 1, 0, 1]] + 0.1 * noise(4, *start.shape[1:])
        tensors[f"{block}.experts.{name}"] = own
        tensors[f"{block}.experts.{name}_bias"] = noise(4, start.shape[2])
    _save(directory, tensors, model_type="gpt_oss", num_local_experts=4)


def coded(directory: Path) -> None:
    """fp8 in blocks of 4 × 8, and a shared expert like the two others."""
    generator = torch.Generator().manual_seed(2503_01359)
    block = "model.layers.0.mlp"
    tensors: dict[str, torch.Tensor] = {f"{block}.gate.weight": torch.ones(2, 8)}
    for name, shape in (("gate_proj", (12, 8)), ("up_proj", (12, 8)), ("down_proj", (8, 12))):
        start = torch.randn(shape, generator=generator)
        for expert in ("experts.0", "experts.1", "shared_expert"):
            own = start + 0.2 * torch.randn(shape, generator=generator)
            scales = torch.full((-(-shape[0] // 4), -(-shape[1] // 8)), 2.0**-6)
            tensors[f"{block}.{expert}.{name}.weight"] = fp8.quantize(own, scales, (4, 8))
            tensors[f"{block}.{expert}.{name}.weight_scale_inv"] = scales
    settings = {"quant_method": "fp8", "weight_block_size": [4, 8]}
    config = {"model_type": "qwen2_moe", "num_experts": 2, "quantization_config": settings}
    _save(directory, tensors, **config)


def _save(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> None:
    kept = (torch.float8_e4m3fn,)
    weights = {
        name: tensor if tensor.dtype in kept or "_scale" in name else tensor.bfloat16()
        for name, tensor in tensors.items()
    }
    directory.mkdir()
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


THREE_BITS = Quantized(bits=3, group_size=0)
FORMS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "v1-fused": (
        fused,
        {
            "base": ClusteredBase(clusters=2),
            "rules": (
                Rule(codec=THREE_BITS, projections=("gate",)),
                Rule(codec=LowRank(rank=2), projections=("down",)),
            ),
        },
    ),
    "v1-fp8": (coded, {"extended": True, "rules": (Rule(codec=THREE_BITS),)}),
}
"""Name -> the source's form and the recipe: what is not one matrix a tensor in plain numbers."""


def tensor_hashes(directory: Path) -> dict[str, str]:
    """Tensor name -> SHA-256 of its bytes, as safetensors reads them."""
    tensors = load_file(directory / "model.safetensors")
    return {
        name: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in sorted(tensors.items())
    }


def main(names: list[str]) -> None:
    """Make the named checkpoints that do not exist yet (default: all)."""
    hashes = HERE / "hashes.json"
    known = json.loads(hashes.read_text()) if hashes.exists() else {}
    with tempfile.TemporaryDirectory() as room:
        for name in names or [*CODECS, *FORMS]:
            original = Path(room) / f"{name}-original"
            out = HERE / name
            if out.exists():
                sys.stderr.write(f"{name} exists and stays as it is\n")
                continue
            make, fields = FORMS.get(name) or (source, {"rules": (Rule(codec=CODECS[name]),)})
            make(original)
            compress(original, out, Recipe(name=name, seed=7, **fields))
            synthesize(out, Path(room) / name)
            known[name] = tensor_hashes(Path(room) / name)
            shutil.rmtree(Path(room) / name)
    hashes.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
