"""Which layout a checkpoint follows, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.checkpoint.axes import EXPERT, IN, OUT, PART
from ders_core.checkpoint.layouts import Layout, Match, known_layouts, user_layouts
from ders_core.checkpoint.numbering import NumberedNames
from ders_core.checkpoint.structure import by_structure
from ders_core.files.spec import TensorSpec

EXPERT_KEYS = re.compile(r"(num|n|moe_num)_((local|routed)_)?experts|num_moe_experts")
TOP_K_KEYS = re.compile(
    r"(num_experts_per_tok(en)?|experts_per_tok(en)?|num_selected_experts|moe_k|"
    r"(moe_)?(router_)?top_?k_experts|(moe_router_|moe_|router_)top_?k|"
    r"(n|num)_activated_experts)"
)
GENERATION_TOP_K = re.compile("top_?k")
"""A router's too in a few configs, but in most of them how tokens are sampled."""

GENERATION_KEYS = frozenset(
    (
        *("do_sample", "temperature", "top_p", "typical_p", "min_p", "num_beams", "penalty_alpha"),
        *("repetition_penalty", "length_penalty", "max_length", "max_new_tokens"),
    )
)
"""What stands beside a `top_k` that is a generation setting."""


@dataclass(frozen=True)
class Recognition:
    """sure: from 0 to 1. because: a sentence for a person."""

    layout: Layout
    family: str
    sure: float
    because: str


def recognise(
    path: Path,
    config: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    names: NumberedNames | None = None,
) -> Recognition | None:
    """The layout that fits best: a user's entry, else a known family's, else one by structure.

    path: the directory, where a user's entry may be. specs: of each tensor, with the shape of the
    numbers where codes are stored. names: of the tensors, if that is at hand. None if nothing looks
    like experts. Raises CheckpointError for a user's entry that is malformed.
    """
    samples = _samples(names or NumberedNames.of(specs))
    claim = _best(user_layouts(path), samples, specs, ())
    if claim is not None:
        custom = claim.layout
        return Recognition(
            custom, custom.family, 1.0, f"the user's own entry {custom.family!r} fits"
        )
    kinds = model_types(config)
    known = _best_known(samples, specs, kinds)
    if known is None:
        return _by_structure(config, specs)
    kind = next((kind for kind in kinds if known.stores(kind)), None)
    if kind is not None:
        because = f"this is the layout of model_type {kind!r}; the tensors' names and shapes agree"
        return Recognition(known, kind, 1.0, because)
    news = (
        f"model_type {kinds[0]!r} is not a known one"
        if kinds
        else "config.json names no model_type"
    )
    because = f"names and shapes are those of {known.family!r}; {news}"
    return Recognition(known, known.family, 0.9, because)


def _by_structure(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> Recognition | None:
    guess = by_structure(specs, declared_experts(config))
    if guess is None:
        return None
    kinds = model_types(config)
    return Recognition(guess.layout, kinds[0] if kinds else "generic", guess.sure, guess.because)


def model_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Every model_type that a config names, the outermost first."""
    types = (value for key, value in walk(config) if key == "model_type")
    return tuple(dict.fromkeys(kind for kind in types if isinstance(kind, str) and kind))


def declared_experts(config: Mapping[str, Any]) -> dict[int, str]:
    """Every number of experts that a config names, with the key that names it."""
    return _numbers(config, EXPERT_KEYS)


def declared_top_k(config: Mapping[str, Any]) -> int | None:
    """How many experts a token goes to, if the config names one number.

    A plain `top_k` counts where no other key says it, and only if it is not one of generation's
    settings: transformers keeps those in config.json too.
    """
    most = max(declared_experts(config), default=None)
    for numbers in (_numbers(config, TOP_K_KEYS), _plain_top_k(config)):
        possible = [number for number in numbers if most is None or number <= most]
        if numbers:
            return possible[0] if len(possible) == 1 else None
    return None


def _plain_top_k(config: Mapping[str, Any]) -> set[int]:
    """The numbers under a `top_k` that can be a router's."""
    numbers: set[int] = set()
    for mapping in _mappings(config):
        names_experts = any(EXPERT_KEYS.fullmatch(str(key)) for key in mapping)
        of_a_model = mapping is config or "model_type" in mapping
        if GENERATION_KEYS.isdisjoint(mapping) and (names_experts or not of_a_model):
            numbers |= {
                number
                for key, value in mapping.items()
                if GENERATION_TOP_K.fullmatch(str(key))
                for number in _positive(value)
            }
    return numbers


def _numbers(config: Mapping[str, Any], keys: re.Pattern[str]) -> dict[int, str]:
    numbers: dict[int, str] = {}
    for key, value in walk(config):
        if keys.fullmatch(key):
            numbers |= dict.fromkeys(_positive(value), key)
    return numbers


def _positive(value: Any) -> list[int]:
    """The positive integers of a value that is a number, or a list with one for each layer."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and item > 0]


def walk(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys and values, the outer ones first; not those of `quantization_config`."""
    for mapping in _mappings(config):
        for key, value in mapping.items():
            yield str(key), value


def _mappings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and every mapping in it, the outer ones first; not `quantization_config`."""
    queue: list[Mapping[str, Any]] = [config]
    for mapping in queue:
        yield mapping
        queue += [
            value
            for key, value in mapping.items()
            if isinstance(value, Mapping) and key != "quantization_config"
        ]


def _samples(names: NumberedNames) -> dict[str, tuple[str, int]]:
    """Names that differ only in numbers are one kind: kind -> (its first name, how many)."""
    samples: dict[str, tuple[str, int]] = {}
    for first, count in names.samples().values():
        kind = re.sub(r"(?<![A-Za-z])\d+", "#", first)
        same, others = samples.get(kind, (first, 0))
        samples[kind] = (same, count + others)
    return samples


@dataclass(frozen=True)
class _Claim:
    """What a layout makes of the tensors. fits: whether they can be cut as it says. is_named:
    whether the config's model_type names it. claimed: tensors; routers: blocks with one."""

    layout: Layout
    fits: bool
    is_named: bool
    claimed: int
    routers: int

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        return self.fits, self.is_named, self.claimed, self.routers


def _best_known(
    samples: Mapping[str, tuple[str, int]],
    specs: Mapping[str, TensorSpec],
    kinds: Sequence[str],
) -> Layout | None:
    """The best of the known layouts. One of the model_type that fits beats all others, which are
    then not tried: to compile their templates takes a tenth of a second."""
    named = [layout for layout in known_layouts() if any(map(layout.stores, kinds))]
    best = _best(named, samples, specs, kinds)
    if best is None or not best.fits:
        best = _best(known_layouts(), samples, specs, kinds)
    return None if best is None else best.layout


def _best(
    layouts: Sequence[Layout],
    samples: Mapping[str, tuple[str, int]],
    specs: Mapping[str, TensorSpec],
    kinds: Sequence[str],
) -> _Claim | None:
    """The claim that fits: by model_type, then by how many tensors it claims."""
    claims = []
    for layout in layouts:
        claimed = routers = 0
        blocks: dict[str, list[tuple[Match, TensorSpec]]] = {}
        for name, count in samples.values():
            match = layout.match(name)
            if match is not None:
                claimed += count
                routers += any(f"{match.block}.{router}" in specs for router in layout.router)
                blocks.setdefault(match.block, []).append((match, specs[name]))
        if claimed:
            is_named = any(map(layout.stores, kinds))
            fits = all(_fits(layout, members, specs) for members in blocks.values())
            claims.append(_Claim(layout, fits, is_named, claimed, routers))
    return max(claims, key=lambda claim: claim.rank, default=None)


def _fits(
    layout: Layout, members: list[tuple[Match, TensorSpec]], specs: Mapping[str, TensorSpec]
) -> bool:
    """Whether one block's tensors can be cut as the layout says and make an FFN.

    In an FFN, the output size of down is the input size of gate and up.
    """
    names = (f"{members[0][0].block}.{router}" for router in layout.router)
    router = next((specs[name] for name in names if name in specs), None)
    shapes: dict[str, tuple[int, int]] = {}
    for match, spec in members:
        axes = match.weights.parsed
        known = {PART: len(match.weights.holds)}
        if axes.needs_experts:
            if router is None or not router.shape:
                continue
            known[EXPERT] = router.shape[0]
        try:
            sizes = axes.sizes(spec.shape, known)
        except ValueError:
            return False
        if not axes.is_bias:
            shapes |= dict.fromkeys(match.weights.holds, (sizes[OUT], sizes[IN]))
    turned = {shape[::-1] if name == "down" else shape for name, shape in shapes.items()}
    return len(turned) <= 1
