"""One model over the windows: log-probabilities and chosen experts, window by window."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ders_core.compute.device import device_label
from ders_core.errors import EvaluationError
from ders_core.hf import load_model


@dataclass(frozen=True)
class Answers:
    """A model's predictions for one window.

    log_probs: `[tokens, vocabulary]` float32, of each next token. chosen: `[layers, tokens, k]`
    int64, the experts of each MoE layer at the same positions; None for a dense model.
    targets: `[tokens]` int64, the tokens that came.
    """

    log_probs: torch.Tensor
    chosen: torch.Tensor | None
    targets: torch.Tensor


@contextmanager
def loaded(
    path: str | Path, device: str, dtype: torch.dtype | None, trust_remote_code: bool
) -> Iterator[PreTrainedModel]:
    """A loaded model whose memory is freed when the block ends, whoever still holds it."""
    model = load_model(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        yield model
    finally:
        model.to("meta")
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.inference_mode()
def answers(model: PreTrainedModel, windows: torch.Tensor, batch: int) -> Iterator[Answers]:
    """Run the model over `windows` `[n, window]`, `batch` of them at once.

    Raises EvaluationError for values that are not finite, and if the device's memory is too small.
    """
    for rows in windows.split(batch):
        try:
            tokens = rows.to(model.device)
            logits, routers = _forward(model, tokens)
            for row, targets in enumerate(tokens[:, 1:]):
                log_probs = logits[row, :-1].float().log_softmax(-1)
                if not bool(torch.isfinite(log_probs).all()):
                    raise EvaluationError(
                        f"{model.config.name_or_path or 'the model'} computes values that are not "
                        "finite; its weights are damaged or too large for their dtype"
                    )
                yield Answers(log_probs, _chosen(model, routers, row, tokens.shape), targets)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"{batch} windows of {windows.shape[1]} tokens do not fit into the memory of "
                f"{device_label(model.device)} besides the model; give a smaller batch or window"
            ) from error


def _forward(
    model: PreTrainedModel, tokens: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits `[batch, window, vocabulary]`, and of each MoE layer `[batch · window, experts]`."""
    routed = hasattr(model.config, "output_router_logits")
    options = {"output_router_logits": True} if routed else {}
    output = model(input_ids=tokens, use_cache=False, **options)
    return output.logits, tuple(getattr(output, "router_logits", None) or ())


def _chosen(
    model: PreTrainedModel, routers: tuple[torch.Tensor, ...], row: int, shape: torch.Size
) -> torch.Tensor | None:
    """The top-k experts `[layers, tokens, k]` of one window, where a token is predicted."""
    if not routers:
        return None
    top_k = int(model.config.num_experts_per_tok)
    scores = torch.stack([router.view(*shape, -1)[row, :-1] for router in routers])
    return scores.float().topk(top_k, dim=-1).indices
