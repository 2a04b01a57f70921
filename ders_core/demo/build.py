"""Build the demo: text, tokenizer, dense parent, upcycling, fine-tuning, figures."""

from __future__ import annotations

import contextlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ders_core.compute.progress import Progress, quiet
from ders_core.demo.corpus import joined, read_corpus
from ders_core.demo.measured import MODELS, measure
from ders_core.demo.models import Shape, dense_model, save_model, upcycle
from ders_core.demo.result import CALIBRATION, DENSE, FIGURES, HELD_OUT, MOE, DemoResult
from ders_core.demo.tokens import Stream, corpus_tokenizer
from ders_core.demo.train import train
from ders_core.files.output import new_target, output_directory
from ders_core.files.writer import write_json


@dataclass(frozen=True)
class DemoScale:
    """How much is trained. Text sizes in characters, rates are AdamW's peaks."""

    shape: Shape = field(default_factory=Shape)
    dense_steps: int = 160
    moe_steps: int = 80
    batch: int = 6
    window: int = 256
    dense_rate: float = 3e-3
    expert_rate: float = 3e-3
    other_rate: float = 5e-4
    text: int = 150_000
    tokenizer_text: int = 600_000

    @classmethod
    def of_steps(cls, steps: int | None) -> DemoScale:
        """The full scale, but with `steps` training steps of the dense parent and half as many of
        the experts; None for the full number. Fewer steps: built sooner, worse models."""
        if steps is None:
            return cls()
        return cls(dense_steps=steps, moe_steps=steps // 2)


FULL = DemoScale()


def build_demo(
    out: str | Path, *, seed: int = 0, scale: DemoScale = FULL, progress: Progress = quiet
) -> DemoResult:
    """Train the demo's models and write them to the new directory `out`.

    `moe` is in the standard Mixtral layout, bfloat16, with its tokenizer; `dense` is its parent;
    calibration.txt, heldout.txt and the training text come from different files of Python's
    standard library. progress counts training steps, and one for each measured model. Raises
    OutputError if `out` exists; when it is interrupted, nothing stays.
    """
    started = time.monotonic()
    target = new_target(out)
    total = scale.dense_steps + scale.moe_steps + 2 + len(MODELS)
    needs = scale.shape.nbytes + 2 * scale.text  # of characters, each of one byte at least
    with (
        output_directory(target, needs=needs) as partial,
        _quiet_transformers(),
        torch.random.fork_rng(),
    ):
        torch.manual_seed(seed)
        progress(0, total, "reading the standard library")
        corpus = read_corpus()
        (partial / CALIBRATION).write_text(joined(corpus.calibration, scale.text), encoding="utf-8")
        held_out = joined(corpus.heldout, scale.text)
        (partial / HELD_OUT).write_text(held_out, encoding="utf-8")
        progress(1, total, "training the tokenizer")
        tokenizer = corpus_tokenizer(corpus.train, scale.tokenizer_text, scale.shape.vocabulary)
        progress(2, total, "turning the text into tokens")
        stream = Stream(tokenizer, corpus.train, batch=scale.batch, window=scale.window, seed=seed)
        dense = dense_model(scale.shape, scale.window)
        train(
            dense,
            stream,
            steps=scale.dense_steps,
            groups=[{"params": list(dense.parameters()), "lr": scale.dense_rate}],
            step_done=_steps(progress, 2, total, "dense parent", scale.dense_steps),
        )
        save_model(dense, tokenizer, partial / DENSE)
        moe = upcycle(dense, scale.shape, stream, seed)
        moe.config.output_router_logits = True  # the loss includes the balancing term
        train(
            moe,
            stream,
            steps=scale.moe_steps,
            groups=_groups(moe, scale),
            step_done=_steps(progress, 2 + scale.dense_steps, total, "experts", scale.moe_steps),
        )
        moe.config.output_router_logits = False
        save_model(moe, tokenizer, partial / MOE)
        del dense, moe
        perplexities, cosine = measure(
            partial,
            tokenizer,
            held_out,
            window=scale.window,
            batch=scale.batch,
            batch_done=_batches(progress, total),
        )
        seconds = time.monotonic() - started
        write_json(
            partial / FIGURES,
            {
                "seed": seed,
                "perplexities": perplexities,
                "mean_cosine": cosine,
                "steps": {"dense": scale.dense_steps, "moe": scale.moe_steps},
                "seconds": round(seconds, 1),
                "scale": asdict(scale),
                "versions": versions(),
            },
        )
    progress(total, total, "built")
    return DemoResult.of(target, perplexities, cosine)


def versions() -> dict[str, str]:
    """Of what a demo is trained with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _groups(moe: PreTrainedModel, scale: DemoScale) -> list[dict[str, Any]]:
    """A separate, higher rate for the experts: what is learned goes into the experts."""
    experts: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in moe.named_parameters():
        (experts if ".mlp.experts." in name else others).append(parameter)
    return [
        {"params": experts, "lr": scale.expert_rate},
        {"params": others, "lr": scale.other_rate},
    ]


def _steps(
    progress: Progress, begin: int, total: int, what: str, count: int
) -> Callable[[int, float], None]:
    def done(step: int, loss: float) -> None:
        progress(begin + step, total, f"{what}: step {step} of {count}, loss {loss:.2f}")

    return done


def _batches(progress: Progress, total: int) -> Callable[[str, int, int], None]:
    def done(model: str, batch: int, batches: int) -> None:
        begin = total - len(MODELS) + MODELS.index(model)
        progress(begin, total, f"measuring {model} on held-out text: batch {batch} of {batches}")

    return done


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
