"""The user's text as windows: some to train on, and others, never trained on, to measure with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.windows import check_vocabulary, fitting_window, token_windows
from ders_core.files.texts import Texts, as_paths
from ders_core.hf import load_tokenizer
from ders_core.hf.describe import ModelFacts
from ders_core.repair.settings import RepairSettings

HELD_OUT = 8
"""Without a held-out text, the last of so many parts of each text is held out."""

LEAST_WINDOWS = 8
"""With fewer measured ones an interval says nothing."""

MARK = 24
"""Tokens by which a held-out window is found in what is trained on."""


@dataclass(frozen=True)
class RepairText:
    """training, heldout: int64 `[n, window]`. repeated: how many windows of a held-out text were
    left out, because the training reads what they begin with."""

    training: torch.Tensor
    heldout: torch.Tensor
    repeated: int = 0


def read_windows(
    facts: ModelFacts,
    text: Texts,
    heldout: Texts | None,
    settings: RepairSettings,
    trust_remote_code: bool,
) -> RepairText:
    """The windows of the texts as the original's tokenizer splits them; of a text no more than is
    needed. Raises EvaluationError for a text that cannot be read or is too short."""
    tokenizer = load_tokenizer(facts.path, trust_remote_code=trust_remote_code)
    window = fitting_window(settings.window, [facts.positions])
    reach = settings.steps * settings.batch * window
    if heldout is None:
        reach = max(reach, HELD_OUT * settings.heldout_tokens)

    def windows(path: Texts, tokens: int) -> torch.Tensor:
        words = read_text(path, tokenizer)
        try:
            rows = token_windows(tokenizer, words, window, tokens, before=facts.encoder_decoder)
        except EvaluationError as error:
            raise EvaluationError(f"{', '.join(map(str, as_paths(path)))}: {error}") from error
        check_vocabulary(rows, facts.vocabulary, tokenizer, facts.path)
        return rows

    texts = [windows(path, reach) for path in as_paths(text)]
    most = max(settings.heldout_tokens // (window - 1), 1)
    if heldout is None:
        pairs = [_split(rows, path) for rows, path in zip(texts, as_paths(text), strict=True)]
        training = torch.cat([first for first, _ in pairs])
        held = torch.cat([last for _, last in pairs])
    else:
        others = [windows(path, most * (window - 1)) for path in as_paths(heldout)]
        training, held = torch.cat(texts), torch.cat(others)
    held = held[spread(len(held), most)]
    new = _unseen(held, training)
    kept = held[new]
    if len(kept) < LEAST_WINDOWS:
        repeated = len(held) - len(kept)
        why = f", after {repeated} that the training reads too were left out" if repeated else ""
        raise EvaluationError(
            f"the held-out text makes {len(kept)} windows of {window} tokens{why}, too few to tell "
            f"whether a repair helps; give enough text for {LEAST_WINDOWS}, or a smaller window"
        )
    return RepairText(training, kept, len(held) - len(kept))


def _split(rows: torch.Tensor, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows to train on, and the last part, to measure with."""
    count = -(-len(rows) // HELD_OUT)
    if len(rows) < 2:
        raise EvaluationError(
            f"{path} makes one window of tokens, which cannot be both trained on and measured "
            "with; give more text, or a held-out text too"
        )
    return rows[:-count], rows[-count:]


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, at even distances, so that every text counts."""
    chosen = min(count, most)
    return [number * count // chosen for number in range(chosen)]


def _unseen(held: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Which held-out windows begin with tokens that are nowhere in what is trained on: bool `[n]`.

    Windows are cut end to end, so the text is looked through across their borders.
    """
    flat = training.reshape(-1)
    size = min(MARK, held.shape[1])
    starts = flat[: max(len(flat) - size + 1, 0)]
    unseen = torch.ones(len(held), dtype=torch.bool)
    for number, mark in enumerate(held[:, :size]):
        places = (starts == mark[0]).nonzero().flatten()
        for offset in range(1, size):  # few places are left after one or two
            places = places[flat[places + offset] == mark[offset]]
        unseen[number] = not len(places)
    return unseen
