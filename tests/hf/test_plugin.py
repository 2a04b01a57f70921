"""transformers itself reads packed checkpoints, and a model in memory becomes one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.peak_memory import peak_of_loading
from transformers import AutoModel, AutoModelForCausalLM, MixtralForCausalLM

from ders_core.codecs import Quantized, Sparse
from ders_core.errors import CheckpointError, OutputError
from ders_core.hf import load_model, save_packed
from ders_core.hf.lazy import LazyTensor
from ders_core.hf.plugin import install
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, Rule

MIXED = Recipe(
    name="mixed",
    rules=(Rule(codec=Quantized(bits=3)), Rule(codec=Sparse(drop_rate=0.8), projections=("down",))),
)
TOKENS = torch.arange(20, 40)[None]


@pytest.fixture(scope="module")
def packed(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hf") / "packed"
    compress(mixtral_dir, place, MIXED)
    return place


@pytest.fixture(scope="module")
def expected(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model from the layout that came in, which knows nothing of us."""
    place = tmp_path_factory.mktemp("hf") / "dense"
    synthesize(packed, place)
    return AutoModelForCausalLM.from_pretrained(place, dtype="auto").eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(input_ids=TOKENS).logits
    return output


@pytest.mark.parametrize("device_map", [None, "cpu", {"": "cpu"}, "auto"])
def test_from_pretrained(packed: Path, expected: Any, device_map: Any) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        packed, device_map=device_map, output_loading_info=True
    )
    assert isinstance(model, MixtralForCausalLM)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype is torch.bfloat16
    assert torch.equal(logits(model), logits(expected))
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_any_class_and_dtype(packed: Path, expected: Any) -> None:
    model = MixtralForCausalLM.from_pretrained(packed, dtype=torch.float32)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    inner = AutoModel.from_pretrained(packed)
    with torch.inference_mode():
        hidden = inner(input_ids=TOKENS).last_hidden_state
        wanted = expected.model(input_ids=TOKENS).last_hidden_state
    assert torch.equal(hidden, wanted)


def test_offloaded_to_disk(packed: Path, expected: Any, tmp_path: Path) -> None:
    places = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "lm_head": "disk",
    }
    model = AutoModelForCausalLM.from_pretrained(
        packed, device_map=places, offload_folder=str(tmp_path / "offload")
    )
    with torch.no_grad():  # accelerate's hooks write to what they bring in
        got = model(input_ids=TOKENS).logits
    assert torch.equal(got, logits(expected))


def test_what_is_loaded_is_an_ordinary_model(packed: Path, expected: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(packed)
    assert getattr(model.config, "quantization_config", None) is None
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model, "hf_quantizer")
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(expected))
    model.float()
    loss = model(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    assert model.model.layers[0].mlp.experts.down_proj.grad.norm() > 0
    words = model.generate(TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert words.shape == (1, 24)


def test_a_second_install_changes_nothing(packed: Path, expected: Any) -> None:
    before = MixtralForCausalLM._load_pretrained_model
    install()
    assert MixtralForCausalLM._load_pretrained_model is before


def test_other_models_load_as_before(mixtral_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixtral_dir)
    assert torch.equal(logits(model), logits(load_model(mixtral_dir)))


def test_a_damaged_directory_is_refused_in_our_words(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "p")
    file = tmp_path / "p" / "ders_manifest.json"
    manifest = json.loads(file.read_text())
    manifest["groups"][0]["shape"][1] += 1
    file.write_text(json.dumps(manifest))
    with raises_saying(CheckpointError, tmp_path / "p", "layer 0, gate", "'base'", "copy"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "p")


def test_a_tensor_is_read_when_it_is_taken(packed: Path) -> None:
    checkpoint = PackedCheckpoint(packed)
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    lazy = LazyTensor(checkpoint.model_tensors(), name)
    assert lazy.dtype is torch.bfloat16
    assert lazy.is_floating_point()
    assert torch.equal(lazy[...], checkpoint.original.read(name))
    assert torch.equal(lazy[2:5], checkpoint.original.read(name)[2:5])


def test_no_second_copy_in_memory(packed: Path, tmp_path: Path) -> None:
    """Loading takes the model and some tensors more, not the model twice."""
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=256,
        hidden_size=384,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
    )
    model = MixtralForCausalLM(config).to(torch.bfloat16)
    size = sum(weight.nbytes for weight in model.parameters()) // 1024  # KiB
    assert size > 100_000
    model.save_pretrained(tmp_path / "model")
    del model
    compress(tmp_path / "model", tmp_path / "packed", MIXED)
    assert peak_of_loading(tmp_path / "packed", packed) < 1.5 * size


def test_save_packed(models: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    model = models["mixtral"]
    report = save_packed(model, MIXED, tmp_path / "packed", tokenizer=tokenizer)
    assert report.bytes_after == (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert (tmp_path / "packed" / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    apart = (logits(loaded) - logits(model.eval())).float().norm()
    assert 0 < float(apart / logits(model).float().norm()) < 0.5
    save_packed(model, "keep", tmp_path / "kept")  # a preset
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "kept").state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(again[name], weight)


def test_a_failed_save_leaves_nothing(models: dict[str, Any], tmp_path: Path) -> None:
    with raises_saying(CheckpointError, "no experts"):
        save_packed(models["parent"], MIXED, tmp_path / "packed")
    assert not list(tmp_path.iterdir())
    (tmp_path / "packed").mkdir()
    with raises_saying(OutputError, tmp_path / "packed", "exists"):
        save_packed(models["mixtral"], MIXED, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
