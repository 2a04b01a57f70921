"""Experts that are modules of their own, each of linear layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from ders_core.runtime.forms.form import EXPERTS, INNER, WIDTH, ExpertsForm, NamedForm


class LinearsForm(ExpertsForm):
    """Biases stay in the layers."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        linears = self.projections()
        self.has_gate = "gate" in linears
        self.has_bias = linears["up"][0].bias is not None

    @abstractmethod
    def projections(self) -> Mapping[str, Sequence[nn.Linear]]:
        """What holds the weights and biases of each projection, expert by expert."""

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        for linears in self.projections().values():
            yield from ((linear, "weight") for linear in linears)

    def matrices(self) -> Mapping[str, torch.Tensor]:
        return {
            name: torch.stack([linear.weight for linear in linears])
            for name, linears in self.projections().items()
        }

    def first_biases(self) -> torch.Tensor:
        linears = self.projections()
        names = [name for name in ("gate", "up") if name in linears]
        return torch.cat([_biases(linears[name]) for name in names], 1)

    def down_biases(self) -> torch.Tensor:
        return _biases(self.projections()["down"])


class NumberedForm(LinearsForm, NamedForm):
    """Of a dict of `expert_0` and so on, each with two layers, an activation and dropout."""

    linears: ClassVar[tuple[str, str]]
    """Names of the layers, up and down."""

    def projections(self) -> Mapping[str, Sequence[nn.Linear]]:
        experts = [self.module[f"expert_{number}"] for number in range(self.module.num_experts)]
        named = zip(("up", "down"), self.linears, strict=True)
        return {name: [getattr(each, layer) for each in experts] for name, layer in named}

    def act_fn(self, inner: torch.Tensor) -> torch.Tensor:
        expert = self.module["expert_0"]
        activated: torch.Tensor = expert.dropout(expert.act(inner))
        return activated


class OwnForm(LinearsForm):
    """Of `ders_core.hf.moe_ffn.Experts`."""

    @classmethod
    def is_of(cls, module: nn.Module) -> bool:
        """Whether its class has the method of that name; a submodule may have the name too."""
        return callable(getattr(type(module), "projections", None))

    def projections(self) -> Mapping[str, Sequence[nn.Linear]]:
        linears: Mapping[str, Sequence[nn.Linear]] = self.module.projections()
        return linears

    def small(self) -> nn.Module:
        shape = SimpleNamespace(
            hidden=WIDTH,
            inner=INNER,
            gated=self.has_gate,
            biased=self.has_bias,
            activation="gelu",
        )
        small: nn.Module = type(self.module)(shape, EXPERTS)
        return small


def _biases(linears: Sequence[nn.Linear]) -> torch.Tensor:
    return torch.stack([linear.bias for linear in linears])
