"""What errors in matrices that are no experts' cost, told by autograd: a weight of its own for each
token, and for each lookup a row of its own.

It shares no code with `calibrate`, and is told where the checkpoint's tensors lie in the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from support.gradient_references import log_prob, model_and_labels

linear, embedding = torch.nn.functional.linear, torch.nn.functional.embedding

Weights = Callable[[Any], dict[str, torch.Tensor]]
"""Of a model: name on disk -> a parameter, or rows of one."""


def by_name(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter under the name that it has in the model."""
    return {name: each for name, each in model.named_parameters() if each.dim() == 2}


@dataclass
class OtherReference:
    """float64. squares: name -> Σ_t (∂ log p / ∂W_t)_ij², of all tokens t, `[out, in]`. moments:
    name -> Σ x xᵀ and the number of x. weighted: the same, with each x weighted by the squared
    length of the gradient after it. together, apart: name -> the squared gradient of W, of each
    product and of each of its tokens, added up."""

    squares: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    weighted: dict[str, tuple[torch.Tensor, int]] = field(default_factory=dict)
    together: dict[str, float] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)


def other_reference(directory: Path, windows: torch.Tensor, weights_of: Weights) -> OtherReference:
    """windows: `[n, window]`."""
    model, labels = model_and_labels(directory, windows)
    weights = {name: weight.detach() for name, weight in weights_of(model).items()}
    truth = OtherReference({name: torch.zeros_like(weight) for name, weight in weights.items()})
    for row, drawn in zip(windows, labels, strict=True):
        calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        lookups: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

        def product(
            x: torch.Tensor, weight: torch.Tensor, bias: Any = None, calls: Any = calls
        ) -> torch.Tensor:
            output = linear(x, weight, bias)
            error = torch.zeros_like(output, requires_grad=True)
            calls.append((weight, x.detach().flatten(0, -2), error))
            return output + error  # (W + D_t) x_t: the gradient of D_t is that of the error times x

        def lookup(
            ids: torch.Tensor, weight: torch.Tensor, *more: Any, lookups: Any = lookups, **rest: Any
        ) -> torch.Tensor:
            output = embedding(ids, weight, *more, **rest)
            error = torch.zeros_like(output, requires_grad=True)
            lookups.append((weight, ids.flatten(), error))
            return output + error

        with (
            mock.patch("torch.nn.functional.linear", product),
            mock.patch("torch.nn.functional.embedding", lookup),
        ):
            log_prob(model, row, drawn).backward()
        for name, weight in weights.items():
            for multiplied, x, error in calls:
                lines = _lines(weight, multiplied)
                if lines is not None and error.grad is not None:
                    gradient = error.grad.flatten(0, -2)[:, lines]
                    squares = gradient.square().T @ x.square()
                    truth.squares[name] += squares
                    whole = float((gradient.T @ x).square().sum())
                    truth.together[name] = truth.together.get(name, 0) + whole
                    truth.apart[name] = truth.apart.get(name, 0) + float(squares.sum())
                    total, count = truth.moments.get(name, (0, 0))
                    truth.moments[name] = total + x.T @ x, count + len(x)
                    lengths = gradient.square().sum(1, keepdim=True)
                    total, count = truth.weighted.get(name, (0, 0))
                    truth.weighted[name] = total + x.T @ (lengths * x), count + len(x)
            for looked_up, ids, error in lookups:
                if looked_up.data_ptr() == weight.data_ptr() and error.grad is not None:
                    gradient = error.grad.flatten(0, -2)
                    truth.squares[name].index_add_(0, ids, gradient.square())
    return truth


def _lines(weight: torch.Tensor, multiplied: torch.Tensor) -> slice | None:
    """The rows of a matrix that are a weight's, at equal distances."""
    if weight.untyped_storage().data_ptr() != multiplied.untyped_storage().data_ptr():
        return None
    width, step = multiplied.shape[1], weight.stride(0) // multiplied.shape[1]
    first, rest = divmod(weight.data_ptr() - multiplied.data_ptr(), 8 * width)
    if rest or first < 0 or weight.shape[1] != width:
        return None
    return slice(first, first + (len(weight) - 1) * step + 1, step)
