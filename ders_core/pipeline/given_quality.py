"""Figures of an evaluation from a file or a caller: refused if no measurement gives them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ders_core.errors import EvaluationError, sentence_of
from ders_core.files.missing import advice, local_path
from ders_core.files.untrusted_json import parse_json
from ders_core.pipeline.quality import (
    EVALUATED,
    KL,
    KL_HIGH,
    KL_LOW,
    KL_P95,
    KL_P99,
    PERPLEXITY,
    REFERENCE_PERPLEXITY,
    ROUTING_AGREEMENT,
    TOKENS,
    TOP1_AGREEMENT,
    Quality,
    TextQuality,
)

ROUNDING = 1e-3
"""The sums of an evaluation are off by a smaller share."""

RANGES = {
    TOKENS.key: (1.0, math.inf),
    PERPLEXITY.key: (1 - ROUNDING, math.inf),
    REFERENCE_PERPLEXITY.key: (1 - ROUNDING, math.inf),
    TOP1_AGREEMENT.key: (0.0, 1.0),
    ROUTING_AGREEMENT.key: (0.0, 1.0),
}
"""Figure -> the least and the largest value; any other is at least 0."""

ASCENDING = ((KL_LOW.key, KL.key), (KL.key, KL_HIGH.key), (KL_P95.key, KL_P99.key))
"""Pairs of figures of which the first is not above the second."""


def check_quality(measured: Mapping[str, Any], where: str) -> Quality:
    """Measured figures from outside, such as `Quality.to_dict()` gives; where and how long they
    were measured may be left out. where: names their source.

    Raises EvaluationError if one is missing, of another type, or cannot be.
    """
    try:
        quality = Quality.model_validate({"device": "", "seconds": 0.0, **measured})
    except ValidationError as error:
        known = ", ".join(figure.key for figure in EVALUATED)
        raise EvaluationError(
            f"{sentence_of(error, where)}; give the output of `ders eval --json`, which has {known}"
        ) from error
    fault = _fault(quality)
    if fault is not None:
        raise EvaluationError(
            f"{where}: {fault}, which no measurement gives; give the output of `ders eval --json`"
        )
    return quality


def read_quality(file: str | Path) -> Quality:
    """The figures in a JSON file of `ders eval --json`, in any of JSON's encodings.

    Raises EvaluationError if it cannot be read or holds something else.
    """
    path = local_path(file, EvaluationError)
    try:
        content = path.read_bytes()
        measured = parse_json(content.decode(json.detect_encoding(content)))
    except FileNotFoundError as error:
        raise EvaluationError(f"{path} does not exist; {advice(path)}") from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise EvaluationError(
            f"{path} is not JSON: {error}; give the output of `ders eval --json`"
        ) from error
    if not isinstance(measured, dict):
        raise EvaluationError(f"{path} holds no figures; give the output of `ders eval --json`")
    return check_quality(measured, str(path))


def _fault(quality: Quality) -> str | None:
    """What cannot be in measured figures, such as 'kl is nan'; None if there is nothing."""
    fault = _text_fault(quality)
    for number, domain in enumerate(quality.domains):
        of_domain = _text_fault(domain)
        if fault is None and of_domain is not None:
            fault = f"domains[{number}].{of_domain}"
    most = _largest(quality.kl)
    for number, token in enumerate(quality.worst):
        if fault is None and not 0 <= token.kl <= most:
            fault = f"worst[{number}].kl is {token.kl}"
    if fault is None and not 0 <= quality.seconds < math.inf:
        fault = f"seconds is {quality.seconds}"
    return fault


def _text_fault(text: TextQuality) -> str | None:
    """As `_fault`, of the figures of one text."""
    values = {
        figure.key: value
        for figure in EVALUATED
        if (value := getattr(text, figure.key)) is not None
    }
    for key, value in values.items():
        least, most = RANGES.get(key, (0.0, _largest(text.kl)))
        if not least <= value <= most:  # nor is NaN
            return f"{key} is {value}"
    for low, high in ASCENDING:
        if low in values and high in values and values[low] > values[high] * (1 + ROUNDING):
            return f"{low} is {values[low]} and {high} is {values[high]}"
    return None


def _largest(kl: float | None) -> float:
    """Of any part of a mean KL: finite if the mean is."""
    return sys.float_info.max if kl is not None and math.isfinite(kl) else math.inf
