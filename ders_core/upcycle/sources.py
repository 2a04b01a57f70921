"""What a training starts from, and how its result is written.

A dense model here; an upcycled checkpoint in `ders_core.upcycle.continual`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ders_core.compute.progress import Meter
from ders_core.files.store import TensorStore
from ders_core.hf import load_model, load_tokenizer
from ders_core.upcycle.architecture import choose_target
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.data import Windows
from ders_core.upcycle.dense_model import DenseModel
from ders_core.upcycle.moe_block import UpcycledFFN
from ders_core.upcycle.routers import clustered_routers, random_routers
from ders_core.upcycle.saving import save
from ders_core.upcycle.sizes import predict, training_room
from ders_core.upcycle.surgery import find_sites, module_paths, upcycle_model

CLUSTER_WINDOWS = 16
"""Windows of the text from which clustered routers are made."""


@dataclass(frozen=True)
class TrainableModel:
    """A model ready for training. blocks: its MoE blocks by layer. difference: the largest change
    of a logit against the model that came in, on the first window."""

    network: PreTrainedModel
    blocks: dict[int, UpcycledFFN]
    difference: float

    @property
    def modules(self) -> dict[int, str]:
        """Layer -> the path of its block in the network."""
        return module_paths(self.network, self.blocks)


class TrainingInput(ABC):
    """The model that came in. store: its tensors. config: the configuration, complete."""

    store: TensorStore
    config: UpcycleConfig

    @abstractmethod
    def model(self, where: torch.device, windows: Windows, meter: Meter) -> TrainableModel:
        """The MoE to train, on the device `where`. windows: of the training text. meter: told what
        is going on; it counts steps of the training, so nothing here advances it."""

    @abstractmethod
    def room(self) -> int:
        """Bytes that the training and its result take on the disk, about: at most a little less."""

    @abstractmethod
    def save(self, partial: Path, model: TrainableModel) -> None:
        """Write the files of a packed checkpoint into a directory that exists."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the output's record says of the input: `sets`, the names of its sets of deltas, the
        oldest first; `dense_config`, config.json of the dense model around the blocks."""

    @property
    def precision(self) -> torch.dtype:
        """The dtype of parameters that are not trained."""
        return torch.bfloat16 if self.config.training.bf16 else torch.float32


class FromDense(TrainingInput):
    """A dense model. Raises CheckpointError or RecipeError if it cannot be upcycled like this."""

    def __init__(self, path: str | Path, config: UpcycleConfig) -> None:
        self._dense, self.config = DenseModel.open(path), config
        self._target = choose_target(self._dense, config)
        self.store = self._dense.store

    def model(self, where: torch.device, windows: Windows, meter: Meter) -> TrainableModel:
        meter.report("loading the dense model")
        network = load_model(self.store.path, dtype=self.precision).to(where)
        first = windows[0]["input_ids"].unsqueeze(0).to(where)
        routers = self._routers(network, windows, meter)
        meter.report("making the experts and comparing their start with the dense model")
        with torch.no_grad():
            before = network(input_ids=first, use_cache=False).logits
            blocks = upcycle_model(network, self.config, routers)
            after = network(input_ids=first, use_cache=False).logits
        return TrainableModel(network, blocks, float((before - after).abs().max()))

    def room(self) -> int:
        predicted = predict(self._dense, self.config)
        return predicted.packed_bytes + training_room(self.config, predicted.trained)

    def save(self, partial: Path, model: TrainableModel) -> None:
        save(partial, self._dense, model.network, model.blocks, self.config, self._target)
        if self._target.needs_ders:  # a file may name a class that goes with the dense family alone
            load_tokenizer(self.store.path).save_pretrained(partial)

    def record(self) -> dict[str, Any]:
        return {"sets": [self.config.name], "dense_config": self._dense.config}

    def _routers(
        self, network: PreTrainedModel, windows: Windows, meter: Meter
    ) -> dict[int, torch.Tensor]:
        config, router = self.config, self.config.router
        chosen = config.chosen_layers(self._dense.layers)
        if router.init == "random":
            width = self._dense.hidden
            return random_routers(chosen, config.experts, width, router.std, config.seed)
        sites = {site.layer: site for site in find_sites(network) if site.layer in chosen}
        rows = windows.tokens[:CLUSTER_WINDOWS].long().to(network.device)
        return clustered_routers(
            network,
            {layer: network.get_submodule(site.path) for layer, site in sites.items()},
            rows.split(config.training.batch),
            config.experts,
            config.seed,
            meter.report,
        )
