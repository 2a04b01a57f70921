"""Quick evaluation: a model alone, or against a reference, one in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ders_core.compute.device import device_label, resolve_device
from ders_core.compute.precision import dtype_label
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import EvaluationError
from ders_core.evaluate.domains import Domain, read_domains
from ders_core.evaluate.forward import Answers, answers, loaded
from ders_core.evaluate.measured import Measured, figures
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import reference_store
from ders_core.evaluate.windows import check_sizes, fitting_window
from ders_core.evaluate.worst_tokens import WorstTokens
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.named_texts import NamedTexts
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.hf.describe import ModelFacts
from ders_core.pipeline.quality import DomainQuality, Quality


@unchanged_inputs()
def evaluate(
    model: str | Path,
    reference: str | Path | None = None,
    *,
    text: NamedTexts,
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
    A mapping names texts that are measured apart too, with max_tokens shared out equally.
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
    tokenizers = [load_tokenizer(each.path, trust_remote_code=trust_remote_code) for each in models]
    domains = read_domains(models, tokenizers, text, window, max_tokens)
    tokens = sum(domain.predicted for domain in domains)
    meter = Meter(len(paths) * tokens, progress)
    computed: list[torch.dtype] = []

    def measure(path: str | Path, role: str, take: Callable[[_Seen], None]) -> None:
        changed = "" if dtype is None else f" in {dtype_label(dtype)}"
        meter.report(f"loading {role}{changed}")
        with loaded(path, where.type, dtype, trust_remote_code) as network:
            computed.append(network.dtype)
            for seen in _seen(network, domains, batch):
                take(seen)
                meter.advance(seen.answers.targets.numel(), f"measuring {role}")

    of_model, worst = [Measured() for _ in domains], WorstTokens()
    of_reference: list[Totals] | None = None
    if reference is None:
        measure(model, "the model", lambda seen: of_model[seen.domain].totals.add(seen.answers))
    else:
        of_reference = [Totals() for _ in domains]
        with reference_store(tokens, _shared_vocabulary(models)) as store:

            def keep(seen: _Seen) -> None:
                of_reference[seen.domain].add(seen.answers)
                store.write(seen.number, seen.answers)

            def compare(seen: _Seen) -> None:
                kept = store.read(seen.number)
                token_kl = of_model[seen.domain].compare(seen.answers, kept)
                top = seen.answers.log_probs.argmax(-1)
                worst.add(seen.domain, seen.window, token_kl, kept.top, top)

            measure(reference, "the original", keep)
            measure(model, "the compressed model", compare)
    return Quality(
        **figures(of_model, of_reference),
        domains=_by_domain(domains, of_model, of_reference),
        worst=worst.as_text(domains, tokenizers[0]),
        dtype=dtype_label(computed[-1]),
        device=device_label(where),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Seen:
    """A model's answers to a window. number: of all windows; window: of those of its domain."""

    answers: Answers
    number: int
    domain: int
    window: int


def _seen(network: PreTrainedModel, domains: Sequence[Domain], batch: int) -> Iterator[_Seen]:
    number = count()
    for place, domain in enumerate(domains):
        for window, window_answers in enumerate(answers(network, domain.windows, batch)):
            yield _Seen(window_answers, next(number), place, window)


def _by_domain(
    domains: Sequence[Domain], of_model: Sequence[Measured], of_reference: Sequence[Totals] | None
) -> tuple[DomainQuality, ...]:
    """Each text alone; empty if texts have no names."""
    return tuple(
        DomainQuality(
            name=domain.name,
            **figures([of_model[place]], of_reference and [of_reference[place]]),
        )
        for place, domain in enumerate(domains)
        if domain.name
    )


def check_evaluation(
    model: str | Path,
    *,
    text: NamedTexts,
    max_tokens: int = 8192,
    window: int = 512,
    trust_remote_code: bool = False,
) -> None:
    """Raise what `evaluate` would raise of a model's config, its tokenizer and a text, in seconds
    and without its weights: so that other work is not done in vain."""
    facts = describe(model, trust_remote_code=trust_remote_code)
    fitting = fitting_window(window, [facts.positions])
    tokenizer = load_tokenizer(facts.path, trust_remote_code=trust_remote_code)
    read_domains([facts], [tokenizer], text, fitting, max_tokens)


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
