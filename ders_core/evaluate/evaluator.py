"""Quick evaluation: a model alone, or against a reference, one in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.forward import Answers, answers, loaded
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import reference_store
from ders_core.evaluate.windows import check_sizes, fitting_window, token_windows
from ders_core.files.address import as_local
from ders_core.files.store import TensorStore
from ders_core.files.texts import Texts
from ders_core.hf import load_tokenizer
from ders_core.pipeline.quality import Quality


def evaluate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    text: Texts,
    device: str = "cpu",
    max_tokens: int = 8192,
    window: int = 512,
    batch: int = 8,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> Quality:
    """Measure `model` on a text, and compare it token by token with `reference`.

    Both are directories, packed or not. text: one or more files or directories of UTF-8 text or
    `.jsonl` (see `ders_core.files.texts`); chats are written by the reference's chat template.
    window: tokens of context, not overlapping, and no more than the models' context. batch: windows
    at once. dtype: of the
    computation, by default the checkpoints'. The reference runs first; its predictions are kept on
    disk in float32 (float16 beyond 4 GB) until the model has run. progress counts the predicted
    tokens of both passes.
    Raises EvaluationError if the text is too short, the two do not share a tokenizer and a
    vocabulary, or one computes values that are not finite.
    """
    started = time.monotonic()
    where = resolve_device(device)
    check_sizes(window, max_tokens, batch)
    paths = [model] if reference is None else [reference, model]
    configs = [TensorStore.open(as_local(path)).config for path in paths]
    window = fitting_window(window, configs)
    windows = _windows(paths, text, window, max_tokens, trust_remote_code)
    tokens = windows[:, 1:].numel()
    meter = Meter(len(paths) * tokens, progress)

    def measure(path: str | Path, role: str, take: Callable[[int, Answers], None]) -> None:
        meter.report(f"loading {role}")
        with loaded(path, where.type, dtype, trust_remote_code) as network:
            for number, window_answers in enumerate(answers(network, windows, batch)):
                take(number, window_answers)
                meter.advance(window_answers.targets.numel(), f"measuring {role}")

    model_totals, reference_totals = Totals(), Totals()
    if reference is None:
        measure(model, "the model", lambda _, window_answers: model_totals.add(window_answers))
    else:
        with reference_store(tokens, _shared_vocabulary(paths, configs)) as store:

            def keep(number: int, window_answers: Answers) -> None:
                reference_totals.add(window_answers)
                store.write(number, window_answers)

            def compare(number: int, window_answers: Answers) -> None:
                model_totals.add(window_answers)
                model_totals.compare(window_answers, store.read(number))

            measure(reference, "the original", keep)
            measure(model, "the compressed model", compare)
    tokens_seen, routed = model_totals.tokens, model_totals.routed
    compared = reference is not None
    return Quality(
        tokens=tokens_seen,
        perplexity=model_totals.perplexity,
        reference_perplexity=reference_totals.perplexity if compared else None,
        kl=model_totals.kl / tokens_seen if compared else None,
        top1_agreement=model_totals.same_top / tokens_seen if compared else None,
        routing_agreement=model_totals.same_experts / routed if routed else None,
        device=device_label(where),
        seconds=time.monotonic() - started,
    )


def _windows(
    paths: list[str | Path], texts: Texts, window: int, max_tokens: int, trust_remote_code: bool
) -> torch.Tensor:
    """The windows of the texts. Raises EvaluationError if the models' tokenizers disagree."""
    tokenizers = [load_tokenizer(path, trust_remote_code=trust_remote_code) for path in paths]
    text = read_text(texts, tokenizers[0])
    first, *others = (
        token_windows(tokenizer, text, window, max_tokens) for tokenizer in tokenizers
    )
    if not all(torch.equal(first, other) for other in others):
        raise EvaluationError(
            f"{paths[1]} splits the text into other tokens than {paths[0]}; only models with one "
            "tokenizer can be compared"
        )
    return first


def _shared_vocabulary(paths: list[str | Path], configs: list[dict[str, object]]) -> int:
    """Size of the vocabulary of both models. Raises EvaluationError if they differ."""
    first, second = (config.get("vocab_size") for config in configs)
    if not isinstance(first, int) or first != second:
        raise EvaluationError(
            f"{paths[1]} has a vocabulary of {second}, {paths[0]} one of {first}; only models "
            "with one vocabulary can be compared"
        )
    return first
