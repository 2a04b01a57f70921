"""What errors in experts' weights cost, told by autograd: a weight of its own for each token.

Every product of an expert is computed as y_t = (W + D_t) x_t with D_t = 0, so that the gradient of
D_t is ∂ Σ log p / ∂W of token t alone. It shares no code with `calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ders_core.calibrate.gradients import SEED
from ders_core.hf import load_model

linear = torch.nn.functional.linear

Key = tuple[int, str, int]
"""Layer, projection, expert."""


def fused(model: Any) -> dict[Key, torch.Tensor]:
    """Experts as Mixtral and Qwen keep them: gate above up in one matrix."""
    weights: dict[Key, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        for expert, (both, down) in enumerate(
            zip(experts.gate_up_proj, experts.down_proj, strict=True)
        ):
            gate, up = both.chunk(2)
            weights |= {
                (number, "gate", expert): gate,
                (number, "up", expert): up,
                (number, "down", expert): down,
            }
    return weights


def alone(model: Any) -> dict[Key, torch.Tensor]:
    """Experts of three linear layers."""
    return {
        (number, projection, expert): getattr(module, f"{projection}_proj").weight
        for number, layer in enumerate(model.model.layers)
        for expert, module in enumerate(layer.mlp.experts)
        for projection in ("gate", "up", "down")
    }


def with_shared(model: Any) -> dict[Key, torch.Tensor]:
    """As `fused`, and Qwen2's always-on expert behind the others."""
    weights = fused(model)
    for number, layer in enumerate(model.model.layers):
        count = len(layer.mlp.experts.down_proj)
        for projection in ("gate", "up", "down"):
            module = getattr(layer.mlp.shared_expert, f"{projection}_proj")
            weights[number, projection, count] = module.weight
    return weights


@dataclass
class Reference:
    """float64. gradients: key -> ∂ Σ log p / ∂W of each token, window by window, `[n, out, in]`."""

    weights: dict[Key, torch.Tensor]
    gradients: dict[Key, list[torch.Tensor]] = field(default_factory=dict)

    def marginals(self, layer: int, projection: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over all tokens: columns `[experts, in]` and rows `[experts, out]`."""
        squares = [
            torch.cat(self.gradients[layer, projection, expert]).square().sum(0)
            for expert in self._experts(layer, projection)
        ]
        stacked = torch.stack(squares)
        return stacked.sum(1), stacked.sum(2)

    def shrinkage(self, layer: int, projection: str, routed: int) -> torch.Tensor:
        """`[windows, experts]`"""
        weights = [self.weights[layer, projection, expert] for expert in range(routed)]
        mean = torch.stack(weights).mean(0)
        columns = [
            [float((window.sum(0) * (weight - mean)).sum()) for window in self.gradients[key]]
            for expert, weight in enumerate(weights)
            for key in [(layer, projection, expert)]
        ]
        return torch.tensor(columns, dtype=torch.float64).T

    def weighted(
        self, layer: int, projections: Sequence[str], experts: Sequence[int]
    ) -> torch.Tensor:
        """E[‖g‖² x xᵀ] over all inputs of these experts and projections, `[in, in]`: of each token
        it is GᵀG with its gradient G = g xᵀ."""
        tokens = [
            window
            for projection in projections
            for expert in experts
            for window in self.gradients[layer, projection, expert]
        ]
        total = torch.stack([torch.einsum("noi,noj->ij", each, each) for each in tokens]).sum(0)
        return total / sum(map(len, tokens))

    def _experts(self, layer: int, projection: str) -> list[int]:
        return [key[2] for key in self.weights if key[:2] == (layer, projection)]


def reference(
    directory: Path,
    windows: torch.Tensor,
    weights_of: Callable[[Any], dict[Key, torch.Tensor]],
    **options: Any,
) -> Reference:
    """windows: `[n, window]`. weights_of: the experts' `[out, in]` of a model."""
    model, labels = model_and_labels(directory, windows, **options)
    found = Reference({key: weight.detach() for key, weight in weights_of(model).items()})
    for row, drawn in zip(windows, labels, strict=True):
        calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        with mock.patch("torch.nn.functional.linear", _by_token(found.weights, calls)):
            log_prob(model, row, drawn).backward()
        for key, weight in found.weights.items():
            empty = torch.zeros(0, *weight.shape, dtype=torch.float64)
            shown = [part for part in (_part(weight, *call) for call in calls) if part is not None]
            found.gradients.setdefault(key, []).append(torch.cat([empty, *shown]))
    return found


def model_and_labels(
    directory: Path, windows: torch.Tensor, **options: Any
) -> tuple[Any, torch.Tensor]:
    """The model in float64, and the labels `[windows, window]` that it draws in float32."""
    model = load_model(directory, dtype=torch.float32, **options).requires_grad_(False)
    model.set_experts_implementation("eager")
    draws = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        probabilities = [_logits(model, row).softmax(-1) for row in windows]
    drawn = [torch.multinomial(each, 1, generator=draws)[:, 0] for each in probabilities]
    return model.double(), torch.stack(drawn)


def log_prob(model: Any, window: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Σ log p of the labels at the positions of one window."""
    log_probs = _logits(model, window).log_softmax(-1)
    return log_probs.gather(1, labels[:, None]).sum()


def _logits(model: Any, window: torch.Tensor) -> torch.Tensor:
    inputs = {"input_ids": window[None]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    logits: torch.Tensor = model(**inputs).logits[0]
    return logits


def _by_token(
    weights: dict[Key, torch.Tensor], calls: list[tuple[torch.Tensor, torch.Tensor]]
) -> Callable[..., torch.Tensor]:
    """A linear layer that gives each token an expert's weight of its own, and notes it."""
    addresses = {weight.data_ptr() for weight in weights.values()}

    def compute(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if weight.data_ptr() not in addresses:
            return linear(x, weight, bias)
        flat = x.reshape(-1, x.shape[-1])
        errors = torch.zeros(len(flat), *weight.shape, dtype=x.dtype, requires_grad=True)
        calls.append((weight, errors))
        product = torch.einsum("noi,ni->no", weight + errors, flat)
        return product.view(*x.shape[:-1], -1) + (0 if bias is None else bias)

    return compute


def _part(
    weight: torch.Tensor, multiplied: torch.Tensor, errors: torch.Tensor
) -> torch.Tensor | None:
    """The gradients `[n, out, in]` of a weight, of a product with a matrix that holds it."""
    if weight.untyped_storage().data_ptr() != multiplied.untyped_storage().data_ptr():
        return None
    first, rest = divmod(weight.data_ptr() - multiplied.data_ptr(), 8 * weight.shape[1])
    if rest or not 0 <= first < len(multiplied):
        return None
    gradient = torch.zeros_like(errors) if errors.grad is None else errors.grad
    return gradient[:, first : first + len(weight)]
