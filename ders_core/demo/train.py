"""Training and measuring, plainly: AdamW, one learning-rate cycle, cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ders_core.demo.tokens import Stream

LOG_EVERY = 5


def train(
    model: PreTrainedModel,
    stream: Stream,
    *,
    steps: int,
    groups: Iterable[dict[str, object]],
    step_done: Callable[[int, float], None],
) -> float:
    """Train for `steps` batches; the last loss. groups: parameters with their peak learning rates.

    `step_done(step, loss)` is called after each step and may raise to stop.
    """
    optimizer = torch.optim.AdamW(list(groups), betas=(0.9, 0.95), weight_decay=0.01)
    peaks = [group["lr"] for group in optimizer.param_groups]
    model.train()
    value = math.nan
    for step in range(steps):
        factor = min(1.0, (step + 1) / max(1, steps // 15)) * _cosine(step / steps)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        tokens = stream()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        step_done(step + 1, value)
    model.eval()
    return value


def _cosine(share: float) -> float:
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    window: int,
    batch: int,
    *,
    batch_done: Callable[[int, int], None],
) -> float:
    """exp of the mean next-token cross-entropy over non-overlapping windows, without the router's
    auxiliary loss; summed in float64.

    `batch_done(done, batches)` is called after each batch and may raise to stop.
    """
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    rows = tokens[: len(tokens) // window * window].view(-1, window)
    total = 0.0
    chunks = rows.split(batch)
    for done, chunk in enumerate(chunks, start=1):
        logits = model(input_ids=chunk, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="none"
        )
        total += float(losses.double().sum())
        batch_done(done, len(chunks))
    return math.exp(total / (rows.shape[0] * (window - 1)))
