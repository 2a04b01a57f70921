"""How a model holds the experts of a packed checkpoint."""

from __future__ import annotations

from typing import Literal, get_args

from ders_core.errors import DersError

Mode = Literal["synthesized", "cached", "packed"]
"""`synthesized`: whole weights, made while the model loads; an ordinary model. `cached`: packed; an
expert's weights are made when a token is given to it, and the last ones are kept. `packed`: packed;
products with the base are taken once for a token, and those with deltas beside them."""

MODES: tuple[Mode, ...] = get_args(Mode)

CACHE_BYTES = 2_000_000_000
"""What the mode `cached` keeps if nobody says otherwise."""


def parse_mode(text: str) -> Mode:
    """A mode from its name. Raises DersError that lists all."""
    for mode in MODES:
        if mode == text:
            return mode
    raise DersError(f"there is no mode {text!r} of experts; give one of {', '.join(MODES)}")
