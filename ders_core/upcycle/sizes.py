"""How large an upcycled model will be, predicted from headers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.codecs.group import GroupCodec, packed_parts
from ders_core.upcycle.config import UpcycleConfig
from ders_core.upcycle.dense_model import DenseModel

ADAM_BYTES = 8
"""AdamW's two moments of a value, float32."""


@dataclass(frozen=True)
class Prediction:
    """Counts of values and bytes. dense: values of the parent. added: values besides them. trained:
    values with a gradient, without the parameters that `train` names.

    packed_bytes: of the tensors on disk, an upper bound. dense_bytes: of the parent's tensors.
    parameter_bytes, gradient_bytes, optimizer_bytes: in memory during training, without
    activations.
    """

    dense: int
    added: int
    trained: int
    dense_bytes: int
    packed_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def parameters(self) -> int:
        """Values of the upcycled model."""
        return self.dense + self.added

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"parameters": self.parameters}


def training_room(config: UpcycleConfig, trained: int) -> int:
    """Bytes of the training checkpoints that are on the disk at once. trained: values."""
    training = config.training
    written = math.ceil(training.steps / training.save_every)
    return min(training.keep + 1, written) * trained * (4 + ADAM_BYTES)


def predict(dense: DenseModel, config: UpcycleConfig) -> Prediction:
    """Reads nothing. Raises RecipeError if the configuration does not fit the model."""
    experts = config.experts + config.universal
    added = trained = index = 0
    packed = sum(info.nbytes for info in dense.store.tensors.values())
    for layer in config.chosen_layers(dense.layers):
        ffn = dense.ffns[layer]
        routers = (config.experts + config.universal) * dense.hidden
        added += routers
        trained += routers * config.router.train
        for projection in PROJECTIONS:
            matrix = ffn.weights.get(projection)
            if matrix is None:
                continue
            form, shape, size = config.form(projection), matrix.shape, math.prod(matrix.shape)
            values = experts * form.values(shape)
            bias = dense.bias_of(ffn, projection)
            biases = experts * shape[0] if bias else 0
            added += values + biases - (0 if form.shares_base else size) - bias * shape[0]
            trained += values + biases
            if form.shares_base and config.base == "trained":
                trained += size
            index += experts * form.index_bytes(shape)
            codec = GroupCodec.same(form.codec(), experts)
            parts = packed_parts(codec, (experts, *shape), matrix.dtype, biases=bias)
            packed += sum(spec.nbytes for spec in parts.values())
            packed -= (size + bias * shape[0]) * matrix.dtype.itemsize
        packed += routers * next(iter(ffn.weights.values())).dtype.itemsize
    kept = dense.parameters + added - trained
    width = 2 if config.training.bf16 else 4
    return Prediction(
        dense=dense.parameters,
        added=added,
        trained=trained,
        dense_bytes=sum(info.nbytes for info in dense.store.tensors.values()),
        packed_bytes=packed,
        parameter_bytes=kept * width + trained * 4 + index,
        gradient_bytes=trained * 4,
        optimizer_bytes=trained * ADAM_BYTES,
    )
