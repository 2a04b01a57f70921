"""What other choices of a Mixtral's experts cost, and how near they are, in float64.

Margins and their gradients are closed formulas of the router's softmax, and experts are computed
one by one. It shares no code with `calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from support.gradient_references import log_prob


@dataclass(frozen=True)
class Routers:
    """layer -> `[tokens]`: the margin over the norm of its gradient, and ½ (g·Δy)²."""

    margins: list[torch.Tensor]
    swaps: list[torch.Tensor]


def routers(model: Any, windows: torch.Tensor, labels: torch.Tensor) -> Routers:
    """model: in float64. windows, labels: `[n, window]`."""
    blocks = [layer.mlp for layer in model.model.layers]
    margins: list[list[torch.Tensor]] = [[] for _ in blocks]
    swaps: list[list[torch.Tensor]] = [[] for _ in blocks]
    for row, drawn in zip(windows, labels, strict=True):
        caught = _caught(model, blocks, row, drawn)
        for number, (block, (x, gradient)) in enumerate(zip(blocks, caught, strict=True)):
            order = _probabilities(block, x).argsort(-1, descending=True)
            lead, slope = leads(block, x, order)
            margins[number].append(lead / slope)
            pairs = order[:, [0, 1]], order[:, [0, 2]]
            here, there = (_mixed(block, x, pair) for pair in pairs)
            swaps[number].append((gradient * (there - here)).sum(-1).square() / 2)
    return Routers([torch.cat(each) for each in margins], [torch.cat(each) for each in swaps])


def leads(block: Any, x: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[tokens]`: p_a − p_b of the second and the third expert of an order, and the norm of its
    gradient p_a (w_a − w̄) − p_b (w_b − w̄), with w̄ = Σ p w. x: `[tokens, d]`."""
    p, w = _probabilities(block, x), block.gate.weight.double()
    mean = p @ w
    a, b = order[:, 1], order[:, 2]
    p_a, p_b = (p.gather(1, each[:, None]) for each in (a, b))
    slope = p_a * (w[a] - mean) - p_b * (w[b] - mean)
    return (p_a - p_b)[:, 0], slope.norm(dim=-1)


def block_inputs(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """`[tokens, d]` of each layer."""
    found: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    handles = [
        layer.mlp.register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0].flatten(0, 1))
        )
        for layer, kept in zip(model.model.layers, found, strict=True)
    ]
    with torch.no_grad():
        model(input_ids=windows)
    for handle in handles:
        handle.remove()
    return [torch.cat(each) for each in found]


def _caught(
    model: Any, blocks: list[Any], row: torch.Tensor, drawn: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each block's input, and ∂ Σ log p after its output, `[tokens, d]`."""
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        whole = output if output.requires_grad else output.requires_grad_()
        whole.retain_grad()
        outputs.append((args[0].detach()[0], whole))
        return whole

    handles = [block.register_forward_hook(keep) for block in blocks]
    log_prob(model, row, drawn).backward()
    for handle in handles:
        handle.remove()
    caught = []
    for x, output in outputs:
        assert output.grad is not None
        caught.append((x, output.grad[0]))
    return caught


def _probabilities(block: Any, x: torch.Tensor) -> torch.Tensor:
    probabilities: torch.Tensor = (x @ block.gate.weight.double().T).softmax(-1)
    return probabilities


def _mixed(block: Any, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The block's output if tokens had these experts `[tokens, 2]`."""
    weights = _probabilities(block, x).gather(1, chosen)
    weights = weights / weights.sum(-1, keepdim=True)
    experts = block.experts
    outputs = []
    for both, down in zip(experts.gate_up_proj, experts.down_proj, strict=True):
        gate, up = (x @ both.T).chunk(2, -1)
        outputs.append((gate * gate.sigmoid() * up) @ down.T)
    all_outputs = torch.stack(outputs, 1)  # [tokens, experts, d]
    picked = all_outputs.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
    return (weights[..., None] * picked).sum(1)
