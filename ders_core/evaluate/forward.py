"""One model over the windows: log-probabilities and chosen experts, batch by batch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ders_core.errors import EvaluationError
from ders_core.hf import load_model


@dataclass(frozen=True)
class Batch:
    """log_probs: `[tokens, vocabulary]` float32, of each next token. chosen: `[layers, tokens, k]`
    int64, the experts of each MoE layer at the same positions; None for a dense model.
    targets: `[tokens]` int64."""

    log_probs: torch.Tensor
    chosen: torch.Tensor | None
    targets: torch.Tensor


@contextmanager
def loaded(
    path: str | Path, device: str, dtype: torch.dtype | None, trust_remote_code: bool
) -> Iterator[PreTrainedModel]:
    """A model that is gone from memory when the block ends."""
    model = load_model(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        yield model
    finally:
        model.to("meta")
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def vocabulary_size(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


@torch.inference_mode()
def batches(model: PreTrainedModel, windows: torch.Tensor, batch: int) -> Iterator[Batch]:
    """Run the model over `windows` `[n, window]`. Raises EvaluationError for non-finite logits."""
    top_k = getattr(model.config, "num_experts_per_tok", None)
    routed = top_k is not None and hasattr(model.config, "output_router_logits")
    wanted = {"output_router_logits": True} if routed else {}
    for rows in windows.split(batch):
        tokens = rows.to(model.device)
        output = model(input_ids=tokens, use_cache=False, **wanted)
        logits = output.logits[:, :-1].float().flatten(0, 1)
        if not bool(torch.isfinite(logits).all()):
            raise EvaluationError(
                f"{model.config.name_or_path or 'the model'} computes values that are not finite; "
                "its weights are damaged or too large for their dtype"
            )
        chosen = None
        routers = getattr(output, "router_logits", None) if routed else None
        if routers:
            chosen = torch.stack(
                [_chosen(router, rows.shape, int(top_k or 1)) for router in routers]
            )
        yield Batch(logits.log_softmax(-1), chosen, tokens[:, 1:].flatten())


def _chosen(router: torch.Tensor, shape: torch.Size, top_k: int) -> torch.Tensor:
    """The top-k experts `[tokens, k]` of one layer, at the positions that predict a token."""
    scores = router.view(shape[0], shape[1], -1)[:, :-1].flatten(0, 1)
    return scores.float().topk(top_k, dim=-1).indices
