"""What a repair holds in memory, told before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ders_core.compute.device import device_label
from ders_core.compute.memory import free_memory
from ders_core.errors import EvaluationError
from ders_core.hf.describe import ModelFacts
from ders_core.repair.settings import RepairSettings
from ders_core.units import bytes_text

ACTIVATIONS = 40
"""Values that a layer keeps of a token for its gradients, for each of the hidden size: attention,
norms, and a few experts of the usual width."""


@dataclass(frozen=True)
class Needed:
    """Bytes. models: original and repaired in float32. gradients: of the weights that follow from
    what is trained. codes: unpacked. trained: parameters, their gradients, Adam's moments.
    activations: of one step, logits among them."""

    models: int
    gradients: int
    codes: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return self.models + self.gradients + self.codes + self.trained + self.activations

    @property
    def text(self) -> str:
        return (
            f"about {bytes_text(self.total)} of memory ({bytes_text(self.models)} for the original "
            f"and the packed model in float32, {bytes_text(self.gradients)} for gradients)"
        )


def needed(
    facts: ModelFacts,
    config: PreTrainedConfig,
    coded: Sequence[tuple[int, ...]],
    trained: int,
    window: int,
    settings: RepairSettings,
) -> Needed:
    """coded: shapes of the coded stacks. trained: how many values are."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    width = int(getattr(text, "hidden_size", 0) or 0)
    layers = int(getattr(text, "num_hidden_layers", 0) or 0)
    tokens = settings.batch * window
    of_codes = sum(math.prod(shape) for shape in coded)
    return Needed(
        models=2 * 4 * facts.values,
        gradients=4 * facts.values,
        codes=4 * of_codes,
        trained=16 * trained,
        activations=4 * tokens * (ACTIVATIONS * width * layers + 4 * (facts.vocabulary or 0)),
    )


def check_memory(wanted: Needed, device: torch.device) -> None:
    """Raise EvaluationError if the device has less."""
    free = free_memory(device)
    if wanted.total > free:
        raise EvaluationError(
            f"a repair needs {wanted.text}, and {device_label(device)} has {bytes_text(free)} "
            "free; give a smaller batch or window, or a machine with more memory"
        )
