"""The FFNs of dense models, in every known form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.written_experts import Tensors, experts, write

from ders_core.checkpoint import dense_ffns
from ders_core.files.header import read_header

DENSE: dict[str, Callable[[Tensors], Tensors]] = {
    "model.layers.3.mlp": lambda w: {f"{p}_proj.weight": w[p][0] for p in w},
    "transformer.h.3.mlp": lambda w: {
        "c_fc.weight": w["up"][0].mT,
        "c_proj.weight": w["down"][0].mT,
    },
    "layers.3.mlp": lambda w: {
        "gate_up_proj.weight": torch.cat([w["gate"][0], w["up"][0]]),
        "down_proj.weight": w["down"][0],
    },
    "gpt_neox.layers.3.mlp": lambda w: {
        "dense_h_to_4h.weight": w["up"][0],
        "dense_4h_to_h.weight": w["down"][0],
    },
    "model.decoder.layers.3": lambda w: {"fc1.weight": w["up"][0], "fc2.weight": w["down"][0]},
    "encoder.block.3.layer.1.DenseReluDense": lambda w: {
        "wi_0.weight": w["gate"][0],
        "wi_1.weight": w["up"][0],
        "wo.weight": w["down"][0],
    },
}


@pytest.mark.parametrize("block", DENSE)
def test_dense_ffns(tmp_path: Path, block: str) -> None:
    weights = experts(40)
    tensors = {f"{block}.{name}": tensor for name, tensor in DENSE[block](weights).items()}
    tensors |= {name.replace(".weight", ".bias"): torch.ones(3) for name in tensors}
    path = write(tmp_path / "m", tensors)
    readers = read_header(path / "model.safetensors")[0]
    (ffn,) = dense_ffns({name: reader.spec for name, reader in readers.items()})
    assert (ffn.block, ffn.layer) == (block, 3)
    assert {"up", "down"} <= set(ffn.weights)
    for projection, weight in ffn.weights.items():
        assert torch.equal(weight.matrix(readers).read(), weights[projection][0])
