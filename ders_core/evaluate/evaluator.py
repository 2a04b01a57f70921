"""Quick evaluation: a model alone, or against a reference, one in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ders_core.compute.device import resolve_device
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.evaluate.domains import Domain, read_domains
from ders_core.evaluate.measured import Measured
from ders_core.evaluate.original import Original, original_answers, quality_of
from ders_core.evaluate.running import Runner
from ders_core.evaluate.vocabulary import shared_vocabulary
from ders_core.evaluate.windows import check_sizes, fitting_window
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.named_texts import NamedTexts
from ders_core.hf import describe, load_tokenizer, shared_dtype
from ders_core.pipeline.quality import Quality
from ders_core.runtime.modes import Mode


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
    mode: Mode = "synthesized",
    progress: Progress = quiet,
) -> Quality:
    """Measure `model` on a text, and compare it token by token with `reference`.

    Both are directories, packed or not. text: one or more files or directories of UTF-8 text or
    `.jsonl` (see `ders_core.files.texts`); chats are written by the reference's chat template.
    A mapping names texts that are measured apart too, with max_tokens shared out equally.
    window: tokens of context, not overlapping, and no more than the models' context; an encoder
    reads as many before. batch: windows at once. dtype: of the computation; by default the
    checkpoints', but float32 where the device has no instructions for it (see
    `ders_core.compute.precision`). trust_remote_code: run code that comes with a model. mode: how
    packed models hold their experts (see `ders_core.runtime.modes`). The
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
    meter = Meter(len(paths) * sum(domain.predicted for domain in domains), progress)
    runner = Runner(where, dtype, batch, trust_remote_code, meter, mode)
    if reference is None:
        quality = _alone(model, domains, runner)
    else:
        vocabulary = shared_vocabulary(models)
        with original_answers(reference, domains, tokenizers[0], vocabulary, runner) as original:
            quality = original.compare(model)
    return quality.model_copy(update={"seconds": time.monotonic() - started})


@contextmanager
def original_on_text(
    original: str | Path,
    text: NamedTexts,
    *,
    device: str = "cpu",
    max_tokens: int = 8192,
    window: int = 512,
    batch: int = 8,
    trust_remote_code: bool = False,
    progress: Progress = quiet,
) -> Iterator[Original]:
    """Run an original once, for any number of packed checkpoints that are made of it within the
    block. Parameters are those of `evaluate`; progress counts the tokens of the original, and then
    says what is measured. Raises as `evaluate`."""
    where = resolve_device(device)
    check_sizes(window, max_tokens, batch)
    facts = describe(original, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(facts.path, trust_remote_code=trust_remote_code)
    window = fitting_window(window, [facts.positions])
    domains = read_domains([facts], [tokenizer], text, window, max_tokens)
    meter = Meter(sum(domain.predicted for domain in domains), progress)
    runner = Runner(where, shared_dtype([facts], where), batch, trust_remote_code, meter)
    vocabulary = shared_vocabulary([facts, facts])
    with original_answers(original, domains, tokenizer, vocabulary, runner) as ran:
        yield ran


def _alone(model: str | Path, domains: Sequence[Domain], runner: Runner) -> Quality:
    """A model without an original."""
    measured = [Measured() for _ in domains]
    dtype = runner.run(
        model,
        "the model",
        domains,
        lambda seen: measured[seen.domain].totals.add(seen.answers),
    )
    return quality_of(domains, measured, None, (), dtype, runner.where, 0.0)


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
    text_domains(
        model, text, max_tokens=max_tokens, window=window, trust_remote_code=trust_remote_code
    )


def text_domains(
    model: str | Path,
    text: NamedTexts,
    *,
    max_tokens: int = 8192,
    window: int = 512,
    trust_remote_code: bool = False,
) -> list[Domain]:
    """The windows on which `evaluate` measures a model; its weights are not read. Raises as it
    does."""
    facts = describe(model, trust_remote_code=trust_remote_code)
    fitting = fitting_window(window, [facts.positions])
    tokenizer = load_tokenizer(facts.path, trust_remote_code=trust_remote_code)
    return read_domains([facts], [tokenizer], text, fitting, max_tokens)
