"""Make the golden packed checkpoints: `python tests/golden/make.py` from the repository's root.

They were made once, by format version 1, and are read for ever: run this only to add a codec or a
format version, and never overwrite a directory that was released. The source is a Mixtral-like
checkpoint of one layer with two tiny experts; nothing but its bytes matters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ders_core.codecs import DeltaCodec, Keep, LowRank, Quantized, Sparse
from ders_core.compress import compress
from ders_core.recipe import Recipe, Rule
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
        original = Path(room) / "original"
        source(original)
        for name in names or list(CODECS):
            out = HERE / name
            if out.exists():
                sys.stderr.write(f"{name} exists and stays as it is\n")
                continue
            recipe = Recipe(name=name, seed=7, rules=(Rule(codec=CODECS[name]),))
            compress(original, out, recipe)
            synthesize(out, Path(room) / name)
            known[name] = tensor_hashes(Path(room) / name)
            shutil.rmtree(Path(room) / name)
    hashes.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
