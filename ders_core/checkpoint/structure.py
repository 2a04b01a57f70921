"""Experts found by structure alone, for models that no entry names.

Two shapes of evidence: same-shaped matrices under an index inside a layer, or a leading dimension
of several tensors that a router's rows agree with. What is found is written down as a `Layout`,
so that nothing downstream knows the difference.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ders_core.checkpoint.layouts import Layout, Weights
from ders_core.files.header import TensorInfo

LEAST_SURE = 0.6
"""Below, same-shaped siblings may be anything: heads, codebooks, quantizers."""

NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])")
DOWN = re.compile(r"down|w2|wo\b|fc2|output|out_proj|c_proj|4h_to_h|w_out")
GATE = re.compile(r"gate|w1\b|wi_0|wg\b|fc3")

Role = Literal["gate", "up", "down"]
Matrix = tuple[int, int]


@dataclass(frozen=True)
class Found:
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


def by_structure(tensors: Mapping[str, TensorInfo], declared: Collection[int]) -> Found | None:
    """The experts that take the most bytes, if it is sure enough that they are experts.

    declared: numbers of experts that the config names.
    """
    candidates = [*_siblings(tensors), *_stacked(tensors)]
    for found in sorted(candidates, key=lambda own: -own.nbytes):
        judged = _judge(found, tensors, declared)
        if judged is not None:
            return judged
    return None


def _siblings(tensors: Mapping[str, TensorInfo]) -> Iterator[_Candidate]:
    """Matrices of one shape whose names differ in an index, within one layer."""
    sets: dict[tuple[str, str], dict[int, TensorInfo]] = defaultdict(dict)
    for name, info in tensors.items():
        numbers = list(NUMBER.finditer(name))
        if len(numbers) < 2 or len(info.shape) != 2:
            continue
        layer, expert = numbers[0], numbers[-1]
        stem = f"{name[: layer.start()]}{{layer}}{name[layer.end() : expert.start()]}"
        key = f"{stem}{{expert}}{name[expert.end() :]}"
        sets[key, layer[0]][int(expert[0])] = info
    forms: dict[str, dict[str, tuple[int, Matrix, int]]] = defaultdict(dict)
    for (key, _), members in sets.items():
        shapes = {info.shape for info in members.values()}
        if len(shapes) != 1 or sorted(members) != list(range(len(members))) or len(members) < 2:
            continue
        prefix, _, leaf = key.partition("{expert}")
        out, width = shapes.pop()
        nbytes = sum(info.nbytes for info in members.values())
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


def _stacked(tensors: Mapping[str, TensorInfo]) -> Iterator[_Candidate]:
    """Tensors of three dimensions within one layer that agree in the first."""
    forms: dict[tuple[str, int], dict[str, tuple[Matrix, int]]] = defaultdict(dict)
    for name, info in tensors.items():
        layer = NUMBER.search(name)
        if layer is None or len(info.shape) != 3 or info.shape[0] < 2:
            continue
        key = f"{name[: layer.start()]}{{layer}}{name[layer.end() :]}"
        prefix, _, leaf = key.rpartition(".")
        if leaf == "weight":
            prefix, _, own = prefix.rpartition(".")
            leaf = f"{own}.weight"
        experts, first, second = info.shape
        before = forms[f"{prefix}.", experts].get(leaf, ((0, 0), 0))[1]
        forms[f"{prefix}.", experts][leaf] = ((first, second), before + info.nbytes)
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
    whole = prefix.endswith(".")
    block = f"{stem}.{head}" if head else stem
    return block, dot, f"{tail}." if whole and tail else tail


def _judge(
    found: _Candidate, tensors: Mapping[str, TensorInfo], declared: Collection[int]
) -> Found | None:
    """The candidate as a layout, with how sure it is; None if it cannot be experts."""
    router, hidden = _router(found, tensors)
    weights = _roles(found, hidden)
    if weights is None:
        return None
    kind = "stacked along the first dimension" if "{expert}" not in str(weights) else "side by side"
    evidence = [f"{found.count} alike up and down matrices lie {kind} in {found.block!r}"]
    sure = 0.4
    if router is not None:
        sure += 0.3
        evidence.append(f"{router!r} has {found.count} rows")
    if re.search(r"expert|moe", (found.block + str(list(weights))).replace("{expert}", "")):
        sure += 0.2
        evidence.append("their names say so")
    if found.count in declared:
        sure += 0.1
        evidence.append(f"config.json speaks of {found.count} experts")
    if sure < LEAST_SURE:
        return None
    layout = Layout(
        family="generic",
        block="{stack}."
        + found.block.partition("{layer}")[0].rpartition(".")[2]
        + "{layer}"
        + found.block.partition("{layer}")[2],
        experts=weights,
        router=(router,) if router else (),
    )
    return Found(layout, min(sure, 0.95), "; ".join(evidence))


def _router(found: _Candidate, tensors: Mapping[str, TensorInfo]) -> tuple[str | None, int | None]:
    """(name after the block's, hidden size) of a matrix with one row for each expert."""
    widths = {size for shape in found.weights.values() for size in shape}
    prefix = re.compile(re.escape(found.block).replace(re.escape("{layer}"), r"\d+") + r"\.(.+)")
    for name, info in tensors.items():
        match = prefix.fullmatch(name)
        if match is None or len(info.shape) != 2 or NUMBER.search(match[1]):
            continue
        if info.shape[0] == found.count and info.shape[1] in widths:
            return match[1], info.shape[1]
    return None, None


def _roles(found: _Candidate, hidden: int | None) -> dict[str, Weights] | None:
    """Which weight is gate, up and down, and which way round it lies.

    Two weights are up and down, three gate, up and down; gate and up may share a tensor that is
    twice as large. None if the shapes are those of no FFN.
    """
    shapes = dict(found.weights)
    if len(shapes) not in (2, 3):
        return None
    down = next((name for name in shapes if DOWN.search(_leaf(name))), None)
    if down is None:  # the odd one out among three, else the one that gives back the hidden size
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
    """What tells the weights of one expert apart."""
    return name.rpartition("{expert}")[2] or name
