"""Measures the built demo from its files: perplexities, and the similarity of its experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ders_core.demo.models import base_only
from ders_core.demo.result import DENSE, MOE
from ders_core.demo.train import perplexity

MODELS = ("dense", "moe", "base_only")


def measure(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    window: int,
    batch: int,
    batch_done: Callable[[str, int, int], None],
) -> tuple[dict[str, float], float]:
    """Perplexities of `text` by model, and the mean cosine between the MoE's experts.

    directory: holds the saved `dense` and `moe`; the forward passes are float32. `base_only` is
    the MoE with every expert replaced by their mean, rounded to bfloat16 like a stored base.
    `batch_done(model, done, batches)` is called after each batch and may raise to stop.
    """
    perplexities: dict[str, float] = {}

    def put(name: str, model: PreTrainedModel) -> None:
        perplexities[name] = perplexity(
            model,
            tokenizer,
            text,
            window,
            batch,
            batch_done=lambda done, batches: batch_done(name, done, batches),
        )

    put("dense", _load(directory / DENSE))
    moe = _load(directory / MOE)
    put("moe", moe)
    cosine = mean_cosine(moe)
    base_only(moe)
    put("base_only", moe)
    return perplexities, cosine


@torch.no_grad()
def mean_cosine(moe: MixtralForCausalLM) -> float:
    """Mean over layers, projections and pairs of experts of the cosine between their weights."""
    cosines = []
    for block in moe.model.layers:
        gate, up = block.mlp.experts.gate_up_proj.chunk(2, dim=1)
        for weights in (gate, up, block.mlp.experts.down_proj):  # [K, out, in]
            unit = torch.nn.functional.normalize(weights.double().flatten(1), dim=1)
            experts = len(unit)
            total = (unit @ unit.T).sum() - experts
            cosines.append(float(total / (experts * (experts - 1))))
    return sum(cosines) / len(cosines)


def _load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
