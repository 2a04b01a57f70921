"""What opening a checkpoint of very many tensors costs, beside parsing its headers as JSON.

Makes a Mixtral-like checkpoint of tiny tensors. Of each kind of work it prints the least processor
time of several rounds, in seconds and as a multiple of the baseline: Python's own json, given the
bytes of the same headers and index, nothing checked and nothing made of it.

    python benchmarks/opening.py [--layers 64] [--experts 512] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.large_workspaces import make_many_tensors

import ders_core
from ders_core.files.few_collections import few_collections
from ders_core.files.model_files import INDEX
from ders_core.packed.open import open_checkpoint


def parse(directory: Path) -> int:
    """Parse every header and the index; returns how many tensors they name."""
    count = 0
    for file in sorted(directory.glob("*.safetensors")):
        with open(file, "rb") as opened:
            count += len(json.loads(opened.read(int.from_bytes(opened.read(8), "little"))))
    json.loads((directory / INDEX).read_bytes())
    return count


def least(rounds: int, work: Callable[[], object]) -> float:
    """Processor seconds of the quickest round."""
    seconds = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--experts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opening-") as place:
        directory = Path(place) / "moe"
        tensors = make_many_tensors(directory, options.layers, options.experts, shards=16)
        print(
            f"ders-studio {ders_core.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()}, {os.cpu_count()} cores; {tensors} tensors in 16 files; other "
            f"work on the machine at the start: {os.getloadavg()[0]:.1f} processes on average"
        )

        def plain() -> None:
            with few_collections():  # the baseline gets that too
                parse(directory)

        before = psutil.Process().memory_info().rss
        checkpoint = open_checkpoint(directory)
        kept = psutil.Process().memory_info().rss - before
        base = least(options.rounds, plain)
        works: dict[str, Callable[[], object]] = {
            "open": lambda: open_checkpoint(directory),
            "open, and name by a sample of the bytes": lambda: open_checkpoint(directory).identity,
        }
        print(f"json alone: {base:.2f} s of processor time")
        for name, work in works.items():
            seconds = least(options.rounds, work)
            print(f"{name}: {seconds:.2f} s, {seconds / base:.1f} x")
        print(f"memory that stays taken after the first: {kept / 1e6:.0f} MB")
        assert len(checkpoint.tensors) == tensors


if __name__ == "__main__":
    main()
