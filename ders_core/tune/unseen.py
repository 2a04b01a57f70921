"""Whether the text that proves a recipe is another than the calibration's."""

from __future__ import annotations

from pathlib import Path

from ders_core.checkpoint import Checkpoint
from ders_core.errors import EvaluationError
from ders_core.evaluate.evaluator import text_domains
from ders_core.pipeline.calibration import Calibration
from ders_core.tune.measuring import Setting

MOST_SEEN = 0.1
"""The share of windows with a piece that the calibration read, above which a text does not prove
anything. Licences and templates come again in honest texts."""


def check_unseen(checkpoint: Checkpoint, calibration: Path, setting: Setting) -> tuple[str, ...]:
    """What is to be told of it, as sentences; nothing where the texts are apart.

    Raises EvaluationError if much of the text that is measured on was read by the calibration, and
    as `ders_core.evaluate.evaluator.text_domains` does; CheckpointError.
    """
    seen = Calibration.open(calibration).seen
    if not seen.digests:
        return (
            "the calibration does not tell which text it read, so see to it that quality is "
            "measured on another",
        )
    domains = text_domains(
        checkpoint.path,
        setting.text,
        max_tokens=setting.max_tokens,
        window=setting.window,
        trust_remote_code=setting.trust_remote_code,
    )
    total = sum(len(domain.windows) for domain in domains)
    known = sum(seen.count(domain.windows) for domain in domains)
    hold = "holds" if known == 1 else "hold"
    if known > MOST_SEEN * total:
        raise EvaluationError(
            f"{known} of {total} windows of the text to measure on {hold} text that {calibration} "
            "read; give text that it never saw, or calibrate on other text"
        )
    if not known:
        return ()
    return (
        f"{known} of {total} windows of the text that was measured on {hold} a piece that the "
        "calibration read too",
    )
