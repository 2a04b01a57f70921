"""Workspaces and checkpoints that are large by number: many jobs, many tiny tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.stored_results import ENTRY, LATER, QUALITY, REPORT, RUN

from ders_core.files.model_files import INDEX
from ders_core.jobs import JobStore
from ders_core.jobs.job import Step, steps_text
from ders_core.jobs.schema import transaction

HIDDEN, FFN = 8, 4
BEFORE = 60_000
"""Bytes of the checkpoint that the runs compress."""

PARTS = {"w1": (FFN, HIDDEN), "w3": (FFN, HIDDEN), "w2": (HIDDEN, FFN)}
STEPS = tuple(Step(name, "done", 1.0) for name in ("compress", "verify", "evaluate"))
ERROR = "the checkpoint /models/moe does not exist; choose another one"


def kl_of(number: int) -> float | None:
    """The measured KL of the run of that number; every seventh run measured none."""
    return None if number % 7 == 0 else (number * 7919 % 10007) / 10007


def size_of(number: int) -> int:
    """The packed bytes of the run of that number."""
    return 300 + number * 104729 % 50021


def fill_with_runs(path: Path, count: int, failed: int = 0, waiting: int = 0) -> None:
    """Make a job store at `path`, with runs of the numbers 1 to `count`: the last `waiting` wait,
    every n-th of the others failed, `failed` in all, and the others are done."""
    store = JobStore(path)
    ended = count - waiting
    every = ended // failed if failed else ended + 1
    with transaction(store.path) as db:
        db.executemany(
            "INSERT INTO jobs (kind, title, spec, state, steps, result, error, created, started,"
            " finished, attempt, peak_memory) VALUES"
            " ('run', ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 1000000)",
            (
                _row(number, ended, number % every == 0 and number // every <= failed)
                for number in range(1, count + 1)
            ),
        )


def _row(number: int, ended: int, is_failed: bool) -> tuple[Any, ...]:
    spec = {
        "checkpoint": f"/models/moe{number % 3}",
        "recipe": "version: 1\nname: quantized-2bit\n",
        "name": f"run {number}",
        "device": "cpu",
    }
    state = "queued" if number > ended else "failed" if is_failed else "done"
    return (
        f"run {number}",
        json.dumps(spec),
        state,
        steps_text(STEPS),
        json.dumps(_result(number)) if state == "done" else None,
        ERROR if state == "failed" else None,
        1.7e9 + number,
        *((1.7e9 + number, 1.7e9 + number + 60) if state != "queued" else (None, None)),
    )


def _result(number: int) -> dict[str, Any]:
    """As of the demo: four layers."""
    kl = kl_of(number)
    entries = [
        ENTRY | LATER | {"layer": layer, "projection": projection}
        for layer in range(4)
        for projection in ("gate", "up", "down")
    ]
    sizes = {
        "bytes_before": BEFORE,
        "bytes_after": size_of(number),
        "ratio": size_of(number) / BEFORE,
    }
    return RUN | {
        **sizes,
        "packed": f"/w/runs/{number:05d}/packed",
        "report": REPORT | sizes | {"entries": entries, "missed": ""},
        "quality": None if kl is None else QUALITY | {"kl": kl},
    }


def make_many_tensors(directory: Path, layers: int, experts: int, shards: int = 1) -> int:
    """Write a Mixtral-like checkpoint of tiny tensors, bfloat16, whose experts share a base.
    Returns how many tensors it has."""
    directory.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)

    def values(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return torch.randn(shape, generator=random) * scale

    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        if shard == 0:
            tensors["model.embed_tokens.weight"] = values(32, HIDDEN)
            tensors["model.norm.weight"] = values(HIDDEN)
            tensors["lm_head.weight"] = values(32, HIDDEN)
        for layer in range(shard, layers, shards):
            block = f"model.layers.{layer}"
            for part in "qkvo":
                tensors[f"{block}.self_attn.{part}_proj.weight"] = values(HIDDEN, HIDDEN)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{block}.{norm}.weight"] = values(HIDDEN)
            tensors[f"{block}.block_sparse_moe.gate.weight"] = values(experts, HIDDEN)
            for part, shape in PARTS.items():
                weights = values(*shape) + values(experts, *shape, scale=0.0005)
                for expert, weight in enumerate(weights):
                    path = f"{block}.block_sparse_moe.experts.{expert}.{part}.weight"
                    tensors[path] = weight
        save_file(
            {key: value.bfloat16().contiguous() for key, value in tensors.items()},
            directory / name,
            metadata={"format": "pt"},
        )
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 32,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(weight_map)
