"""What is checked of numbers that a GPU computes, which is not waited for at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ders_core.errors import DersError
from ders_core.later import torch


@dataclass(frozen=True)
class Check:
    """holds: bool `[]` on a GPU. error: what is raised if it does not."""

    holds: torch.Tensor
    error: DersError


_LATER: ContextVar[list[Check] | None] = ContextVar("checks that are made later", default=None)


@contextmanager
def checked_later() -> Iterator[list[Check]]:
    """Collect the checks that the block makes on a GPU; who opens it raises their errors once it
    knows. Those on the CPU are made at once."""
    checks = list[Check]()
    token = _LATER.set(checks)
    try:
        yield checks
    finally:
        _LATER.reset(token)


def check(holds: torch.Tensor, error: DersError) -> None:
    """Raise an error unless it holds, bool `[]`; outside of `checked_later` a GPU is waited for."""
    later = _LATER.get()
    if later is not None and holds.device.type != "cpu":
        later.append(Check(holds, error))
    elif not bool(holds):
        raise error
