"""What a class of transformers does with a layer's experts besides products, and the registry of
classes that do it in a way of their own.

To add one, write a form in a file of this package and decorate it with `register`. Its `name` is
that of the class. Before a class is taken over, it is tried (`ders_core.runtime.probe`): a later
version that holds or computes experts otherwise is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from ders_core.errors import DersError
from ders_core.registry import Registry

Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""x `[tokens, d]`, numbers of experts `[tokens, k]` and their weights -> Σ_k w_k E_k(x). A number
that no expert has stands for none."""

TOKENS, EXPERTS, CHOSEN, WIDTH, INNER = 5, 3, 2, 6, 4
"""Sizes of a trial: tokens, experts, those chosen for a token, d and d_h."""


class ExpertsForm(ABC):
    """How one module holds and computes experts; by default, with gate and up in one parameter of
    three dimensions, called with tokens, numbers of experts and weights.

    module: whose forward pass is replaced. Its weights are taken away once the form is made;
    biases and all else stay in it.
    """

    has_gate = True
    has_bias = False
    is_concatenated = True
    """Whether gate's inner entries lie before up's, and do not alternate with them."""
    surplus = 0
    """Experts without a product, behind the others, for which the module has weights."""

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def num_experts(self) -> int:
        """Experts that have weights of use."""
        count: int = self.module.num_experts
        return count

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        """What holds the weights, and under which names."""
        return ((self.module, name) for name in ("gate_up_proj", "down_proj"))

    def matrices(self) -> Mapping[str, torch.Tensor]:
        """Projection -> weights `[experts, out, in]`, perhaps on `meta`."""
        gate, up = self.module.gate_up_proj.chunk(2, 1)
        return {"gate": gate, "up": up, "down": self.module.down_proj}

    def act_fn(self, inner: torch.Tensor) -> torch.Tensor:
        """The activation."""
        activated: torch.Tensor = self.module.act_fn(inner)
        return activated

    def apply_gate(self, inner: torch.Tensor) -> torch.Tensor:
        """act(gate) · up of both, side by side or alternating: `[n, 2 · d_h]`."""
        gate, up = inner.chunk(2, -1)
        return self.act_fn(gate) * up

    def first_biases(self) -> torch.Tensor:
        """Of gate and up as `apply_gate` is given them, or of up: `[experts, ·]`."""
        raise AssertionError("there are no biases")

    def down_biases(self) -> torch.Tensor:
        """`[experts, d]`"""
        raise AssertionError("there are no biases")

    @property
    def has_post_expert_norm(self) -> bool:
        """Whether something stands between an expert's output and the sum over experts."""
        return False

    def post_expert_norm(self, outer: torch.Tensor) -> torch.Tensor:
        """What stands there."""
        raise AssertionError("there is no norm")

    def forward(self, compute: Compute, *args: Any, **kwargs: Any) -> Any:
        """What takes the place of the module's forward pass."""
        return compute(*args, **kwargs)

    @property
    def own_forward(self) -> Callable[..., Any] | None:
        """The forward pass of the class, if it has one of its own."""
        forward: Callable[..., Any] = type(self.module).forward
        return forward

    @abstractmethod
    def small(self) -> nn.Module:
        """A module of the same class with `EXPERTS` experts of `INNER` inner entries."""

    def arguments(self, random: torch.Generator) -> tuple[Any, ...]:
        """Of a forward pass of `TOKENS` tokens through this module, a small one."""
        return (tried_tokens(random), *tried_choice(random))

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether weights of these shapes, by projection, are the module's; there may be further
        experts behind its own."""
        held = {name: tuple(matrix.shape) for name, matrix in self.matrices().items()}
        return held.keys() == shapes.keys() and all(
            held[name][1:] == shape[1:] and self.num_experts <= shape[0]
            for name, shape in shapes.items()
        )


class NamedForm(ExpertsForm):
    """A form of one class of transformers."""

    name: ClassVar[str]
    """Of the class."""


FORMS: Registry[NamedForm] = Registry("form of experts", "ders_core.runtime.forms", DersError)
register = FORMS.register
"""Class decorator: make a form known by the name of the class that it is of."""


def tried_tokens(random: torch.Generator, width: int = WIDTH) -> torch.Tensor:
    """x `[tokens, width]` of a trial."""
    return torch.randn(TOKENS, width, generator=random)


def tried_choice(random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of experts and weights `[tokens, chosen]` of a trial."""
    orders = [torch.randperm(EXPERTS, generator=random) for _ in range(TOKENS)]
    return torch.stack(orders)[:, :CHOSEN], torch.rand(TOKENS, CHOSEN, generator=random) + 0.1
