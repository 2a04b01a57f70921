"""An original that ran once, and any number of models that are compared with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ders_core.compute.device import device_label
from ders_core.compute.precision import dtype_label
from ders_core.evaluate.domains import Domain
from ders_core.evaluate.measured import Measured, figures
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import ReferenceStore, reference_store
from ders_core.evaluate.running import Runner, Seen
from ders_core.evaluate.worst_tokens import WorstTokens
from ders_core.pipeline.quality import DomainQuality, Quality, WorstToken


@dataclass(frozen=True)
class Original:
    """What the original said of the texts. totals: of each domain."""

    domains: Sequence[Domain]
    tokenizer: PreTrainedTokenizerBase
    totals: Sequence[Totals]
    store: ReferenceStore
    runner: Runner

    def compare(self, model: str | Path) -> Quality:
        """Run a model with the original's tokenizer and vocabulary, which are not looked at.

        Raises as `ders_core.evaluate.forward`; EvaluationError if the store was changed.
        """
        started = time.monotonic()
        measured, worst = [Measured() for _ in self.domains], WorstTokens()

        def compare(seen: Seen) -> None:
            kept = self.store.read(seen.number)
            compared = measured[seen.domain].compare(seen.answers, kept)
            token_kl, top = compared.token_kl.numpy(), compared.top
            worst.add(seen.domain, seen.window, token_kl, kept.top, top)

        dtype = self.runner.run(model, "the compressed model", self.domains, compare)
        return quality_of(
            self.domains,
            measured,
            self.totals,
            worst.as_text(self.domains, self.tokenizer),
            dtype,
            self.runner.where,
            time.monotonic() - started,
        )


@contextmanager
def original_answers(
    original: str | Path,
    domains: Sequence[Domain],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    runner: Runner,
) -> Iterator[Original]:
    """Run the original, and keep on disk what it said until the block ends.

    Raises as `ders_core.evaluate.forward`; EvaluationError if the disk has no room.
    """
    totals = [Totals() for _ in domains]
    with reference_store(sum(domain.predicted for domain in domains), vocabulary) as store:

        def keep(seen: Seen) -> None:
            totals[seen.domain].add(seen.answers)
            store.write(seen.number, seen.answers)

        runner.run(original, "the original", domains, keep)
        yield Original(domains, tokenizer, totals, store, runner)


def quality_of(
    domains: Sequence[Domain],
    measured: Sequence[Measured],
    references: Sequence[Totals] | None,
    worst: Sequence[WorstToken],
    dtype: torch.dtype,
    where: torch.device,
    seconds: float,
) -> Quality:
    """All texts together, and each alone if they have names."""
    apart = [
        DomainQuality(
            name=domain.name,
            **figures([measured[place]], references and [references[place]]),
        )
        for place, domain in enumerate(domains)
        if domain.name
    ]
    return Quality(
        **figures(measured, references),
        domains=tuple(apart),
        worst=tuple(worst),
        dtype=dtype_label(dtype),
        device=device_label(where),
        seconds=seconds,
    )
