"""What the tests of `compress` share: a recipe, a check of refusals, a progress that stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.messages import raises_saying

from ders_core.codecs import Quantized
from ders_core.errors import Cancelled, DersError
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule

Snapshot = Callable[[Path], dict[str, str]]

TWO_BITS = Recipe(name="two", rules=(Rule(codec=Quantized(bits=2)),))


def refused(
    kind: type[DersError],
    source: Path,
    out: Path,
    recipe: Recipe,
    *facts: object,
    resume: bool = False,
) -> None:
    """`compress` raises `kind` with these facts, and nothing stands at `out` that did not."""
    existed = out.exists()
    with raises_saying(kind, *facts):
        compress(source, out, recipe, resume=resume)
    assert out.exists() == existed


class Steps:
    """A progress callback that counts, checks what it is told, and may stop the work."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[int, int, str]] = []
        self.stop_at = stop_at

    def __call__(self, done: int, total: int, message: str) -> None:
        if self.calls:
            assert done >= self.calls[-1][0]
            assert total == self.calls[-1][1]
        assert 0 <= done <= total
        assert message
        self.calls.append((done, total, message))
        if len(self.calls) == self.stop_at:
            raise Cancelled("stopped by the test")
