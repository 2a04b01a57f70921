"""Attacks that are told by a seed: all are tried, and those that did harm are named at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def refusals(name: str, seeds: Iterable[Any], attack: Callable[[Any], int]) -> int:
    """Attack with each seed; returns how many refusals came of it. Raises AssertionError with the
    seeds whose attack raised anything, also if a person ends it before the last."""
    failures: dict[Any, BaseException] = {}
    refused = 0
    for seed in seeds:
        try:
            refused += attack(seed)
        except KeyboardInterrupt:
            if not failures:
                raise
            break
        except BaseException as error:
            failures[seed] = error
    if failures:
        seed, first = next(iter(failures.items()))
        raise AssertionError(f"{name}: seeds {sorted(failures)}; the first: {first!r}") from first
    return refused
