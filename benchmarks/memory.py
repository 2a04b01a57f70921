"""Peak memory of compression against the number of layers and of threads: it must not grow.

Makes synthetic upcycled checkpoints of 1, 2 and 4 layers (8 experts of 1792×1024, bfloat16) and
compresses each in a process of its own, with 1, 2 and 16 threads that may hold two experts at a
time. Run: `python benchmarks/memory.py [RECIPE]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import ders_core
from ders_core.codecs.needed_memory import WORKING_BYTES
from ders_core.compute import threads
from ders_core.files.writer import write_tensors
from ders_core.pipeline.compress import compress
from ders_core.recipe import load_recipe

EXPERTS, OUT, IN = 8, 1792, 1024
LAYERS = (1, 2, 4)
THREADS = (1, 2, 16)
AT_ONCE = 2
"""Experts that threads may hold together, as Mixtral's are by default."""


def make_checkpoint(directory: Path, layers: int, out: int = OUT, width: int = IN) -> None:
    """A common base and small differences; one shard a layer."""
    directory.mkdir()
    random = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        tensors = {}
        for name, shape in (("w1", (out, width)), ("w3", (out, width)), ("w2", (width, out))):
            base = torch.randn(shape, generator=random) * 0.02
            for expert in range(EXPERTS):
                key = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
                noise = torch.randn(shape, generator=random) * 0.001
                tensors[key] = (base + noise).bfloat16()
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        write_tensors(directory / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "mixtral", "num_hidden_layers": layers, "num_local_experts": EXPERTS}
    (directory / "config.json").write_text(json.dumps(config))


def peak_growth(directory: Path, recipe: str, count: int) -> int:
    """Bytes of peak resident memory beyond what imports and compiled loops take, of one compression
    with so many threads."""
    loaded = load_recipe(recipe)
    with tempfile.TemporaryDirectory() as place:
        tiny = Path(place) / "tiny"
        make_checkpoint(tiny, 1, 32, 16)
        compress(tiny, Path(place) / "packed", loaded)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what is held now
    before = _peak()
    threads.WORKING_BYTES = AT_ONCE * OUT * IN * WORKING_BYTES
    with threads.threads_of_torch(count):
        compress(directory, directory.with_name(directory.name + "-packed"), loaded)
    return _peak() - before


def _peak() -> int:
    """Highest resident memory of this process so far, in bytes (Linux; getrusage would count what
    the parent held when it forked)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(recipe: str, layers: tuple[int, ...] = LAYERS, workers: int = 1) -> dict[int, int]:
    """Number of layers -> peak growth in bytes with so many threads, each in a fresh process."""
    peaks = {}
    with tempfile.TemporaryDirectory() as place:
        for count in layers:
            directory = Path(place) / f"layers{count}"
            make_checkpoint(directory, count)
            done = subprocess.run(
                [sys.executable, __file__, recipe, str(directory), str(workers)],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks[count] = int(done.stdout)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="quantized-4bit", help="a file or a preset")
    parser.add_argument("directory", nargs="?", type=Path, help="compress this checkpoint alone")
    parser.add_argument("threads", nargs="?", type=int, default=1, help="of that one")
    options = parser.parse_args()
    recipe: str = options.recipe
    if options.directory is not None:
        print(peak_growth(options.directory, recipe, options.threads))
        return
    group = EXPERTS * OUT * IN * 2
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}; recipe {recipe}"
    )
    print(f"one group of experts: {group / 1e6:.1f} MB; one layer: {3 * group / 1e6:.1f} MB")
    print("threads  layers  checkpoint MB  peak beyond imports MB  over one group")
    for count in THREADS:
        for layers, peak in measure(recipe, LAYERS if count == 1 else LAYERS[:1], count).items():
            print(
                f"{count:7}  {layers:6}  {3 * group * layers / 1e6:13.1f}  {peak / 1e6:22.1f}  "
                f"{peak / group:14.2f}"
            )


if __name__ == "__main__":
    main()
