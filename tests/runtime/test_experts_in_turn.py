"""Many tokens with experts that stay packed, one expert after another: sums in one order on every
device, and nothing in memory for all pairs of a token and an expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ders_core.codecs import Quantized
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule

TOKENS, EACH = 150, 2


class Watched(TorchDispatchMode):
    """Rows that others are added to, and how many rows any wide matrix of floats has."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[torch.Tensor] = []
        self.most_rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::index_add_":
            self.added.append(args[2])
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point() and made.dim() == 2:
            self.most_rows = max(self.most_rows, len(made) if made.shape[1] > 1 else 0)
        return made


def test_no_row_is_added_to_twice_at_once(mixtral_dir: Path, tmp_path: Path) -> None:
    """A GPU would do it in any order. And what is made has a row for each token, not for each
    pair."""
    recipe = Recipe(name="in turn", rules=(Rule(codec=Quantized(bits=2, group_size=16)),))
    compress(mixtral_dir, tmp_path / "packed", recipe)
    model = load_model(tmp_path / "packed", dtype=torch.float32, mode="packed")
    experts = model.model.layers[0].mlp.experts.packed
    random = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, 64, generator=random)
    chosen = torch.rand(TOKENS, 4, generator=random).topk(EACH).indices
    weights = torch.rand(TOKENS, EACH, generator=random)
    with torch.inference_mode(), Watched() as watched:
        experts.compute(x, chosen, weights)
    assert sum(map(len, watched.added)) == TOKENS * EACH
    assert all(len(rows.unique()) == len(rows) for rows in watched.added)
    assert watched.most_rows < TOKENS * EACH
