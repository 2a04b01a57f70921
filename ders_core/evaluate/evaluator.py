"""Quick evaluation: a model alone, or against a reference, one in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.precision import dtype_label
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.forward import Answers, answers, loaded
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import reference_store
from ders_core.evaluate.windows import (
    check_sizes,
    check_vocabulary,
    fitting_window,
    token_windows,
)
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.texts import Texts
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.hf.describe import ModelFacts
from ders_core.pipeline.quality import Quality


@unchanged_inputs()
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
    window: tokens of context, not overlapping, and no more than the models' context; an encoder
    reads as many before. batch: windows at once. dtype: of the computation; by default the
    checkpoints', but float32 where the device has no instructions for it (see
    `ders_core.compute.precision`). trust_remote_code: run code that comes with a model. The
    reference runs first; its predictions are kept on disk in float32 (float16 beyond 4 GB) until
    the model has run. progress counts the predicted tokens of both passes.
    Raises CheckpointError if one of the two cannot be loaded, or a file that was read is written
    meanwhile; EvaluationError if the text is too short, the two do not share a tokenizer and a
    vocabulary, a model does not run on text, or one computes values that are not finite.
    """
    started = time.monotonic()
    where = resolve_device(device)
    check_sizes(window, max_tokens, batch)
    paths = [model] if reference is None else [reference, model]
    models = [describe(path, trust_remote_code=trust_remote_code) for path in paths]
    window = fitting_window(window, (each.positions for each in models))
    if dtype is None:
        dtype = shared_dtype(models, where)
    windows = _windows(models, text, window, max_tokens, trust_remote_code)
    before = windows.shape[1] // 2 if models[0].encoder_decoder else 0
    tokens = windows[:, before + 1 :].numel()
    meter = Meter(len(paths) * tokens, progress)
    computed: list[torch.dtype] = []

    def measure(path: str | Path, role: str, take: Callable[[int, Answers], None]) -> None:
        changed = "" if dtype is None else f" in {dtype_label(dtype)}"
        meter.report(f"loading {role}{changed}")
        with loaded(path, where.type, dtype, trust_remote_code) as network:
            computed.append(network.dtype)
            for number, window_answers in enumerate(answers(network, windows, batch)):
                take(number, window_answers)
                meter.advance(window_answers.targets.numel(), f"measuring {role}")

    model_totals, reference_totals = Totals(), Totals()
    if reference is None:
        measure(model, "the model", lambda _, window_answers: model_totals.add(window_answers))
    else:
        with reference_store(tokens, _shared_vocabulary(models)) as store:

            def keep(number: int, window_answers: Answers) -> None:
                reference_totals.add(window_answers)
                store.write(number, window_answers)

            def compare(number: int, window_answers: Answers) -> None:
                model_totals.add(window_answers)
                model_totals.compare(window_answers, store.read(number))

            measure(reference, "the original", keep)
            measure(model, "the compressed model", compare)
    tokens_seen = model_totals.tokens
    compared = reference is not None
    return Quality(
        tokens=tokens_seen,
        perplexity=model_totals.perplexity,
        reference_perplexity=reference_totals.perplexity if compared else None,
        kl=model_totals.kl / tokens_seen if compared else None,
        top1_agreement=model_totals.same_top / tokens_seen if compared else None,
        routing_agreement=model_totals.routing_agreement,
        dtype=dtype_label(computed[-1]),
        device=device_label(where),
        seconds=time.monotonic() - started,
    )


def check_evaluation(
    model: str | Path,
    *,
    text: Texts,
    max_tokens: int = 8192,
    window: int = 512,
    trust_remote_code: bool = False,
) -> None:
    """Raise what `evaluate` would raise of a model's config, its tokenizer and a text, in seconds
    and without its weights: so that other work is not done in vain."""
    facts = describe(model, trust_remote_code=trust_remote_code)
    fitting = fitting_window(window, [facts.positions])
    _windows([facts], text, fitting, max_tokens, trust_remote_code)


def _windows(
    models: Sequence[ModelFacts],
    texts: Texts,
    window: int,
    max_tokens: int,
    trust_remote_code: bool,
) -> torch.Tensor:
    """The windows of the texts. Raises EvaluationError if the models' tokenizers disagree, or make
    tokens that a model does not know."""
    first, *others = models
    if any(other.encoder_decoder != first.encoder_decoder for other in others):
        raise EvaluationError(
            f"of {first.path} and {others[0].path} one has an encoder and the other has none, so "
            "they cannot be compared"
        )
    rows: list[torch.Tensor] = []
    tokenizers = [load_tokenizer(each.path, trust_remote_code=trust_remote_code) for each in models]
    text = read_text(texts, tokenizers[0])
    for each, tokenizer in zip(models, tokenizers, strict=True):
        windows = token_windows(tokenizer, text, window, max_tokens, before=each.encoder_decoder)
        check_vocabulary(windows, each.vocabulary, tokenizer, each.path)
        rows.append(windows)
    if not all(torch.equal(rows[0], other) for other in rows[1:]):
        raise EvaluationError(
            f"{others[0].path} splits the text into other tokens than {first.path}; only models "
            "with one tokenizer can be compared"
        )
    return rows[0]


def _shared_vocabulary(models: Sequence[ModelFacts]) -> int:
    """Size of the vocabulary of both models. Raises EvaluationError if they differ."""
    first, second = models
    if first.vocabulary is None or first.vocabulary != second.vocabulary:
        raise EvaluationError(
            f"{second.path} has a vocabulary of {second.vocabulary or 'unknown size'}, "
            f"{first.path} one of {first.vocabulary or 'unknown size'}; only models with one "
            "vocabulary can be compared"
        )
    return first.vocabulary
