"""Experts recognised by structure alone, for models that no layout entry names.

Two kinds of evidence: matrices of one shape under an index inside a layer, or several tensors that
agree in their first dimension. The result is a `Layout` like any other, so that nothing downstream
knows the difference.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import Literal

from ders_core.checkpoint.layouts import Layout, Weights
from ders_core.checkpoint.names import number_of
from ders_core.files.spec import TensorSpec

LEAST_SURE = 0.6
"""Below it, siblings of one shape may be anything: heads, codebooks, quantizers."""

MOST_TRIED = 64
"""Candidates, by their bytes: the real experts are among the first."""

NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
DOWN = re.compile(r"down|w2|wo\b|fc2|output|out_proj|c_proj|4h_to_h|w_out")
GATE = re.compile(r"gate|w1\b|wi_0|wg\b|fc3")

Role = Literal["gate", "up", "down"]
Matrix = tuple[int, int]


@dataclass(frozen=True)
class Guess:
    """sure: from 0 to 1. because: a sentence with the evidence."""

    layout: Layout
    sure: float
    because: str


@dataclass(frozen=True)
class _Candidate:
    """Experts of one form: block with `{layer}`, name of each weight -> shape of one expert."""

    block: str
    count: int
    weights: Mapping[str, Matrix]
    nbytes: int


def by_structure(specs: Mapping[str, TensorSpec], declared: Collection[int]) -> Guess | None:
    """The experts that take the most bytes, if it is sure enough that they are experts.

    specs: of each tensor; names with braces would be placeholders, and are left out. declared:
    numbers of experts that the config names.
    """
    specs = {name: spec for name, spec in specs.items() if not {"{", "}"} & set(name)}
    candidates = [*_siblings(specs), *_stacked(specs)]
    for candidate in nlargest(MOST_TRIED, candidates, key=lambda candidate: candidate.nbytes):
        guess = _judge(candidate, specs, declared)
        if guess is not None:
            return guess
    return None


def _siblings(specs: Mapping[str, TensorSpec]) -> Iterator[_Candidate]:
    """Matrices of one shape whose names differ in an index, within one layer."""
    sets: dict[tuple[str, str], dict[int, TensorSpec]] = defaultdict(dict)
    for name, spec in specs.items():
        numbers = list(NUMBER.finditer(name))
        if len(numbers) < 2 or len(spec.shape) != 2:
            continue
        layer, expert = numbers[0], numbers[-1]
        stem = f"{name[: layer.start()]}{{layer}}{name[layer.end() : expert.start()]}"
        key = f"{stem}{{expert}}{name[expert.end() :]}"
        number = number_of(expert[0])
        if number is not None:
            sets[key, layer[0]][number] = spec
    forms: dict[str, dict[str, tuple[int, Matrix, int]]] = defaultdict(dict)
    for (key, _), members in sets.items():
        shapes = {spec.shape for spec in members.values()}
        if len(shapes) != 1 or sorted(members) != list(range(len(members))) or len(members) < 2:
            continue
        prefix, _, leaf = key.partition("{expert}")
        out, width = shapes.pop()
        nbytes = sum(spec.nbytes for spec in members.values())
        before = forms[prefix].get(leaf, (0, (0, 0), 0))[2]
        forms[prefix][leaf] = (len(members), (out, width), before + nbytes)
    for prefix, leaves in forms.items():
        block, _, tail = _split_block(prefix)
        yield _Candidate(
            block,
            min(count for count, _, _ in leaves.values()),
            {f"{tail}{{expert}}{leaf}": shape for leaf, (_, shape, _) in leaves.items()},
            sum(nbytes for _, _, nbytes in leaves.values()),
        )


def _stacked(specs: Mapping[str, TensorSpec]) -> Iterator[_Candidate]:
    """Tensors of three dimensions within one layer that agree in the first."""
    forms: dict[tuple[str, int], dict[str, tuple[Matrix, int]]] = defaultdict(dict)
    for name, spec in specs.items():
        layer = NUMBER.search(name)
        if layer is None or len(spec.shape) != 3 or spec.shape[0] < 2:
            continue
        key = f"{name[: layer.start()]}{{layer}}{name[layer.end() :]}"
        prefix, _, leaf = key.rpartition(".")
        if leaf == "weight":
            prefix, _, module = prefix.rpartition(".")
            leaf = f"{module}.weight"
        experts, first, second = spec.shape
        before = forms[f"{prefix}.", experts].get(leaf, ((0, 0), 0))[1]
        forms[f"{prefix}.", experts][leaf] = ((first, second), before + spec.nbytes)
    for (prefix, experts), leaves in forms.items():
        block, _, tail = _split_block(prefix)
        yield _Candidate(
            block,
            experts,
            {f"{tail}{leaf}": shape for leaf, (shape, _) in leaves.items()},
            sum(nbytes for _, nbytes in leaves.values()),
        )


def _split_block(prefix: str) -> tuple[str, str, str]:
    """`model.layers.{layer}.ffn.experts.` as (`model.layers.{layer}.ffn`, `.`, `experts.`)."""
    head, dot, tail = prefix.partition("{layer}")[2].strip(".").rpartition(".")
    stem = prefix.partition("{layer}")[0] + "{layer}"
    block = f"{stem}.{head}" if head else stem
    return block, dot, f"{tail}." if tail and prefix.endswith(".") else tail


def _judge(
    candidate: _Candidate, specs: Mapping[str, TensorSpec], declared: Collection[int]
) -> Guess | None:
    """The candidate as a layout, with how sure it is; None if it cannot be experts."""
    router, hidden = _router(candidate, specs)
    weights = _roles(candidate, hidden)
    if weights is None:
        return None
    kind = "stacked along the first dimension" if "{expert}" not in str(weights) else "side by side"
    evidence = [f"{candidate.count} alike up and down matrices are {kind} in {candidate.block!r}"]
    sure = 0.4
    if router is not None:
        sure += 0.3
        evidence.append(f"{router!r} has {candidate.count} rows")
    if re.search(r"expert|moe", (candidate.block + str(list(weights))).replace("{expert}", "")):
        sure += 0.2
        evidence.append("their names say so")
    if candidate.count in declared:
        sure += 0.1
        evidence.append(f"config.json speaks of {candidate.count} experts")
    if sure < LEAST_SURE:
        return None
    layout = Layout(
        family="generic",
        block="{stack}."
        + candidate.block.partition("{layer}")[0].rpartition(".")[2]
        + "{layer}"
        + candidate.block.partition("{layer}")[2],
        experts=weights,
        router=(router,) if router else (),
    )
    return Guess(layout, min(sure, 0.95), "; ".join(evidence))


def _router(
    candidate: _Candidate, specs: Mapping[str, TensorSpec]
) -> tuple[str | None, int | None]:
    """(name after the block's, hidden size) of a matrix with one row for each expert."""
    widths = {size for shape in candidate.weights.values() for size in shape}
    prefix = re.compile(
        re.escape(candidate.block).replace(re.escape("{layer}"), r"\d+") + r"\.(.+)"
    )
    for name, spec in specs.items():
        match = prefix.fullmatch(name)
        if match is None or len(spec.shape) != 2 or NUMBER.search(match[1]):
            continue
        if spec.shape[0] == candidate.count and spec.shape[1] in widths:
            return match[1], spec.shape[1]
    return None, None


def _roles(candidate: _Candidate, hidden: int | None) -> dict[str, Weights] | None:
    """Which weight is gate, up and down, and the order of its axes.

    Two weights are up and down, three gate, up and down; gate and up may share a tensor that is
    twice as large. None if the shapes are those of no FFN.
    """
    shapes = dict(candidate.weights)
    if len(shapes) not in (2, 3):
        return None
    down = next((name for name in shapes if DOWN.search(_leaf(name))), None)
    if down is None:  # the odd one out among three, else the one whose output is the hidden size
        odd = [name for name in shapes if list(shapes.values()).count(shapes[name]) == 1]
        down = odd[0] if len(shapes) == 3 and len(odd) == 1 else list(shapes)[-1]
    others = [name for name in shapes if name != down]
    for turned in (False, True):
        out, inner = shapes[down][::-1] if turned else shapes[down]
        if hidden is not None and out != hidden:
            continue
        wide = [shapes[name][::-1] if turned else shapes[name] for name in others]
        stacked = "" if "{expert}" in down else "expert "
        matrix = stacked + ("in out" if turned else "out in")
        if all(shape == (inner, out) for shape in wide):
            roles = _gate_first(others)
            return {
                name: Weights(holds=(role,), axes=matrix) for role, name in (*roles, ("down", down))
            }
        if len(wide) == 1 and wide[0] == (2 * inner, out):
            both = stacked + ("in (part out)" if turned else "(part out) in")
            return {
                others[0]: Weights(holds=("gate", "up"), axes=both),
                down: Weights(holds=("down",), axes=matrix),
            }
    return None


def _gate_first(names: list[str]) -> list[tuple[Role, str]]:
    if len(names) == 1:
        return [("up", names[0])]
    gate = next((name for name in names if GATE.search(_leaf(name))), min(names))
    return [("gate", gate), *(("up", name) for name in names if name != gate)]


def _leaf(name: str) -> str:
    """The part of a name in which the weights of one expert differ."""
    return name.rpartition("{expert}")[2] or name
