"""A whole checkpoint without loss: ours beside tools that know no experts.

- `ours`: experts against their base, then bases and others (the preset `lossless-whole`).
- `ours, no base`: the same coder, each tensor by itself.
- `lmz` (lmzip on PyPI) and `zipnn`, where they are installed: `pip install --no-deps lmzip zipnn`.
- `zlib`: level 1, the baseline.

MB of the original in a second of processor time, encoding and decoding, files read and written too
(ours checks sums as well); beside them the share of the bytes that is left. Each is run on one
thread, so that this is the rate of a core, several times, and its fastest run is told. What comes
back is compared bit for bit.
Run: `python benchmarks/lossless.py CHECKPOINT...`, each with one weight file; or of models that it
makes in WORK: `python benchmarks/lossless.py --model demo --model upcycled --work WORK`.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lossless_models import MODELS
from safetensors import safe_open

import ders_core
from ders_core import Recipe, compress, synthesize
from ders_core.compute.device import device_label

PIECE = 1 << 22
"""Bytes that zlib takes at a time."""

REPEATS = 3

Work = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Tool:
    """encode: from a weight file to a new path; decode: back to a new weight file."""

    name: str
    encode: Work
    decode: Work


def tools(checkpoint: Path) -> Iterator[Tool]:
    """Those that are installed."""
    coded = {"rules": [{"codec": "lossless"}], "others": "lossless"}
    yield ours("ours", checkpoint, coded | {"base_codec": "lossless"})
    yield ours("ours, no base", checkpoint, coded | {"base": "none"})
    if find_spec("lmz") is not None:
        lmz = importlib.import_module("lmz.api")
        yield Tool(f"lmz {version('lmzip')}", turned(lmz, "compress"), turned(lmz, "decompress"))
    if find_spec("zipnn") is not None:
        kind = importlib.import_module("zipnn").ZipNN
        zipnn = kind(input_format="byte", bytearray_dtype="bfloat16", threads=1)
        name = f"zipnn {version('zipnn')}"
        yield Tool(name, at_once(zipnn.compress), at_once(zipnn.decompress))
    yield Tool("zlib, level 1", deflate, inflate)
    yield Tool("copying", shutil.copyfile, shutil.copyfile)


def ours(name: str, checkpoint: Path, fields: dict[str, Any]) -> Tool:
    recipe = Recipe.model_validate({"name": "lossless", **fields})

    def decode(packed: Path, out: Path) -> None:
        synthesize(packed, out.with_suffix(".synthesized"), hashes=False)
        weight_file(out.with_suffix(".synthesized")).rename(out)

    return Tool(name, lambda _, packed: compress(checkpoint, packed, recipe), decode)


def turned(lmz: ModuleType, name: str) -> Work:
    return lambda source, out: getattr(lmz, name)(str(source), str(out), workers=1)


def at_once(turn: Callable[[bytes], bytes]) -> Work:
    return lambda source, out: out.write_bytes(turn(source.read_bytes()))


def deflate(source: Path, out: Path) -> None:
    stream = zlib.compressobj(1)
    by_pieces(stream.compress, stream.flush, source, out)


def inflate(source: Path, out: Path) -> None:
    stream = zlib.decompressobj()
    by_pieces(stream.decompress, stream.flush, source, out)


def by_pieces(
    turn: Callable[[bytes], bytes], rest: Callable[[], bytes], source: Path, out: Path
) -> None:
    with source.open("rb") as read, out.open("wb") as written:
        for piece in iter(partial(read.read, PIECE), b""):
            written.write(turn(piece))
        written.write(rest())


def weight_file(checkpoint: Path) -> Path:
    """The only one. Raises SystemExit if there are more."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if len(files) != 1:
        raise SystemExit(f"{checkpoint} has {len(files)} weight files; give one with one")
    return files[0]


def measure(tool: Tool, source: Path, place: Path) -> tuple[float, float, int]:
    """Seconds of processor time to encode and to decode, the least, and the bytes between them."""
    encoding, decoding = [], []
    for number in range(REPEATS):
        coded, back = place / f"{number}.coded", place / f"{number}.safetensors"
        begun = time.process_time()
        tool.encode(source, coded)
        encoding.append(time.process_time() - begun)
        begun = time.process_time()
        tool.decode(coded, back)
        decoding.append(time.process_time() - begun)
        check_same(tool, source, back)
    return min(encoding), min(decoding), new_bytes(coded, source.parent)


def new_bytes(coded: Path, checkpoint: Path) -> int:
    """Of what a tool wrote: of ours all files but those that it took over as they are."""
    files = [coded] if coded.is_file() else [file for file in coded.iterdir() if file.is_file()]
    taken_over = {file.name for file in checkpoint.iterdir() if file.suffix != ".safetensors"}
    return sum(file.stat().st_size for file in files if file.name not in taken_over)


def check_same(tool: Tool, one: Path, other: Path) -> None:
    """Raises SystemExit if a bit is another."""
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        names = set(a.keys())
        same = names == set(b.keys()) and all(
            a.get_tensor(name).dtype == b.get_tensor(name).dtype
            and torch.equal(
                a.get_tensor(name).view(torch.uint8), b.get_tensor(name).view(torch.uint8)
            )
            for name in names
        )
    if not same:
        raise SystemExit(f"{tool.name} did not bring {one} back bit for bit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--model", action="append", default=[], choices=MODELS, help="make it")
    parser.add_argument("--work", type=Path, help="directory of the models that are made")
    given = parser.parse_args()
    if not (given.checkpoints or given.model) or (given.model and given.work is None):
        parser.error("give checkpoints, or --model with --work")
    torch.set_num_threads(1)
    made = {name: MODELS[name](given.work) for name in given.model}
    checkpoints = [(path.name, path) for path in given.checkpoints] + list(made.items())
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {device_label(torch.device('cpu'))}"
    )
    for name, checkpoint in checkpoints:
        source = weight_file(checkpoint)
        total = source.stat().st_size
        print(f"\n{name}: {total / 1e6:.1f} MB of weights")
        print(f"{'':20}{'left':>8}{'encode MB/s':>13}{'decode MB/s':>13}")
        for tool in tools(checkpoint):
            with tempfile.TemporaryDirectory() as place:
                encoding, decoding, left = measure(tool, source, Path(place))
            print(
                f"{tool.name:20}{left / total:8.2%}"
                f"{total / 1e6 / encoding:13.0f}{total / 1e6 / decoding:13.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
