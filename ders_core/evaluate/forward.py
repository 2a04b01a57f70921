"""One model over the windows: log-probabilities and chosen experts, window by window."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ders_core.compute.device import device_label
from ders_core.errors import DersError, EvaluationError
from ders_core.hf import load_model
from ders_core.hf.classes import words
from ders_core.hf.routing import recorded_choices
from ders_core.packed.open import is_packed
from ders_core.runtime.modes import Mode


@dataclass(frozen=True)
class Answers:
    """A model's predictions for one window.

    log_probs: `[tokens, vocabulary]` float32, of each next token. chosen: `[layers, tokens, k]`
    int64, the experts that each MoE layer gave the tokens at the same positions (of an encoder's
    layers, those before them); None for a dense model, and where the choice cannot be seen.
    targets: `[tokens]` int64, the tokens that came.
    """

    log_probs: torch.Tensor
    chosen: torch.Tensor | None
    targets: torch.Tensor


@contextmanager
def loaded(
    path: str | Path,
    device: str,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    mode: Mode = "synthesized",
) -> Iterator[PreTrainedModel]:
    """A loaded model whose memory is freed when the block ends, whoever still holds it. mode: how
    it holds experts, if it is packed."""
    model = load_model(
        path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        mode=mode if is_packed(path) else "synthesized",
    )
    try:
        yield model
    finally:
        model.to("meta")  # the weights go, whatever else a circle of references holds
        del model
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


@torch.inference_mode()
def answers(model: PreTrainedModel, windows: torch.Tensor, batch: int) -> Iterator[Answers]:
    """Run the model over `windows` `[n, window]`, `batch` of them at once.

    An encoder-decoder takes `[n, 2 · window]`: the encoder reads the first half of each row, so
    that what the decoder is to predict is new to both.
    Raises EvaluationError for values that are not finite, if the model does not run on text or
    predicts no tokens, and if the device's memory is too small.
    """
    with recorded_choices(model) as choices:
        for rows in windows.split(batch):
            try:
                tokens = rows.to(model.device)
                encoded = None
                if model.config.is_encoder_decoder:
                    encoded, tokens = tokens.chunk(2, dim=1)
                logits = next_token_logits(model, tokens, encoded)
                chosen = choices.take(tokens.numel())
                for row, targets in enumerate(tokens[:, 1:]):
                    log_probs = logits[row, :-1].float().log_softmax(-1)
                    if not bool(torch.isfinite(log_probs).all()):
                        raise EvaluationError(
                            f"{_name(model)} computes values that are not finite; its weights are "
                            "damaged or too large for their dtype"
                        )
                    yield Answers(log_probs, _of_row(chosen, row, tokens.shape), targets)
            except torch.OutOfMemoryError as error:
                raise EvaluationError(
                    f"{batch} windows of {windows.shape[1]} tokens do not fit into the memory of "
                    f"{device_label(model.device)} besides the model; give a smaller batch or "
                    "window"
                ) from error


def run(model: PreTrainedModel, tokens: torch.Tensor, encoded: torch.Tensor | None = None) -> Any:
    """The output of one forward pass over `[batch, window]`.

    encoded: what an encoder reads; None for the same. Raises EvaluationError if the model fails on
    text, with its cause; torch.OutOfMemoryError.
    """
    inputs: dict[str, Any] = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs = {
            "input_ids": tokens if encoded is None else encoded,
            "decoder_input_ids": tokens,
        }
    parameters = inspect.signature(model.forward).parameters.values()
    if any(each.name == "use_cache" or each.kind is each.VAR_KEYWORD for each in parameters):
        inputs["use_cache"] = False
    try:
        return model(**inputs)
    except (DersError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model of any family may fail in any way on text alone
        raise EvaluationError(
            f"{_name(model)} cannot be run on text by transformers {transformers.__version__}: "
            f"{words(error)}"
        ) from error


def next_token_logits(
    model: PreTrainedModel, tokens: torch.Tensor, encoded: torch.Tensor | None = None
) -> torch.Tensor:
    """`[batch, window, vocabulary]`. Raises as `run` does, and EvaluationError if the model does
    not predict the next token."""
    logits = getattr(run(model, tokens, encoded), "logits", None)
    if (
        not isinstance(logits, torch.Tensor)
        or logits.shape[:-1] != tokens.shape
        or logits.shape[-1] <= int(tokens.max())
    ):
        raise EvaluationError(
            f"{_name(model)} is a {type(model).__name__}, which does not predict the next token of "
            "a text, so it cannot be measured on one"
        )
    return logits


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or "the model"


def _of_row(chosen: torch.Tensor | None, row: int, shape: torch.Size) -> torch.Tensor | None:
    """The experts `[layers, tokens, k]` of one window, where a token is predicted."""
    if chosen is None:
        return None
    experts: torch.Tensor = chosen.unflatten(1, shape)[:, row, :-1]
    return experts.contiguous()
