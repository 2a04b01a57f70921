"""Unpack the demo that comes with the package: an MoE in the lossless packed form that holds its
dense parent too, texts and figures. `benchmarks/shipped_demo.py` made it."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

from ders_core.compute.progress import Progress, quiet
from ders_core.demo.result import CALIBRATION, DENSE, FIGURES, HELD_OUT, MOE, DemoResult
from ders_core.errors import CheckpointError
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.json_object import read_json
from ders_core.files.output import new_target, output_directory
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import METADATA, file_bytes, file_order, tensor_bytes, write_file
from ders_core.packed.part_reads import HashedReads
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.original_form import OriginalForm
from ders_core.pipeline.synthesize import original_bytes, write_original

TRAINED = Path(__file__).parent / "trained"
"""MOE: packed, its bases are the dense parent's FFNs. DENSE: what the parent has besides weights.
The texts with GZ, and FIGURES."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
GZ = ".gz"


@unchanged_inputs()
def unpack_demo(out: str | Path, *, progress: Progress = quiet) -> DemoResult:
    """Write the demo to the new directory `out`, with the files that `build_demo` writes.

    Needs no training and no transformers. progress counts bytes of the MoE. Raises OutputError if
    `out` exists or cannot be written, CheckpointError if the package's files are damaged; then
    nothing stays.
    """
    target = new_target(out)
    figures = read_json(TRAINED / FIGURES)
    reads = HashedReads()
    packed = PackedCheckpoint(TRAINED / MOE, reads.rows)
    form = OriginalForm(packed)
    parent = parent_tensors(packed)
    specs = file_order({name: tensor.spec for name, tensor in parent.items()})
    texts = {name: _text(TRAINED / f"{name}{GZ}") for name in (CALIBRATION, HELD_OUT)}
    needs = original_bytes(form) + file_bytes(specs, METADATA) + sum(map(len, texts.values()))
    with output_directory(target, needs=needs) as partial:
        for name, text in texts.items():
            (partial / name).write_bytes(text)
        shutil.copytree(TRAINED / DENSE, partial / DENSE, copy_function=shutil.copyfile)
        for name in TOKENIZER:
            shutil.copyfile(TRAINED / MOE / name, partial / DENSE / name)
        write_file(
            partial / DENSE / "model.safetensors",
            specs,
            lambda name: tensor_bytes(parent[name].read()),
            METADATA,
        )
        (partial / MOE).mkdir()
        write_original(form, reads, partial / MOE, progress, hashes=False)
        shutil.copyfile(TRAINED / FIGURES, partial / FIGURES)
    return DemoResult.of(target, figures["perplexities"], figures["mean_cosine"])


def _text(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(
            f"{file} is damaged or missing ({error}); install the package again"
        ) from error


def parent_tensors(packed: PackedCheckpoint) -> Mapping[str, FileTensor]:
    """The dense parent's tensors by name: the packed MoE's bases are its FFNs, and all others are
    the MoE's, which were not trained after the upcycling. Routers are not among them."""
    of_experts = tuple(f"{group.prefix}." for group in packed.manifest.groups)
    parent = {
        name: tensor
        for name, tensor in packed.store.tensors.items()
        if not name.startswith(of_experts) and not name.endswith(ROUTER)
    }
    for group in packed.manifest.groups:
        name = f"model.layers.{group.layer}.mlp.{group.projection}_proj.weight"
        parent[name] = packed.store.tensors[f"{group.prefix}.base"]
    return parent


ROUTER = ".block_sparse_moe.gate.weight"
"""Ends the name of a router in the Mixtral layout."""
