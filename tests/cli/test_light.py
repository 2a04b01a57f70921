"""Commands that read headers and bytes import nothing that computes: a process of their own says
what it has imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.quantized_references import fp8_config, random_codes

from ders_core import compress, open_checkpoint
from ders_core.demo.unpack import TRAINED
from ders_core.pipeline.calibration import write_calibration
from ders_core.recipe import Recipe

HEAVY = ("torch", "transformers", "dask", "distributed", "scipy", "numba", "pandas", "streamlit")
SUMMARY = ("pydantic", "ders_core.pipeline", "ders_core.checkpoint", "ders_core.cli.options")
TENSORS = ("numpy", "psutil")
OTHER_CODECS = ("ders_core.codecs.entropy", "ders_core.codecs.lowrank", "ders_core.codecs.sparse")

RUN = """
import contextlib, io, json, sys
from ders_core.cli.main import app

printed = []
for words, unwanted in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(words, standalone_mode=False)
    printed.append((out.getvalue(), [name for name in unwanted if name in sys.modules]))
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


def check(facts: list[tuple[list[str], str, tuple[str, ...]]]) -> None:
    """facts: words of a command, what it prints, and modules that neither it nor those before it
    imported, in this order in one process."""
    commands = json.dumps([(words, unwanted) for words, _, unwanted in facts])
    done = subprocess.run(
        [sys.executable, "-c", RUN, commands], capture_output=True, text=True, check=True
    )
    for (words, fact, _), (text, heavy) in zip(facts, json.loads(done.stdout), strict=True):
        assert fact in text, words
        assert heavy == [], words


def test_headers_and_hashes_need_no_torch(mixtral_dir: Path) -> None:
    packed, original = str(TRAINED / "moe"), str(mixtral_dir)
    recipe = "unbiased-0.6bit"
    check(
        [
            (["--help"], "Commands", (*HEAVY, *SUMMARY)),
            (
                ["plan", original, "--recipe", "quantized-2bit"],
                "weight files",
                (*HEAVY, *TENSORS, *OTHER_CODECS),
            ),
            (["plan", original, "--recipe", "mixed"], "weight files", (*HEAVY, *TENSORS)),
            (["plan", packed, "--recipe", recipe, "--json"], "bytes_after", (*HEAVY, *TENSORS)),
            (["verify", packed], "as they were written", HEAVY),
            (["info", packed], "not decoded", HEAVY),
            (["info", packed, "--json"], '"upcycled": null', HEAVY),
        ]
    )


@pytest.mark.parametrize("steps", ["even", "sensitive"])
def test_what_streams_begin_with_needs_no_torch(
    mixtral_dir: Path, tmp_path: Path, steps: str
) -> None:
    """`info` reads the beginning of each, for the bytes that they take in memory. Steps that
    differ are decoded, by compiled loops, since these tell how many entries have which."""
    entropy = {"codec": "entropy", "bits": 0.8, "steps": steps}
    chain = {"codec": "chain", "stages": [{"codec": "lowrank", "rank": 1}, entropy]}
    rules = [{"projections": ["down"], **chain}, entropy]
    known = tmp_path / "calibration.safetensors"
    original = open_checkpoint(mixtral_dir)
    powers = {"routed": torch.tensor([9] * 4)}
    for group in original.groups():
        inputs = "mid" if group.projection == "down" else "in"
        powers[f"{inputs}.moments"] = 1.0 + torch.arange(group.shape[2]) % 7
    of_layers = {f"{layer}.{name}": t for layer in (0, 1) for name, t in powers.items()}
    write_calibration(known, original.identity, 9, of_layers)
    fields = {"name": "streams", "calibration": known, "rules": rules}
    packed = tmp_path / "packed"
    compress(mixtral_dir, packed, Recipe.model_validate(fields))
    loops = ("numba", "scipy") if steps == "sensitive" else ()
    unwanted = tuple(name for name in HEAVY if name not in loops)
    check([(["info", str(packed)], "in memory", unwanted)])


def test_the_first_look_at_an_original_needs_no_codec(mixtral_dir: Path, tmp_path: Path) -> None:
    """Nor torch: importing them would take a quarter of it."""
    fp8 = str(fp8_checkpoint(tmp_path / "fp8"))
    unwanted = (*HEAVY, "psutil", "ders_core.codecs")
    check([(["info", str(mixtral_dir)], "mixtral", unwanted), (["info", fp8], "fp8", unwanted)])
