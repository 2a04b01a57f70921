"""Scores are made, or taken from an earlier time: a sample of each unit in each codec."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

from ders_core.checkpoint import Checkpoint
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.decompose.base import BaseContext
from ders_core.errors import CheckpointError, OutputError
from ders_core.files.checksum import file_checksum
from ders_core.files.content import cache_directory
from ders_core.files.inputs import unchanged_inputs
from ders_core.later import torch
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.knowledge import group_knowledge, tensor_knowledge
from ders_core.pipeline.plan import Plan, resolve
from ders_core.pipeline.predicted import removal_costs, routers_behind
from ders_core.pipeline.recipe_files import check_files
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.tune.candidates import codecs_for
from ders_core.tune.coupling import Coupling
from ders_core.tune.earlier import earlier_scores, is_measured, model_weights
from ders_core.tune.saved import save_scores
from ders_core.tune.scores import (
    FEW_TOKENS,
    Candidate,
    RareExperts,
    Scores,
    UnitScores,
    scores_file,
)
from ders_core.tune.stack_scores import GroupScorer, tensor_candidates
from ders_core.tune.units import Unit, units_of


@unchanged_inputs()
def score(
    checkpoint: Checkpoint,
    calibration: Path,
    *,
    per_expert: bool = False,
    directory: Path | None = None,
    progress: Progress = quiet,
) -> Scores:
    """Encode a sample of each unit of a checkpoint with each codec that it can have, on the CPU.

    calibration: with gradients; of what it measured outside the experts, other tensors lose
    nothing. per_expert: choose for each expert. directory: where scores are kept, and taken from if
    they are there; None: the user's cache. progress counts units. Raises CheckpointError if the
    calibration is of another checkpoint or has no gradients, or if a file is written meanwhile.
    """
    measured = Calibration.open(calibration)
    check_files(_skeleton(calibration), checkpoint)
    if not measured.has_gradients:
        raise CheckpointError(
            f"{measured.path} has no gradients, so it does not tell what errors cost; run ders "
            "calibrate --gradients --others"
        )
    digest = file_checksum(measured.path)
    file = _place(directory, checkpoint.identity, digest, per_expert=per_expert)
    kept = file and earlier_scores(file, checkpoint, digest, measured, per_expert=per_expert)
    if kept:
        progress(len(kept.units), len(kept.units), "scores of an earlier time are used again")
        return kept
    checkpoint.store.hold()
    with torch.inference_mode():
        scores = _Scoring(checkpoint, measured, digest, per_expert, progress).scores()
    if file is not None:
        with suppress(OutputError):  # a cache that cannot be written costs time only
            save_scores(scores, file)
    return scores


def _place(directory: Path | None, identity: str, digest: str, *, per_expert: bool) -> Path | None:
    with suppress(RuntimeError):  # no home
        place = directory or cache_directory() / "scores"
        return scores_file(place, identity, digest, per_expert=per_expert)
    return None


def _skeleton(calibration: Path) -> Recipe:
    """A recipe in which nothing is lost, for what does not depend on the codecs."""
    lossless = {"codec": "lossless"}
    return Recipe(
        name="scores",
        calibration=calibration,
        rules=(Rule.model_validate(lossless),),
        base_codec=(BaseRule.model_validate(lossless),),
        base_error="shared",
        others=(OtherRule.model_validate(lossless),),
    )


class _Scoring:
    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration,
        digest: str,
        per_expert: bool,
        progress: Progress,
    ) -> None:
        self._checkpoint, self._calibration, self._digest = checkpoint, calibration, digest
        self._per_expert = per_expert
        self._recipe = _skeleton(calibration.path)
        self._units = units_of(checkpoint, per_expert=per_expert)
        self._weights = model_weights(self._units)
        self._measured = set(calibration.others.names)
        self._meter = Meter(len(self._units), progress)

    def scores(self) -> Scores:
        deltas = [unit for unit in self._units if unit.part == "deltas"]
        columns = [(cast(tuple[int, str], unit.group), unit.expert) for unit in deltas]
        plan = resolve(self._recipe, self._checkpoint)
        return Scores(
            self._checkpoint.identity,
            self._digest,
            self._per_expert,
            self._checkpoint.bytes_total,
            _bytes_beside(plan, self._checkpoint),
            tuple(self._all_scored(plan)),
            Coupling.of(self._calibration, columns),
            tuple(_rare(self._checkpoint, self._calibration)),
            tuple(u.name for u in self._units if not is_measured(u, self._measured)),
        )

    def _all_scored(self, plan: Plan) -> list[UnitScores]:
        keys = [entry.key for entry in plan.entries]
        removal = removal_costs(self._calibration, keys)
        context = BaseContext("cpu", self._calibration.tokens_per_expert)
        found: dict[Unit, UnitScores] = {}
        for key in keys:
            group = self._checkpoint.group(*key)
            known = group_knowledge(group, self._calibration, removal.get(key, ()), len(keys))
            scorer = GroupScorer(group, self._recipe, known, context, self._per_expert)
            deltas = [u for u in self._units if u.group == key and u.part == "deltas"]
            (base,) = [u for u in self._units if u.group == key and u.part == "base"]
            tried = codecs_for(deltas[0], self._weights, gradients=True)
            for unit, candidates in zip(deltas, scorer.deltas(tried), strict=True):
                found[unit] = self._scored(unit, candidates)
            tried = codecs_for(base, self._weights, gradients=True)
            found[base] = self._scored(base, scorer.base(tried))
            self._meter.advance(len(deltas) + 1, f"scored layer {key[0]}, {key[1]}")
        for unit in self._units:
            if unit.part == "tensor":
                known_of = partial(tensor_knowledge, calibration=self._calibration)
                gradients = is_measured(unit, self._measured)
                tried = codecs_for(unit, self._weights, gradients=gradients)
                tensor = self._checkpoint.others[unit.name]
                candidates = tensor_candidates(tensor, self._recipe, known_of, tried)
                found[unit] = self._scored(unit, candidates)
                self._meter.advance(1, f"scored {unit.name}")
        return [found[unit] for unit in self._units]

    def _scored(self, unit: Unit, candidates: tuple[Candidate, ...]) -> UnitScores:
        if unit.part == "tensor":
            tensor = self._checkpoint.others[unit.name]
            rows = tensor.info.shape[0]
            read = 1 / rows if unit.kind == "embedding" else 1.0
            return UnitScores(unit, candidates, read, routers_behind(tensor))
        layer = cast(int, unit.layer)
        if unit.part == "base":
            return UnitScores(unit, candidates, 1.0, layer)
        routed = self._calibration.routed(layer).double() / self._calibration.tokens
        chosen = routed.mean() if unit.expert is None else routed[unit.expert]
        return UnitScores(unit, candidates, float(chosen), layer)


def _bytes_beside(plan: Plan, checkpoint: Checkpoint) -> int:
    """Of the weight files: what no unit takes. Biases of experts are part of it."""
    coded = sum(entry.bytes_after for entry in plan.entries)
    coded += sum(entry.bytes_after for entry in plan.others)
    biases = sum(bias.nbytes for group in checkpoint.groups() for bias in group.added)
    return plan.bytes_after - coded + biases


def _rare(checkpoint: Checkpoint, calibration: Calibration) -> list[RareExperts]:
    found = []
    for layer in checkpoint.moe_layers:
        routed = calibration.routed(layer).tolist()
        rare = tuple(expert for expert, count in enumerate(routed) if count < FEW_TOKENS)
        if rare:
            found.append(RareExperts(layer, rare, len(routed)))
    return found
