"""KL of many models to one reference, window by window; the reference runs once and is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.forward import answers, loaded
from ders_core.evaluate.interval import Interval
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import ReferenceStore
from ders_core.evaluate.windows import token_windows
from ders_core.files.output import output_directory
from ders_core.hf import load_tokenizer

WINDOW = 256
BATCH = 4


@dataclass(frozen=True)
class WindowKL:
    """kl: nats a token, of each window. top1_agreement: share of all tokens. perplexity: of the
    model that is compared, over all tokens."""

    kl: list[float]
    top1_agreement: float
    perplexity: float

    @property
    def mean(self) -> float:
        return sum(self.kl) / len(self.kl)

    def interval(self) -> tuple[float, float]:
        """Of the mean, from windows drawn again with replacement."""
        interval = Interval.of(self.kl)
        return interval.low, interval.high


@dataclass(frozen=True)
class Reference:
    """The predictions of one model on the first tokens of a text, in float32.

    directory: holds them. windows: `[n, WINDOW]`, its tokens. perplexity: of the reference.
    """

    directory: Path
    windows: torch.Tensor
    perplexity: float

    @classmethod
    def of(cls, model: Path, text: Path, tokens: int, directory: Path) -> Reference:
        """Run the model, unless `directory` holds its predictions."""
        tokenizer = load_tokenizer(model)
        windows = token_windows(tokenizer, read_text(text, tokenizer), WINDOW, tokens)
        facts = directory / "perplexity.json"
        if not directory.exists():
            totals = Totals()
            with (
                output_directory(directory) as partial,
                loaded(model, "cpu", torch.float32, False) as network,
            ):
                store = ReferenceStore(partial, half=False)
                for number, window_answers in enumerate(answers(network, windows, BATCH)):
                    store.write(number, window_answers)
                    totals.add(window_answers)
                (partial / facts.name).write_text(json.dumps(totals.perplexity))
        return cls(directory, windows, float(json.loads(facts.read_text())))

    def compare(self, model: Path) -> WindowKL:
        """Run another model on the same windows, in float32."""
        with loaded(model, "cpu", torch.float32, False) as network:
            return self.compare_network(network)

    def compare_network(self, network: PreTrainedModel) -> WindowKL:
        """The same with a model in memory."""
        totals = list(self._compared(network))
        tokens = sum(window.tokens for window in totals)
        return WindowKL(
            kl=[window.kl / window.tokens for window in totals],
            top1_agreement=sum(window.same_top for window in totals) / tokens,
            perplexity=math.exp(sum(window.loss for window in totals) / tokens),
        )

    def _compared(self, network: PreTrainedModel) -> Iterator[Totals]:
        """The sums of each window."""
        store = ReferenceStore(self.directory, half=False)
        for number, window_answers in enumerate(answers(network, self.windows, BATCH)):
            totals = Totals()
            totals.add(window_answers)
            totals.compare(window_answers, store.read(number))
            yield totals
