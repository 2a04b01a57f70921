"""Scores: what each unit takes and loses with each codec that it can have. One file, used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ders_core.codecs import Codec
from ders_core.tune.coupling import Coupling
from ders_core.tune.units import Unit

FEW_TOKENS = 100
"""An expert that fewer tokens of the calibration reached borrows most of what is known of it."""


@dataclass(frozen=True)
class Candidate:
    """One codec of one unit. nbytes: foretold where the codec does not fix them (`is_exact`).
    noise: ½ Σ C E², nats a token. output: E‖(Ŵ−W)x‖² / E‖Wx‖² of the group. router: ½ Σ R E² (see
    `pipeline.tipping`). gain: the effective one of deltas, 1 elsewhere. error: ‖Ŵ−W‖/‖W‖."""

    codec: Codec
    nbytes: int
    is_exact: bool
    noise: float = 0.0
    output: float = 0.0
    router: float = 0.0
    gain: float = 1.0
    error: float = 0.0


@dataclass(frozen=True)
class UnitScores:
    """read: how much of its bytes is read for a token, on average. before: the layer behind which
    the first routers are that its errors reach."""

    unit: Unit
    candidates: tuple[Candidate, ...]
    read: float
    before: int

    def bits(self, candidate: Candidate) -> float:
        """Bits a weight that a candidate takes."""
        return 8 * candidate.nbytes / self.unit.weights


@dataclass(frozen=True)
class RareExperts:
    """Experts of a layer that few tokens reached: their costs are mostly their layer's average.
    experts: how many the layer has."""

    layer: int
    rare: tuple[int, ...]
    experts: int

    @property
    def sentence(self) -> str:
        return (
            f"layer {self.layer}: {len(self.rare)} of {self.experts} experts saw fewer than "
            f"{FEW_TOKENS} tokens, and borrow from the others"
        )


@dataclass(frozen=True)
class Scores:
    """identity: of the checkpoint. calibration: SHA-256 of its file. bytes_total: of the
    checkpoint's weight files. bytes_beside: of what has no unit, headers included. bytes_read: of
    that, for a token. coupling: with a column for each unit of deltas, in their order.
    unmeasured: units of which the calibration does not know what errors cost; they lose nothing."""

    identity: str
    calibration: str
    per_expert: bool
    bytes_total: int
    bytes_beside: int
    units: tuple[UnitScores, ...]
    coupling: Coupling
    rare: tuple[RareExperts, ...] = ()
    unmeasured: tuple[str, ...] = ()

    @cached_property
    def column(self) -> Mapping[int, int]:
        """The column of `coupling.shrinkage` of each unit of deltas, by the unit's number."""
        deltas = [n for n, scored in enumerate(self.units) if scored.unit.part == "deltas"]
        return {number: column for column, number in enumerate(deltas)}

    @property
    def expert_weights(self) -> int:
        """How many weights all experts have."""
        return sum(each.unit.weights for each in self.units if each.unit.part == "deltas")


def scores_file(directory: Path, identity: str, calibration: str, *, per_expert: bool) -> Path:
    """Where the scores of a checkpoint by a calibration are kept. identity: of the checkpoint.
    calibration: SHA-256 of its file."""
    whose = "experts" if per_expert else "groups"
    return directory / f"{identity[:24]}-{calibration[:24]}-{whose}.json"
