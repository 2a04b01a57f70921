"""The files that `benchmarks/scale.py` measures on, its baselines, and what it measured so far."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from processes import Measured, measure
from scale_table import Goal, Table, Taken
from upcycled import FFN, HIDDEN, evict, first_layers, make_checkpoint, weight_files

WORKS = str(Path(__file__).with_name("scale_works.py"))

RECIPES_A_COPY = 4
"""So many recipes that follow each other are compared with one copy."""


@dataclass(frozen=True)
class Machine:
    """What bounds a loop, on one thread: copy, ns to copy a weight in bfloat16; products, the
    floating-point operations in a second of products of large matrices in float32. And how many
    times as much two threads do at once: copies, multiplied."""

    copy: float
    products: float
    copies: float
    multiplied: float

    @classmethod
    def measured(cls) -> Machine:
        torch.set_num_threads(1)
        sources = torch.ones(2, 1 << 26, dtype=torch.bfloat16)
        targets, matrix = torch.empty_like(sources), torch.ones(2048, 2048)
        outs = torch.empty(2, 2048, 2048)
        copying = one_and_two(lambda thread: targets[thread].copy_(sources[thread]))
        product = one_and_two(lambda thread: torch.mm(matrix, matrix, out=outs[thread]))
        return cls(
            1e9 * copying[0] / sources[0].numel(),
            2.0 * 2048**3 / product[0],
            *(2 * alone / together for alone, together in (copying, product)),
        )


def one_and_two(work: Callable[[int], object]) -> tuple[float, float]:
    """The least seconds of ten calls on one thread, and of ten pairs at once. work: given which."""
    with ThreadPoolExecutor(2) as pool:
        alone = min(seconds(lambda: work(0)) for _ in range(10))
        return alone, min(seconds(lambda: [*pool.map(work, range(2))]) for _ in range(10))


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@dataclass
class Copy:
    """Of `source`: what it took, and with how many more recipes it is compared."""

    source: Path
    seconds: float
    recipes: int


class Bench:
    """Makes the checkpoints, measures, and keeps what lines took.

    experts: of a layer. only: lines whose titles contain one of these words, all if there are none;
    without: lines whose titles contain one of these are left out.
    """

    def __init__(
        self,
        place: Path,
        device: str,
        layers: int,
        experts: int,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> None:
        self.place, self.device, self.layers, self.experts = place, device, layers, experts
        self._only, self._without = only, without
        self.table, self._copy = Table(), Copy(place, 0.0, 0)

    def has(self, title: str) -> bool:
        """Whether the words on the command line choose this line."""
        chosen = not self._only or any(word in title for word in self._only)
        return chosen and not any(word in title for word in self._without)

    @cached_property
    def full(self) -> Path:
        make_checkpoint(self.place / "full", self.layers, experts=self.experts)
        return self.place / "full"

    def first(self, layers: int) -> Path:
        directory = self.place / f"first{layers}"
        return first_layers(self.full, directory, layers, experts=self.experts)

    @cached_property
    def machine(self) -> Machine:
        return Machine.measured()

    def cold(self, what: str, source: Path, *rest: str) -> Measured:
        evict(source)
        return measure(WORKS, what, str(source), *rest)

    @contextmanager
    def out(self) -> Iterator[Path]:
        path = self.place / "out"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def read(self) -> float:
        """Seconds of `cat` of the whole checkpoint; adds its line."""
        evict(self.full)
        files = [*weight_files(self.full)]
        command = ["cat", *map(str, files)]
        taken = seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        self.add(f"cat of {gigabytes(self.full):.2f} GB", None, Taken(taken, 1.0))
        return taken

    def forget_copy(self) -> None:
        """Copy anew for the next recipe."""
        self._copy.recipes = 0

    def copied(self, source: Path) -> float:
        """Seconds of `cp` and the `sync` after it, beside this recipe or one of the last three;
        adds its line where it copies."""
        if self._copy.source != source or not self._copy.recipes:
            self._copy = Copy(source, self._copy_now(source), RECIPES_A_COPY)
            title = f"cp and sync of {gigabytes(source):.2f} GB"
            self.add(title, None, Taken(self._copy.seconds, 1.0))
        self._copy.recipes -= 1
        return self._copy.seconds

    def _copy_now(self, source: Path) -> float:
        evict(source)
        with self.out() as out:

            def copy() -> None:
                subprocess.run(["cp", "-rL", source, out], check=True)
                subprocess.run(["sync", "-f", out], check=True)

            return seconds(copy)

    def timed(
        self,
        title: str,
        goal: Goal,
        cost: Measured,
        baseline: float,
        layers: int,
        products: float = 0.0,
        size: int = 0,
    ) -> None:
        """Add what a process took that worked on the weights of the experts of so many layers.

        baseline: seconds. products: floating-point operations of products of matrices that the
        work is made of, if these bound it, and not memory. size: as of `Taken`.
        """
        weights = layers * self.experts * 3 * FFN * HIDDEN
        limit = self.machine.copy, "copy"
        if products:
            limit = 1e9 * products / self.machine.products / weights, "products"
        ratio = cost.seconds / baseline
        self.add(title, goal, Taken(cost.seconds, ratio, cost, weights, limit, size))

    def add(self, title: str, goal: Goal | None, taken: Taken) -> None:
        print(f"{title}: {taken.seconds:.2f} s, {taken.ratio:.2f}", file=sys.stderr, flush=True)
        self.table.add(title, goal, taken)


def size_of(directory: Path) -> int:
    """Bytes of its weight files."""
    return sum(path.stat().st_size for path in weight_files(directory))


def gigabytes(directory: Path) -> float:
    return size_of(directory) / 1e9
