"""Quick evaluation: a model alone, or against a reference, one in memory at a time."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ders_core.device import device_label, resolve_device
from ders_core.errors import EvaluationError
from ders_core.evaluate.forward import batches, loaded, vocabulary_size
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.quality import Quality
from ders_core.evaluate.reference import reference_store
from ders_core.evaluate.windows import read_text, token_windows
from ders_core.hf import load_tokenizer
from ders_core.progress import Progress, quiet


def evaluate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    text: str | Path,
    device: str = "cpu",
    max_tokens: int = 8192,
    window: int = 512,
    batch: int = 4,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> Quality:
    """Measure `model` on a text file, and compare it token by token with `reference`.

    Both are directories, packed or not. text: path of a UTF-8 file. window: tokens of context, not
    overlapping. The reference runs first; what it says is kept on disk in float32 (bfloat16 beyond
    4 GB) until the model has run. progress counts predicted tokens of both passes.
    Raises EvaluationError if the text is too short or the two do not share a vocabulary.
    """
    started = time.monotonic()
    where = resolve_device(device)
    windows = token_windows(
        load_tokenizer(reference or model, trust_remote_code=trust_remote_code),
        read_text(text),
        window,
        max_tokens,
    )
    tokens = windows.shape[0] * (window - 1)
    passes = 1 if reference is None else 2
    done = 0

    def step(count: int, message: str) -> None:
        nonlocal done
        done += count
        progress(done, passes * tokens, message)

    own, other = Totals(), Totals()
    step(0, "loading the original" if reference is not None else "loading")
    with reference_store() as store:
        if reference is not None:
            with loaded(reference, where.type, dtype, trust_remote_code) as first:
                vocabulary = vocabulary_size(first)
                store.expect(tokens, vocabulary)
                for piece in batches(first, windows, batch):
                    other.add(piece)
                    store.add(piece)
                    step(piece.targets.numel(), "original")
            step(0, "loading the compressed model")
        with loaded(model, where.type, dtype, trust_remote_code) as second:
            if reference is not None and vocabulary_size(second) != vocabulary:
                raise EvaluationError(
                    f"{model} has a vocabulary of {vocabulary_size(second)}, {reference} one of "
                    f"{vocabulary}; only models with one vocabulary can be compared"
                )
            for number, piece in enumerate(batches(second, windows, batch)):
                own.add(piece)
                if reference is not None:
                    own.compare(piece, *store.read(number))
                step(piece.targets.numel(), "compressed" if reference is not None else "measuring")
    compared = reference is not None
    return Quality(
        tokens=own.tokens,
        perplexity=own.perplexity,
        reference_perplexity=other.perplexity if compared else None,
        kl=own.kl / own.tokens if compared else None,
        top1_agreement=own.same_top / own.tokens if compared else None,
        routing_agreement=own.same_experts / own.routed if own.routed else None,
        device=device_label(where),
        seconds=time.monotonic() - started,
    )
