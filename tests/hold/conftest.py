"""Attacks in a short form for every run of the suite, and in a long one on request."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

LONG = "DERS_HOLD_LONG"
"""The environment variable that asks for the long forms: hours, not seconds."""


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """rounds(short, long): how many times an attack is tried."""
    return lambda short, long: long if os.environ.get(LONG) else short
