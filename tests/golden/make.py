"""Make the golden packed checkpoints: `python tests/golden/make.py` from the repository's root.

They were made once, by the format version in their names, and are read for ever: run this only to
add a codec or a format version, and never overwrite a directory that was released. The sources are
checkpoints of one layer with tiny experts; nothing but their bytes matters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ders_core.checkpoint.quantized import fp8
from ders_core.codecs import Chain, Codec, Entropy, Keep, Lossless, LowRank, Quantized, Sparse
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import BaseRule, ClusteredBase, OtherRule, Recipe, Rule

HERE = Path(__file__).parent
CODECS: dict[str, Codec] = {
    "v1-keep": Keep(),
    "v1-sparse-random": Sparse(drop_rate=0.75),
    "v1-sparse-magnitude": Sparse(drop_rate=0.9, method="magnitude"),
    "v1-sparse-magnitude-bitmap": Sparse(drop_rate=0.4, method="magnitude"),
    "v1-quantized-1": Quantized(bits=1, group_size=8),
    "v1-quantized-3": Quantized(bits=3, group_size=0),
    "v1-lowrank": LowRank(rank=2),
    "v2-sparse-magnitude": Sparse(drop_rate=0.9, method="magnitude"),
    "v2-sparse-magnitude-bitmap": Sparse(drop_rate=0.4, method="magnitude"),
    "v2-sparse-row-fixed": Sparse(
        drop_rate=0.8, method="magnitude", budget="row", positions="fixed"
    ),
    "v2-sparse-della": Sparse(drop_rate=0.8, method="della", value_bits=8),
    "v2-sparse-values-4": Sparse(
        drop_rate=0.5, value_bits=4, rescale="least_squares", draws="matrix"
    ),
    "v2-pattern": Sparse(pattern="2:4"),
    "v2-ternary": Quantized(grid="ternary", group_size=8),
    "v2-affine": Quantized(bits=3, grid="affine", group_size=8),
    "v2-normal": Quantized(bits=4, grid="normal", group_size=8, scale_bits=8),
    "v2-learned": Quantized(bits=2, grid="learned", group_size=8),
    "v2-lowrank-quantized": LowRank(rank=2, factor_bits=4, leading=1),
    "v3-quantized": Quantized(bits=2, group_size=8),
    "v5-sparse-random": Sparse(drop_rate=0.75),
    "v2-chain": Chain(
        stages=(
            LowRank(rank=1),
            Sparse(drop_rate=0.9, method="magnitude"),
            Quantized(bits=2, group_size=8),
        )
    ),
}
"""Rank 2: a sum of two exact products has one rounding, so every machine gets the same bits. With
quantized factors products are not exact, but no sum lies where the last bit would show."""


def source(
    directory: Path, experts: int = 2, shape: tuple[int, int] = (12, 20), spread: float = 0.2
) -> None:
    """One layer, so many experts of `shape`, in bfloat16."""
    generator = torch.Generator().manual_seed(2503_01359)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    block = "model.layers.0.block_sparse_moe"
    tensors = {f"{block}.gate.weight": noise(experts, shape[1])}
    for name, size in (("w1", shape), ("w2", shape[::-1]), ("w3", shape)):
        start = noise(*size)
        for expert in range(experts):
            tensors[f"{block}.experts.{expert}.{name}.weight"] = start + spread * noise(*size)
    directory.mkdir()
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": experts}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


close = partial(source, experts=3, shape=(24, 40), spread=0.005)
"""Experts large enough for tables, and close enough to their base to shrink without loss."""


def fused(directory: Path) -> None:
    """GPT-OSS's form with biases: four experts of two starts, gate and up taking turns, turned."""
    generator = torch.Generator().manual_seed(2503_01359)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    starts = {"gate_up_proj": noise(2, 8, 12), "down_proj": noise(2, 6, 8)}
    block = "model.layers.0.mlp"
    tensors = {f"{block}.router.weight": noise(4, 8)}
    for name, start in starts.items():
        experts = start[[0, 1, 0, 1]] + 0.1 * noise(4, *start.shape[1:])
        tensors[f"{block}.experts.{name}"] = experts
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
            weight = start + 0.2 * torch.randn(shape, generator=generator)
            scales = torch.full((-(-shape[0] // 4), -(-shape[1] // 8)), 2.0**-6)
            tensors[f"{block}.{expert}.{name}.weight"] = fp8.quantize(weight, scales, (4, 8))
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
    "v2-lossless": (close, {"rules": (Rule(codec=Lossless()),)}),
    "v2-entropy": (close, {"rules": (Rule(codec=Entropy(bits=1.5)),)}),
    "v4-lossless": (close, {"rules": (Rule(codec=Lossless()),)}),
    "v4-entropy": (
        close,
        {
            "rules": (
                Rule(codec=Entropy(bits=1.5)),
                Rule(codec=Entropy(bits=0.7, rounding="unbiased"), projections=("down",)),
                Rule(codec=Entropy(bits=6), projections=("up",)),
            )
        },
    ),
    "v4-whole": (
        close,
        {
            "rules": (Rule(codec=THREE_BITS),),
            "base_codec": (
                BaseRule(codec=Quantized(bits=6, group_size=8)),
                BaseRule(codec=Quantized(bits=8, group_size=0), projections=("down",)),
            ),
            "others": (OtherRule(kinds=("router",), codec=Quantized(bits=5, group_size=0)),),
        },
    ),
    "v4-plain": (source, {"base": "none", "rules": (Rule(codec=Quantized(bits=4, group_size=8)),)}),
    "v2-median": (close, {"base": "median", "rules": (Rule(codec=Quantized(bits=3)),)}),
    "v2-experts": (
        source,
        {"rules": (Rule(codec=THREE_BITS), Rule(codec=Lossless(), experts="1"))},
    ),
}
"""Name -> the source's form and the recipe: what is not one codec for `source`."""

SEARCHED_AGAIN = {
    "v2-ternary": "v5-ternary",
    "v2-normal": "v5-normal",
    "v2-learned": "v5-learned",
    "v3-quantized": "v5-quantized",
    "v2-median": "v5-whole",
    "v2-experts": "v5-experts",
    "v2-sparse-della": "v5-plain",
    "v2-sparse-values-4": "v5-plain",
    "v4-whole": "v5-whole",
    "v4-plain": "v5-plain",
}
"""The same recipe before and after the search for scales became another one; v5-plain and v5-whole
are of all of their recipes."""

JOINED: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "v5-plain": (
        source,
        {
            "base": "none",
            "rules": (
                Rule(codec=Quantized(bits=4, group_size=8)),
                Rule(codec=CODECS["v2-sparse-della"], projections=("up",)),
                Rule(codec=CODECS["v2-sparse-values-4"], projections=("down",)),
            ),
        },
    ),
    "v5-whole": (close, {**FORMS["v4-whole"][1], "base": "median"}),
}
FORMS |= JOINED
for before, after in SEARCHED_AGAIN.items():
    if before in CODECS and after not in JOINED:
        CODECS[after] = CODECS[before]
    elif after not in JOINED:
        FORMS[after] = FORMS[before]

KEPT: dict[Callable[[Path], None], str] = {source: "v1-keep", close: "v2-lossless"}
"""Source -> the checkpoint that keeps every bit of it: a machine's random numbers may differ."""


def form(name: str) -> tuple[Callable[[Path], None], Recipe]:
    """The source's form, and the recipe."""
    make, fields = FORMS.get(name) or (source, {"rules": (Rule(codec=CODECS[name]),)})
    return make, Recipe(name=name, seed=7, **fields)


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
            make, recipe = form(name)
            make(original)
            compress(original, out, recipe)
            synthesize(out, Path(room) / name)
            known[name] = tensor_hashes(Path(room) / name)
            shutil.rmtree(Path(room) / name)
    hashes.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
