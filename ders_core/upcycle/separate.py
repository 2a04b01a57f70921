"""Experts that share no base: N whole matrices, each trained apart."""

from __future__ import annotations

import torch
from torch import nn

from ders_core.codecs import Parts
from ders_core.upcycle.delta import stored, times
from ders_core.upcycle.experts import ExpertLinear, Routes


class SeparateLinear(ExpertLinear):
    """whole: `[N, out, in]`, the copies; bias: `[N, out]` or None."""

    base = None

    def __init__(self, whole: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.whole = nn.Parameter(whole)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.deltas = nn.ModuleList()

    def matrix(self, expert: int) -> torch.Tensor:
        return self.whole[expert]

    def parts(self, expert: int, dtype: torch.dtype) -> Parts:
        return {"weight": stored(self.whole[expert], dtype)}

    def products(self, tokens: torch.Tensor, routes: Routes) -> torch.Tensor:
        return self._product(tokens.index_select(0, routes.tokens), routes)

    def sums(self, rows: torch.Tensor, routes: Routes) -> tuple[None, torch.Tensor]:
        return None, self._product(rows, routes)

    def _product(self, rows: torch.Tensor, routes: Routes) -> torch.Tensor:
        pieces = zip(rows.split(list(routes.counts)), self.whole.unbind(), strict=True)
        return torch.cat([times(piece, weight) for piece, weight in pieces])
