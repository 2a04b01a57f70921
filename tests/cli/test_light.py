"""Commands that read headers and bytes import nothing that computes: a process of their own says
what it has imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.quantized_references import fp8_config, random_codes

from ders_core.demo.unpack import TRAINED

HEAVY = ("torch", "transformers", "dask", "distributed", "scipy", "numba", "pandas", "streamlit")
RUN = """
import contextlib, io, json, sys
from ders_core.cli.main import app

printed = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(words, standalone_mode=False)
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    if words[0] == "plan" and "numpy" in sys.modules:  # a fifth of what a plan may take
        heavy.append("numpy")
    printed.append((out.getvalue(), heavy))
print(json.dumps(printed))
"""


def fp8_checkpoint(directory: Path) -> Path:
    directory.mkdir()
    tensors = {"model.layers.0.block_sparse_moe.gate.weight": torch.zeros(2, 16)}
    for expert in range(2):
        for part, shape in (("w1", (8, 16)), ("w2", (16, 8)), ("w3", (8, 16))):
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight"
            tensors |= {name: random_codes(shape, 1), f"{name}_scale_inv": torch.ones(1, 1)}
    save_file(tensors, directory / "model.safetensors")
    config = {"model_type": "mixtral", "num_local_experts": 2, **fp8_config()}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_headers_and_hashes_need_no_torch(mixtral_dir: Path, tmp_path: Path) -> None:
    packed = str(TRAINED / "moe")
    commands = [
        ["--help"],
        ["plan", str(mixtral_dir), "--recipe", "mixed"],
        ["plan", packed, "--recipe", "unbiased-0.6bit", "--json"],
        ["verify", packed],
        ["info", str(mixtral_dir)],
        ["info", str(fp8_checkpoint(tmp_path / "fp8"))],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ("Commands", "weight files", "bytes_after", "as they were written", "mixtral", "fp8")
    for words, (text, heavy), fact in zip(commands, json.loads(done.stdout), expected, strict=True):
        assert fact in text, words
        assert heavy == [], words
