"""What an upcycled model takes in memory, by kind: random weights in the shape of the model of
benchmarks/upcycling.py and of two models of the paper (DeRS, arXiv 2503.01359), of these some
layers. Memory does not depend on the values.

    python benchmarks/upcycling_memory.py [--shape NAME] [--layers N] [--device cpu] > FILE

Each line is measured in a process of its own, by torch's MemTracker (bytes of tensors, at the
moment when they are most); on a GPU the allocator's peak and the training's speed stand beside it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from processes import measure, report
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

import ders_core
from ders_core.compute.device import device_label
from ders_core.demo.models import Shape, dense_model
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.routers import random_routers
from ders_core.upcycle.surgery import upcycle_model
from ders_core.upcycle.trainer import parameter_groups


@dataclass(frozen=True)
class Case:
    """A dense model's shape, how it is upcycled, and what a step sees of text. bf16: whether it
    computes in bfloat16, and holds in it what is not trained."""

    dense: Callable[[int], PreTrainedConfig]
    choices: str
    layers: int
    batch: int
    window: int
    bf16: bool
    forms: tuple[str, ...]
    bases: tuple[str, ...]


FORMS = {
    "vanilla": "[{form: vanilla}]",
    "SM 0.9": "[{form: sparse, drop_rate: 0.9}]",
    "SM 0.99": "[{form: sparse, drop_rate: 0.99}]",
    "SM 0.999": "[{form: sparse, drop_rate: 0.999}]",
    "LM 1": "[{form: lowrank, rank: 1}]",
    "LM 4": "[{form: lowrank, rank: 4}]",
    "LM 16": "[{form: lowrank, rank: 16}]",
}
SOME = ("vanilla", "SM 0.9", "SM 0.99", "LM 4")

CASES = {
    # the model of benchmarks/upcycling.py, as it is trained there
    "small": Case(
        lambda layers: dense_model(Shape(), 256).config,
        "experts: 4\ntop_k: 2\n",
        4,
        8,
        128,
        False,
        tuple(FORMS),
        ("trained", "frozen"),
    ),
    # DeepSeek-Coder-1.3B; every FFN -> 4 experts, top-1, and a universal one
    "Coder-MoE": Case(
        lambda layers: LlamaConfig(
            vocab_size=32256,
            hidden_size=2048,
            intermediate_size=5504,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_hidden_layers=layers,
        ),
        "experts: 4\ntop_k: 1\nuniversal: true\n",
        2,
        1,
        512,
        True,
        SOME,
        ("trained",),
    ),
    # Phi-2; every other FFN -> 4 experts, top-2
    "MoE-LLaVA-Phi": Case(
        lambda layers: PhiConfig(
            vocab_size=51200,
            hidden_size=2560,
            intermediate_size=10240,
            num_attention_heads=32,
            partial_rotary_factor=0.4,
            num_hidden_layers=layers,
        ),
        "experts: 4\ntop_k: 2\nlayers: every-other\n",
        2,
        1,
        512,
        True,
        SOME,
        ("trained",),
    ),
}
STEPS = 5


def build(case: Case, form: str, base: str, layers: int, device: str) -> Any:
    """The model, its blocks and its configuration."""
    dense = case.dense(layers)
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    config = UpcycleConfig.from_yaml(
        f"name: x\nbase: {base}\n{case.choices}forms: {FORMS[form]}\ndata: {{texts: x}}\n"
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(dense, dtype=dtype)
    routers = random_routers(range(layers), config.experts, dense.hidden_size, 0.02, 0)
    return model, upcycle_model(model, config, routers), config


def as_buffers(model: PreTrainedModel) -> None:
    """Make a buffer of every frozen parameter: MemTracker takes hooks that these cannot have, and
    then counts them separately."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach(), persistent=False)


def tokens(model: PreTrainedModel, case: Case) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    size = (case.batch, case.window)
    return torch.randint(0, model.config.vocab_size, size, generator=random).to(model.device)


def peak(tracker: MemTracker) -> dict[str, int]:
    """Kind of tensor -> bytes, on all devices together, when they were most."""
    sizes: dict[str, int] = {}
    for kinds in tracker.get_tracker_snapshot("peak").values():
        for kind, size in kinds.items():
            name = getattr(kind, "value", str(kind))
            sizes[name] = sizes.get(name, 0) + size
    return sizes


def training(case: Case, form: str, base: str, layers: int, device: str) -> dict[str, Any]:
    """One step with its optimizer's state in place."""
    model, blocks, config = build(case, form, base, layers, device)
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, blocks, config))
    as_buffers(model)
    rows = tokens(model, case)

    def step() -> None:
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=case.bf16):
            model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
    figures: dict[str, Any] = dict(peak(tracker))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        figures["tokens_per_second"] = STEPS * rows.numel() / (time.perf_counter() - begun)
        figures["allocator"] = torch.cuda.max_memory_allocated()
    return figures


@torch.no_grad()
def inference(case: Case, form: str, base: str, layers: int, device: str) -> dict[str, Any]:
    """One forward pass, all in the dtype of what is not trained."""
    model, _, _ = build(case, form, base, layers, device)
    model.to(model.dtype).eval()
    rows = tokens(model, case)
    model.requires_grad_(False)
    as_buffers(model)
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        model(input_ids=rows, use_cache=False)
    return dict(peak(tracker))


def table(name: str, layers: int, device: str) -> None:
    case = CASES[name]
    computed = "bfloat16" if case.bf16 else "float32"
    for what in ("training", "inference"):
        print(
            f"{name}, {layers} layers, {what} on {case.batch} × {case.window} tokens in "
            f"{computed}, MB at the peak (parameter: trained; buffer: frozen, and positions)"
        )
        first: dict[str, Any] = {}
        for form, base in (
            (form, base)
            for base in (case.bases if what == "training" else case.bases[:1])
            for form in case.forms
            if base == "trained" or form != "vanilla"
        ):
            print(name, what, form, base, file=sys.stderr, flush=True)
            figures = measure(__file__, what, name, form, base, str(layers), device).result
            first = first or figures
            parts = ", ".join(
                f"{kind.lower()} {size / 1e6:.3g}"
                for kind, size in figures.items()
                if size and kind not in ("Total", "tokens_per_second", "allocator")
            )
            line = f"  {form:8} {base:7} {figures['Total'] / 1e6:8.4g} "
            line += _against(figures, first, "Total")
            if "allocator" in figures:
                line += f"; allocator {figures['allocator'] / 1e6:.4g}"
                line += f" {_against(figures, first, 'allocator')}, tokens a second"
                line += f" {_against(figures, first, 'tokens_per_second')}"
            print(f"{line}  ({parts})", flush=True)


def _against(figures: dict[str, Any], first: dict[str, Any], name: str) -> str:
    """The change against the first line."""
    return f"{100 * (figures[name] / first[name] - 1):+6.1f}%"


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in ("training", "inference"):  # a child
        what, name, form, base, layers, device = sys.argv[1:]
        run = {"training": training, "inference": inference}[what]
        report(lambda: run(CASES[name], form, base, int(layers), device))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(CASES), help="by default all of them")
    parser.add_argument("--layers", type=int, help="by default 2, and 4 of the small model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    chosen = parser.parse_args()
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{device_label(chosen.device)}"
    )
    for name in [chosen.shape] if chosen.shape else CASES:
        table(name, chosen.layers or CASES[name].layers, chosen.device)


if __name__ == "__main__":
    main()
