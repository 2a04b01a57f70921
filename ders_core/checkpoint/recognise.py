"""Which layout a checkpoint follows, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.checkpoint.axes import EXPERT, IN, OUT, PART
from ders_core.checkpoint.layouts import Layout, Place, known_layouts, user_layouts
from ders_core.checkpoint.structure import by_structure
from ders_core.files.header import TensorInfo

EXPERT_KEYS = re.compile(r"(num|n|moe_num)_((local|routed)_)?experts|num_moe_experts")
TOP_K_KEYS = re.compile(
    r"(num_experts_per_tok(en)?|num_experts_per_token|experts_per_token|num_selected_experts|"
    r"(moe_|router_)?top_?k(_experts)?|moe_k|n_activated_experts|num_activated_experts)"
)


@dataclass(frozen=True)
class Recognition:
    """sure: from 0 to 1. because: a sentence for a person."""

    layout: Layout
    family: str
    sure: float
    because: str


def recognise(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Recognition | None:
    """The layout that fits best: a user's own, else a known family's, else one found by structure.

    None if nothing looks like experts. Raises CheckpointError for a user's entry that is malformed.
    """
    samples = _samples(tensors)
    own = _best(user_layouts(path), samples, tensors, ())
    if own is not None:
        return Recognition(own, own.family, 1.0, f"the user's own entry {own.family!r} fits")
    kinds = model_types(config)
    known = _best(known_layouts(), samples, tensors, kinds)
    if known is None:
        return by_structure_of(config, tensors)
    kind = next((kind for kind in kinds if known.stores(kind)), None)
    if kind is not None:
        because = f"model_type {kind!r} is stored so, and the tensors' names and shapes agree"
        return Recognition(known, kind, 1.0, because)
    told = f"model_type {kinds[0]!r} is new here" if kinds else "config.json names no model_type"
    because = f"names and shapes are those of {known.family!r}; {told}"
    return Recognition(known, known.family, 0.9, because)


def by_structure_of(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> Recognition | None:
    """The layout that the shapes alone tell."""
    found = by_structure(tensors, declared_experts(config))
    if found is None:
        return None
    kinds = model_types(config)
    return Recognition(found.layout, kinds[0] if kinds else "generic", found.sure, found.because)


def model_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Every model_type that a config names, the outermost first."""
    found = (value for key, value in walk(config) if key == "model_type")
    return tuple(dict.fromkeys(kind for kind in found if isinstance(kind, str) and kind))


def declared_experts(config: Mapping[str, Any]) -> dict[int, str]:
    """Every number of experts that a config names, with the key that names it."""
    return _numbers(config, EXPERT_KEYS)


def declared_top_k(config: Mapping[str, Any]) -> int | None:
    """How many experts a token goes to, if the config says one number."""
    found = _numbers(config, TOP_K_KEYS)
    return min(found) if len(found) == 1 else None


def _numbers(config: Mapping[str, Any], keys: re.Pattern[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for key, value in walk(config):
        if keys.fullmatch(key):
            values = value if isinstance(value, list) else [value]
            found |= {item: key for item in values if type(item) is int and item > 0}
    return found


def walk(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys and values, the outer ones first."""
    queue: list[Mapping[str, Any]] = [config]
    for mapping in queue:
        for key, value in mapping.items():
            yield str(key), value
            if isinstance(value, Mapping) and key != "quantization_config":
                queue.append(value)


def _samples(tensors: Iterable[str]) -> dict[str, tuple[str, int]]:
    """One name of each kind, with how many there are: names that differ only in numbers."""
    found: dict[str, tuple[str, int]] = {}
    for name in tensors:
        kind = re.sub(r"(?<![A-Za-z])\d+", "#", name)
        first, count = found.get(kind, (name, 0))
        found[kind] = (first, count + 1)
    return found


def _best(
    layouts: Sequence[Layout],
    samples: Mapping[str, tuple[str, int]],
    tensors: Mapping[str, TensorInfo],
    kinds: Sequence[str],
) -> Layout | None:
    """The layout that claims tensors and fits them: by model_type, then by how many it claims."""
    ranked = []
    for layout in layouts:
        claimed = routers = 0
        blocks: dict[str, list[tuple[Place, TensorInfo]]] = {}
        for name, count in samples.values():
            place = layout.match(name)
            if place is not None:
                claimed += count
                routers += any(f"{place.block}.{router}" in tensors for router in layout.router)
                blocks.setdefault(place.block, []).append((place, tensors[name]))
        if claimed:
            kind = any(layout.stores(kind) for kind in kinds)
            fits = all(_fits(layout, own, tensors) for own in blocks.values())
            ranked.append(((fits, kind, claimed, routers), layout))
    return max(ranked, key=lambda item: item[0])[1] if ranked else None


def _fits(
    layout: Layout, found: list[tuple[Place, TensorInfo]], tensors: Mapping[str, TensorInfo]
) -> bool:
    """Whether what lies in one block can be cut as the layout says, and is an FFN: down gives back
    what gate and up take in."""
    names = (f"{found[0][0].block}.{router}" for router in layout.router)
    router = next((tensors[name] for name in names if name in tensors), None)
    shapes: dict[str, tuple[int, int]] = {}
    for place, info in found:
        axes = place.weights.parsed
        known = {PART: len(place.weights.holds)}
        if axes.needs_experts:
            if router is None or not router.shape:
                continue
            known[EXPERT] = router.shape[0]
        try:
            sizes = axes.sizes(info.shape, known)
        except ValueError:
            return False
        if not axes.is_bias:
            shapes |= dict.fromkeys(place.weights.holds, (sizes[OUT], sizes[IN]))
    turned = {shape[::-1] if name == "down" else shape for name, shape in shapes.items()}
    return len(turned) <= 1
