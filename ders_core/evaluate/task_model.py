"""A loaded model as lm-eval asks it. Imported only where lm-eval is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class WatchedModel(HFLM):
    """Tells of every pass of the model, and draws no progress bars. told: called before each pass;
    what it raises ends the work."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: int,
        told: Callable[[], None],
    ) -> None:
        backend = "seq2seq" if network.config.is_encoder_decoder else "causal"
        super().__init__(pretrained=network, backend=backend, tokenizer=tokenizer, batch_size=batch)
        self._told = told

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().generate_until(requests, disable_tqdm=True)

    def _model_call(self, *inputs: Any, **more: Any) -> Any:
        self._told()
        return super()._model_call(*inputs, **more)

    def _model_generate(self, *inputs: Any, **more: Any) -> Any:
        self._told()
        return super()._model_generate(*inputs, **more)
