"""Gradients of single tokens in experts that know which token it is, told by autograd.

The block's experts are replaced by a loop over tokens in which each token has weights of its own.
It shares no code with `calibrate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from support.gradient_references import log_prob, model_and_labels

Errors = dict[tuple[int, str, int], torch.Tensor]
"""Token, projection, expert -> its gradient `[out, in]`."""


def swish(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x)


class Loop:
    """Stands for a layer's experts. errors: zeros that were added to each token's weights."""

    def __init__(self, experts: Any, shared: Any = None) -> None:
        self.experts, self.shared = experts, shared
        self.errors: Errors = {}

    def weight(self, token: int, projection: str, expert: int) -> torch.Tensor:
        """The expert's weight for this token alone."""
        if expert < len(self.experts.down_proj):
            gate, up = self.experts.gate_up_proj[expert].chunk(2)
            weight = {"gate": gate, "up": up, "down": self.experts.down_proj[expert]}[projection]
        else:
            weight = getattr(self.shared, f"{projection}_proj").weight
        error = torch.zeros_like(weight, requires_grad=True)
        self.errors[token, projection, expert] = error
        changed: torch.Tensor = weight + error
        return changed

    def expert(self, token: int, x: torch.Tensor, number: int) -> torch.Tensor:
        gate, up = (self.weight(token, name, number) @ x for name in ("gate", "up"))
        return self.weight(token, "down", number) @ (swish(gate) * up)

    def routed(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        tokens = []
        for token, row in enumerate(x):
            each = zip(chosen[token].tolist(), weights[token], strict=True)
            tokens.append(sum(share * self.expert(token, row, k) for k, share in each))
        return torch.stack(tokens)

    def always(self, x: torch.Tensor) -> torch.Tensor:
        count = len(self.experts.down_proj)
        flat = x.reshape(-1, x.shape[-1])
        return torch.stack([self.expert(t, row, count) for t, row in enumerate(flat)]).view_as(x)


def joint_gradients(directory: Path, windows: torch.Tensor) -> list[list[Errors]]:
    """Of each window and layer: gradients of Σ log p of the labels that `calibrate` draws."""
    model, labels = model_and_labels(directory, windows)
    measured = []
    for row, drawn in zip(windows, labels, strict=True):
        loops = []
        for layer in model.model.layers:
            shared = getattr(layer.mlp, "shared_expert", None)
            loop = Loop(layer.mlp.experts, shared)
            layer.mlp.experts.forward = MethodType(
                lambda self, x, chosen, weights, loop=loop: loop.routed(x, chosen, weights),
                layer.mlp.experts,
            )
            if shared is not None:
                shared.forward = MethodType(lambda self, x, loop=loop: loop.always(x), shared)
            loops.append(loop)
        log_prob(model, row, drawn).backward()
        measured.append(
            [
                {
                    place: error.grad
                    for place, error in loop.errors.items()
                    if error.grad is not None
                }
                for loop in loops
            ]
        )
    return measured


def joint_sums(
    measured: Sequence[Sequence[Errors]], layer: int, projection: str, members: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t of the squared sum of these experts' gradients: its columns `[in]` and rows `[out]`."""
    total: torch.Tensor | None = None
    for window in measured:
        of_token: dict[int, torch.Tensor] = {}
        for (token, name, expert), gradient in window[layer].items():
            if name == projection and expert in members:
                of_token[token] = of_token.get(token, 0) + gradient
        for gradient in of_token.values():
            total = gradient.square() + (0 if total is None else total)
    assert total is not None
    return total.sum(0), total.sum(1)
