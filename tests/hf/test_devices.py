"""Wherever a packed model's weights go, to disk or in shares to ranks, they stay the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.forks import ranks
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ders_core.checkpoint.quantized import fp8
from ders_core.codecs import Keep, Quantized
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, Rule

THREE_BITS = Recipe(name="three", rules=(Rule(codec=Quantized(bits=3, group_size=8)),))
KEPT = Recipe(name="kept", rules=(Rule(codec=Keep()),))
TOKENS = torch.arange(5, 25)[None]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}
FAMILIES: dict[str, Any] = {  # an expert alone on disk; all experts of a layer in one tensor
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES)),
    "granite": lambda: GraniteMoeForCausalLM(GraniteMoeConfig(**SIZES, tie_word_embeddings=True)),
}
BLOCK = (8, 8)
DTYPES = [torch.bfloat16, torch.float32]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():  # accelerate's hooks write to what they bring in
        output: torch.Tensor = model(input_ids=TOKENS).logits
    return output


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`packed`, and by the name of each dtype what `synthesize` makes of it."""
    place = tmp_path_factory.mktemp("places")
    torch.manual_seed(0)
    FAMILIES[request.param]().to(torch.bfloat16).save_pretrained(place / "original")
    compress(place / "original", place / "packed", THREE_BITS)
    for dtype in DTYPES:
        synthesize(place / "packed", place / str(dtype), dtype=str(dtype).removeprefix("torch."))
    return place


@pytest.mark.filterwarnings("ignore:Passing a dict with `cpu`")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device_map", ["auto", {"": "disk"}])
def test_offloaded(places: Path, device_map: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    limits = {"max_memory": {"cpu": 60_000}} if device_map == "auto" else {}
    model = AutoModelForCausalLM.from_pretrained(
        places / "packed",
        device_map=device_map,
        dtype=dtype,
        offload_folder=str(tmp_path / "offload"),
        **limits,
    )
    assert "disk" in model.hf_device_map.values()
    expected = AutoModelForCausalLM.from_pretrained(places / str(dtype), dtype=dtype)
    assert torch.equal(logits(model), logits(expected))


def compare_shares(packed_dir: Path, dense_dir: Path, intermediate: int) -> None:
    """On one of two ranks."""
    from transformers.distributed import DistributedConfig

    def run(path: Path) -> tuple[torch.Tensor, tuple[int, ...]]:
        shares = DistributedConfig(tp_plan="auto", tp_size=2)
        model = AutoModelForCausalLM.from_pretrained(path, distributed_config=shares)
        experts = model.model.layers[0].mlp.experts.down_proj
        local = experts.to_local() if hasattr(experts, "to_local") else experts
        return logits(model), tuple(local.shape)

    (packed, shape), (dense, expected) = run(packed_dir), run(dense_dir)
    torch.distributed.destroy_process_group()
    assert shape == expected
    assert shape[-1] * 2 == intermediate
    assert torch.equal(packed, dense)


@pytest.mark.slow
def test_each_rank_takes_its_share(tmp_path: Path) -> None:
    """Tensor parallel on two processes: what one rank holds of a packed model, and what both say,
    is what they hold and say of the synthesized one."""
    torch.manual_seed(0)
    FAMILIES["mixtral"]().to(torch.bfloat16).save_pretrained(tmp_path / "original")
    compress(tmp_path / "original", tmp_path / "packed", THREE_BITS)
    synthesize(tmp_path / "packed", tmp_path / "dense")
    places = (tmp_path / "packed", tmp_path / "dense")
    ranks(2, compare_shares, *places, SIZES["intermediate_size"], place=tmp_path)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral whose experts and attention are fp8 codes with scales, as DeepSeek-V3 is stored."""
    place = tmp_path_factory.mktemp("coded")
    torch.manual_seed(0)
    FAMILIES["mixtral"]().to(torch.bfloat16).save_pretrained(place / "plain")
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(place / "plain" / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if ".experts." not in name and "_proj." not in name:
                tensors[name] = tensor
                continue
            blocks = tensor.float().unflatten(0, (-1, 8)).unflatten(2, (-1, 8))
            scales = blocks.abs().amax((1, 3)) / 448
            tensors[name] = fp8.quantize(tensor, scales, BLOCK)
            tensors[f"{name}_scale_inv"] = scales
    (place / "model").mkdir()
    save_file(tensors, place / "model" / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "plain" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    (place / "model" / "config.json").write_text(json.dumps(config))
    compress(place / "model", place / "packed", KEPT)
    return place / "packed"


def test_codes_are_not_offloaded_as_if_they_were_numbers(coded: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        coded, device_map={"": "disk"}, offload_folder=str(tmp_path / "offload")
    )
    assert torch.equal(logits(model), logits(load_model(coded)))
