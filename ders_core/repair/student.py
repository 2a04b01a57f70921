"""The packed model while it is repaired: its weights follow from what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ders_core.evaluate.forward import next_token_logits
from ders_core.repair.collect import Placed
from ders_core.repair.tuned import Leaf, Tuned


class Student(nn.Module):
    """Its parameters are what is trained. The model in memory is not a module of it: its weights
    are written before each step, and their gradients are passed on after it."""

    def __init__(self, network: PreTrainedModel, placed: Placed) -> None:
        super().__init__()
        self.trained = nn.ParameterList(leaf.parameter for leaf in placed.leaves)
        self._outside: tuple[PreTrainedModel, Sequence[Tuned]] = (network, placed.units)
        self.leaves: Sequence[Leaf] = placed.leaves
        touched = [
            parameter
            for unit in placed.units
            for places in unit.places
            for parameter in places.parameters
        ]
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in touched:
            parameter.requires_grad_(True)

    @property
    def network(self) -> PreTrainedModel:
        return self._outside[0]

    @property
    def units(self) -> Sequence[Tuned]:
        return self._outside[1]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[batch, window, vocabulary]`"""
        return predictions(self.network, input_ids)

    def write(self) -> None:
        """Let the model's weights be those that follow from what is trained."""
        for unit in self.units:
            unit.write()

    def pull(self) -> None:
        """Pass the gradients of the model's weights on to what is trained, and forget them."""
        for unit in self.units:
            unit.pull()
        self.network.zero_grad(set_to_none=True)


def predictions(network: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Logits for rows of tokens; of an encoder-decoder the encoder reads the first half of each
    row. Raises EvaluationError as `next_token_logits` does."""
    encoded: Any = None
    if network.config.is_encoder_decoder:
        encoded, rows = rows.chunk(2, dim=1)
    return next_token_logits(network, rows, encoded)
