"""A synthetic upcycled checkpoint in Mixtral's shape: what the benchmarks of scale run on.

Each expert is a common base plus a low-rank update, noise and a few outliers, so that the cosine of
two experts is above 0.999, as in the paper. All other tensors are there too, with few words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from ders_core.files.dtype import Dtype
from ders_core.files.model_files import INDEX
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import (
    encode_header,
    file_bytes,
    tensor_bytes,
    write_file,
    write_index,
    write_json,
)

HIDDEN, FFN, EXPERTS = 4096, 14336, 8
BASE, NOISE, OUTLIER = 0.02, 0.0005, 0.008
"""Standard deviations; one entry in 1000 is an outlier."""
RANK, ROWS = 16, 256
SHAPES = {"w1": (FFN, HIDDEN), "w3": (FFN, HIDDEN), "w2": (HIDDEN, FFN)}
HEADS, PAIRS, WORDS = 32, 8, 256
"""Heads of attention, those of keys and values, and words of the vocabulary."""


def make_checkpoint(directory: Path, layers: int, *, experts: int = EXPERTS) -> None:
    """Write `layers` layers of three projections, bfloat16, one shard a layer."""
    directory.mkdir(parents=True)
    for file, specs in _describe(directory, layers, experts).items():
        write_file(directory / file, specs, _filled(specs))


def make_holes(directory: Path, layers: int, experts: int = EXPERTS) -> None:
    """The same with headers alone: the weights are holes that take no disk, and are read as 0."""
    directory.mkdir(parents=True)
    for file, specs in _describe(directory, layers, experts).items():
        with open(directory / file, "wb") as weights:
            weights.write(encode_header(specs))
            weights.truncate(file_bytes(specs))


def first_layers(source: Path, directory: Path, layers: int, *, experts: int = EXPERTS) -> Path:
    """The first layers of a checkpoint made here, as links to its shards."""
    if not directory.exists():
        directory.mkdir()
        names = [path.name for path in weight_files(source)]
        _describe(directory, layers, experts, names[:layers])
        for name in names[:layers]:
            (directory / name).symlink_to(source / name)
    return directory


def _describe(
    directory: Path, layers: int, experts: int, names: list[str] | None = None
) -> dict[str, dict[str, TensorSpec]]:
    """Write index and config; returns file name -> its tensors."""
    files = {}
    for layer in range(layers):
        specs = {
            _name(layer, expert, part): TensorSpec(Dtype.BF16, shape)
            for part, shape in SHAPES.items()
            for expert in range(experts)
        }
        specs |= {
            name: TensorSpec(Dtype.BF16, shape) for name, shape in _others(layer, experts).items()
        }
        files[names[layer] if names else f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"] = (
            specs
        )
    write_index(directory / INDEX, files)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": PAIRS,
        "vocab_size": WORDS,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "dtype": "bfloat16",
    }
    write_json(directory / "config.json", config)
    return files


def _others(layer: int, experts: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors outside of the experts; with the first one, of the model's."""
    shapes: dict[str, tuple[int, ...]] = {
        "block_sparse_moe.gate": (experts, HIDDEN),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    for name in "qkvo":
        out = HIDDEN if name in "qo" else HIDDEN // HEADS * PAIRS
        shapes[f"self_attn.{name}_proj"] = (out, HIDDEN)
    found = {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    if layer == 0:
        found |= {
            "model.embed_tokens.weight": (WORDS, HIDDEN),
            "model.norm.weight": (HIDDEN,),
            "lm_head.weight": (WORDS, HIDDEN),
        }
    return found


def _filled(specs: dict[str, TensorSpec]) -> Callable[[str], Iterable[memoryview]]:
    """What gives the bytes of a tensor by its name."""
    return lambda name: _bytes(name, specs[name])


def _name(layer: int, expert: int, part: str) -> str:
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"


def _bytes(name: str, spec: TensorSpec) -> Iterable[memoryview]:
    """A tensor's bytes, a few rows at a time; the name decides the values."""
    words = name.split(".")
    part = words[-2]
    if part not in SHAPES:
        values = torch.randn(spec.shape, generator=_random(len(name))) * BASE
        yield from tensor_bytes(values.bfloat16())
        return
    layer = int(words[2])
    common = _random(layer, list(SHAPES).index(part))
    single = _random(layer, list(SHAPES).index(part), int(words[5]))
    out, width = spec.shape
    right = torch.randn(RANK, width, generator=single) * (NOISE / RANK**0.5)
    base, delta = torch.empty(ROWS, width), torch.empty(ROWS, width)
    for _ in range(0, out, ROWS):
        base.normal_(0.0, BASE, generator=common)
        delta.normal_(0.0, NOISE, generator=single)
        delta.addmm_(torch.randn(ROWS, RANK, generator=single), right)
        places = torch.randint(delta.numel(), (delta.numel() // 1000,), generator=single)
        delta.view(-1)[places] += torch.randn(len(places), generator=single) * OUTLIER
        yield from tensor_bytes(base.add(delta).bfloat16())


def _random(*seeds: int) -> torch.Generator:
    seed = 0
    for part in seeds:
        seed = seed * 1009 + part + 1
    return torch.Generator().manual_seed(seed)


def weight_files(directory: Path) -> Iterator[Path]:
    """The files whose bytes count."""
    yield from sorted(directory.glob("*.safetensors"))


def evict(directory: Path) -> None:
    """Have the system write the directory's files out and drop them from its page cache."""
    for file in weight_files(directory):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
