"""The registry of layouts: how each family of models names its experts on disk.

A family is one declarative entry. `{layer}`, `{expert}` and `{name}` are the only placeholders;
`{name}` is what the family calls a projection that we call gate, up or down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True)
class Layout:
    """Where the experts of a family lie, each weight as `[out, in]`."""

    family: str
    block: str
    """Prefix of the MoE block."""
    expert: str
    """One expert's weight, after the block's prefix."""
    names: Mapping[str, str]
    """Projection -> the family's own name for it."""
    router: str
    """The router's weight `[experts, hidden]`, after the block's prefix."""
    shared: str | None
    """Prefix of an always-on expert's tensors, after the block's prefix."""
    dense: str
    """The same FFN's weight in a dense parent, as transformers' Llama-like models name it."""
    experts_key: str
    top_k_key: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        template = re.escape(f"{self.block}.{self.expert}")
        for field, pattern in (
            ("layer", r"(?P<layer>\d+)"),
            ("expert", r"(?P<expert>\d+)"),
            ("name", f"(?P<name>{'|'.join(map(re.escape, self.names.values()))})"),
        ):
            template = template.replace(re.escape(f"{{{field}}}"), pattern)
        return re.compile(template)

    def match(self, tensor: str) -> tuple[int, str, int] | None:
        """(layer, projection, expert) of a tensor's name, or None if it is no expert's."""
        found = self._pattern.fullmatch(tensor)
        if found is None:
            return None
        roles = {name: role for role, name in self.names.items()}
        return int(found["layer"]), roles[found["name"]], int(found["expert"])

    def block_of(self, layer: int) -> str:
        return self.block.format(layer=layer)

    def router_of(self, layer: int) -> str:
        return f"{self.block_of(layer)}.{self.router}"

    def dense_of(self, layer: int, projection: str) -> str:
        return self.dense.format(layer=layer, projection=projection)


LAYOUTS: dict[str, Layout] = {
    layout.family: layout
    for layout in (
        Layout(
            family="mixtral",
            block="model.layers.{layer}.block_sparse_moe",
            expert="experts.{expert}.{name}.weight",
            names={"gate": "w1", "up": "w3", "down": "w2"},
            router="gate.weight",
            shared=None,
            dense="model.layers.{layer}.mlp.{projection}_proj.weight",
            experts_key="num_local_experts",
            top_k_key="num_experts_per_tok",
        ),
        Layout(
            family="qwen2_moe",
            block="model.layers.{layer}.mlp",
            expert="experts.{expert}.{name}.weight",
            names={"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
            router="gate.weight",
            shared="shared_expert.",
            dense="model.layers.{layer}.mlp.{projection}_proj.weight",
            experts_key="num_experts",
            top_k_key="num_experts_per_tok",
        ),
    )
}


def recognise(tensors: Iterable[str]) -> Layout | None:
    """The layout that claims the most tensors, or None if none claims any."""
    names = list(tensors)
    counts = {
        family: sum(layout.match(name) is not None for name in names)
        for family, layout in LAYOUTS.items()
    }
    best = max(counts, key=lambda family: counts[family])
    return LAYOUTS[best] if counts[best] else None
