"""Memory and speed of a model whose experts stay packed, beside the same model with whole weights.

`python benchmarks/runtime.py WORK` makes two models in WORK: the shipped demo, and one MoE layer
of `--hidden` × `--inner` with 8 experts, in random weights that share a start. Each is packed with
a few codecs and loaded in every mode. Tokens a second are the best of `--repeats`, of one pass over
512 tokens and of passes over one and eight tokens, each a step of a sequence of its own. The
baseline of each line is the same packed checkpoint with synthesized weights, and the best of
transformers' own ways to compute experts; a way that would copy more than `MOST_COPIED` bytes of
weights is left out. Beside them are the bytes of experts that must be read for one and for eight
tokens, by the choice of the model's router, and the bandwidth of a copy in the same run. Where
packed experts miss a goal (`GOALS`), a line below tells what bounds them: how long experts take,
and all else, how long a copy of their bytes takes, and what experts in no time would reach.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel
from versions import versions

from ders_core.codecs import Codec, Entropy, LowRank, Quantized, Sparse
from ders_core.demo.unpack import unpack_demo
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.modes import MODES, Mode

CODECS: tuple[Codec, ...] = (
    Quantized(bits=4),
    Quantized(bits=2),
    Quantized(bits=1),
    Sparse(drop_rate=0.9),
    LowRank(rank=16),
    Entropy(bits=0.3, rounding="unbiased"),
    Entropy(bits=0.6, rounding="unbiased"),
    Entropy(bits=1.3, rounding="unbiased"),
)
CODECS_OF_LAYER: tuple[Codec, ...] = (
    Quantized(bits=2),
    Quantized(bits=1),
    Sparse(drop_rate=0.9),
    Entropy(bits=0.3, rounding="unbiased"),
    Entropy(bits=0.6, rounding="unbiased"),
)
"""Of the larger layer, which takes a while to pack."""

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
"""transformers' own ways to compute experts; the best of them is the baseline."""


PASSES = ((1, 512, "512 tokens"), (1, 1, "1 token"), (8, 1, "8 tokens"))
"""Sequences, their tokens, and what a pass over them is called."""

GOALS = (0.9, 1.5, 1.5)
"""Of packed experts, as multiples of whole weights' tokens a second, for each of `PASSES`."""

MOST_COPIED = 4 << 30
"""Bytes of weights that transformers' batched products may copy for one pass."""


def one_layer(
    place: Path, hidden: int, inner: int, *, experts: int = 8, vocabulary: int = 256
) -> None:
    """A Mixtral with one layer, whose experts share a start."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=vocabulary,
        num_local_experts=experts,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    model = MixtralForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        block = model.model.layers[0].mlp.experts
        for weights in (block.gate_up_proj, block.down_proj):
            for expert in range(1, len(weights)):
                noise = 0.02 * weights[0].float().std() * torch.randn(weights[0].shape)
                weights[expert] = weights[0] + noise.to(weights.dtype)
    model.save_pretrained(place)


def expert_bytes(model: PreTrainedModel) -> int:
    """Of all that lies in modules of experts."""
    return sum(
        tensor.nbytes
        for name, module in model.named_modules()
        if name.endswith(".experts")
        for tensor in (*module.parameters(), *module.buffers())
    )


@dataclass(frozen=True)
class Pass:
    """seconds: of all of it. experts: of its modules of experts."""

    seconds: float
    experts: float


def quickest(model: PreTrainedModel, ids: torch.Tensor, repeats: int) -> Pass:
    """After one that does not count."""
    begun, taken, found = [0.0], [0.0], []

    def begin(*_: Any) -> None:
        begun[0] = time.perf_counter()

    def end(*_: Any) -> None:
        taken[0] += time.perf_counter() - begun[0]

    modules = [module for name, module in model.named_modules() if name.endswith(".experts")]
    hooks = [module.register_forward_pre_hook(begin) for module in modules]
    hooks += [module.register_forward_hook(end) for module in modules]
    for _ in range(repeats + 1):
        taken[0], started = 0.0, time.perf_counter()
        model(ids, use_cache=False)
        found.append(Pass(time.perf_counter() - started, taken[0]))
    for hook in hooks:
        hook.remove()
    return min(found[1:], key=lambda each: each.seconds)


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 256 MB reads and writes."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    found = []
    for _ in range(6):
        begun = time.perf_counter()
        target.copy_(source)
        found.append(time.perf_counter() - begun)
    return 2 * source.nbytes / min(found)


def tokens_of(batch: int, length: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(batch)
    return torch.randint(0, 200, (batch, length), generator=random)


def bases_of(module: Any) -> set[str]:
    """Names of the buffers that all experts of a module share; none where these are whole."""
    if not hasattr(module, "packed"):
        return set()
    groups = {name: module.packed.group(name) for name in module.packed.groups}
    return {
        f"packed.groups.{name}.{group.buffer_of(f'base {number}')}"
        for name, group in groups.items()
        for number in range(group.bases)
    }


@torch.inference_mode()
def read_bytes(model: PreTrainedModel, batch: int, length: int) -> int:
    """Of experts, for a pass over so many sequences of so many tokens: of bases and of each expert
    that is chosen."""
    chosen: list[tuple[Any, int]] = []

    def note(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        chosen.append((module, len(inputs[1].unique())))

    modules = [module for name, module in model.named_modules() if name.endswith(".experts")]
    hooks = [module.register_forward_hook(note) for module in modules]
    model(tokens_of(batch, length), use_cache=False)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for module, experts in chosen:
        held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        each = sum(held[name].nbytes for name in held.keys() - bases_of(module))
        always = sum(tensor.nbytes for tensor in held.values()) - each
        total += always + each * experts / module.num_experts
    return round(total)


@torch.inference_mode()
def passes(model: PreTrainedModel, mode: Mode, repeats: int) -> list[Pass]:
    """The quickest of each of `PASSES`."""
    found = []
    weights = expert_bytes(model) // model.config.num_hidden_layers // 8
    for batch, length, _ in PASSES:
        ids = tokens_of(batch, length)
        ways = IMPLEMENTATIONS if mode == "synthesized" else IMPLEMENTATIONS[:1]
        of_ways = []
        for way in ways:
            if way == "batched_mm" and 2 * batch * length * weights > MOST_COPIED:
                continue
            model.set_experts_implementation(way)
            of_ways.append(quickest(model, ids, repeats))
        found.append(min(of_ways, key=lambda each: each.seconds))
    return found


def bounds(found: Sequence[Pass], whole: Sequence[Pass], read: Sequence[int], rate: float) -> None:
    """A line for each goal that is missed. read: bytes of experts, of each pass."""
    for (_, _, name), goal, mine, theirs, nbytes in zip(
        PASSES, GOALS, found, whole, read, strict=True
    ):
        if theirs.seconds >= goal * mine.seconds:
            continue
        rest = mine.seconds - mine.experts
        print(
            f"    {name}: {theirs.seconds / mine.seconds:.2f}x of {goal}x. Of "
            f"{1e3 * mine.seconds:.1f} ms, experts take {1e3 * mine.experts:.1f} (whole ones "
            f"{1e3 * theirs.experts:.1f}) and all else {1e3 * rest:.1f}; to copy the "
            f"{nbytes / 1e6:.1f} MB that experts read takes {2e3 * nbytes / rate:.1f}. With "
            f"experts in no time {theirs.seconds / rest:.2f}x"
        )


def table(
    source: Path, work: Path, codecs: Sequence[Codec], options: argparse.Namespace, rate: float
) -> None:
    """rate: bytes a second that a copy reads and writes."""
    dtype = torch.float32
    print(f"{'codec':20} {'mode':12} {'experts MB':>11} {'share':>6}", end="")
    print("".join(f" {name:>18}" for _, _, name in PASSES), end="")
    print("  (tokens/s)   MB read, 1 and 8")
    for codec in codecs:
        packed = work / f"{source.name}-{codec.label}".replace(" ", "-").replace("%", "")
        if not packed.exists():
            compress(source, packed, Recipe(name="one", rules=(Rule(codec=codec),)))
        whole_bytes, whole = 0, [Pass(0.0, 0.0)]
        for mode in MODES:
            model = load_model(packed, dtype=dtype, mode=mode, cache_bytes=options.cache)
            found, nbytes = passes(model, mode, options.repeats), expert_bytes(model)
            if mode == "synthesized":
                whole_bytes, whole = nbytes, found
            print(
                f"{codec.label:16} {mode:12} {nbytes / 1e6:11.1f} {nbytes / whole_bytes:6.2f}",
                end="",
            )
            for (batch, length, _), mine, theirs in zip(PASSES, found, whole, strict=True):
                speed = batch * length / mine.seconds
                print(f" {speed:9.1f} ({theirs.seconds / mine.seconds:5.2f}x)", end="")
            read = [read_bytes(model, batch, length) for batch, length, _ in PASSES]
            sizes = [f"{each / 1e6:.1f}" for each in read[1:]]
            print(" ".join(f"{size:>8}" for size in sizes) if mode != "cached" else "", flush=True)
            if mode == "packed":
                bounds(found, whole, read, rate)
            del model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=3584)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=int, default=0, help="bytes of weights that `cached` keeps")
    parser.add_argument("--part", choices=("demo", "layer"), help="one of the two models alone")
    options = parser.parse_args()
    begun = time.perf_counter()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions(), f"{torch.get_num_threads()} threads", sep=", ")
    demo, layer = options.work / "demo", options.work / f"layer-{options.hidden}-{options.inner}"
    if not demo.exists():
        unpack_demo(demo)
    if not layer.exists():
        one_layer(layer, options.hidden, options.inner)
    rate = copy_bandwidth()
    print(f"a copy reads and writes {rate / 1e9:.1f} GB/s")
    parts = {
        "demo": ("shipped demo", demo / "moe", CODECS),
        "layer": (f"one layer, {layer.name}", layer, CODECS_OF_LAYER),
    }
    for part, (title, source, codecs) in parts.items():
        if options.part in (None, part):
            print(f"\n{title}, float32")
            table(source, options.work, codecs, options, rate)
    print(f"\nall of it took {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
