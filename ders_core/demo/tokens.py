"""The demo's tokenizer, and batches of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ders_core.demo.corpus import DOMAINS, SEPARATOR

END = "<|end|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocabulary` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def corpus_tokenizer(
    train: Mapping[str, list[str]], characters: int, vocabulary: int
) -> PreTrainedTokenizerFast:
    """The tokenizer of at most `characters` of a corpus, in equal shares of its domains."""
    each = characters // len(DOMAINS)
    texts = (SEPARATOR.join(train[domain])[:each] for domain in DOMAINS)
    return train_tokenizer(texts, vocabulary)


class Stream:
    """Batches of token windows; each window comes from one domain, each domain equally often."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        texts: Mapping[str, list[str]],
        *,
        batch: int,
        window: int,
        seed: int,
    ) -> None:
        self._tokens = {
            domain: np.asarray(
                tokenizer(SEPARATOR.join(pieces), verbose=False)["input_ids"], dtype=np.int64
            )
            for domain, pieces in texts.items()
        }
        self._domains = list(self._tokens)
        self._batch, self._window = batch, window
        self._random = np.random.default_rng(seed)

    def __call__(self) -> torch.Tensor:
        """int64 `[batch, window]`"""
        rows = []
        for index in range(self._batch):
            tokens = self._tokens[self._domains[index % len(self._domains)]]
            begin = int(self._random.integers(0, max(len(tokens) - self._window, 1)))
            rows.append(np.resize(tokens[begin : begin + self._window], self._window))
        return torch.from_numpy(np.stack(rows))
