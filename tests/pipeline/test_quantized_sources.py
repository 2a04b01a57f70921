"""Checkpoints whose weights are codes: read as numbers, packed, put back as codes, loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.messages import raises_saying

from ders_core.checkpoint.held import held
from ders_core.checkpoint.layouts import Projection
from ders_core.checkpoint.quantized import fp8, mxfp4
from ders_core.codecs import Keep, Quantized
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

Tensors = dict[str, torch.Tensor]
BLOCK = (8, 8)  # divides every shape: transformers reads other grids in its own way


def read(directory: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def rewritten(source: Path, out: Path, tensors: Tensors, quantization: dict[str, Any]) -> Path:
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture(scope="module")
def fp8_dir(qwen2_moe_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2-MoE with experts and attention in fp8, as DeepSeek-V3 is stored."""
    tensors: Tensors = {}
    for name, tensor in read(qwen2_moe_dir).items():
        if ".experts." not in name and "_proj.weight" not in name:
            tensors[name] = tensor
            continue
        out, width = tensor.shape
        high, wide = BLOCK
        grid = math.ceil(out / high), math.ceil(width / wide)
        padded = torch.zeros(grid[0] * high, grid[1] * wide)
        padded[:out, :width] = tensor.float()
        largest = padded.view(grid[0], high, grid[1], wide).abs().amax((1, 3))
        scales = largest / 448
        tensors[name] = fp8.quantize(tensor, scales, BLOCK)
        tensors[f"{name}_scale_inv"] = scales
    place = tmp_path_factory.mktemp("fp8") / "model"
    settings = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    return rewritten(qwen2_moe_dir, place, tensors, settings)


@pytest.fixture(scope="module")
def mxfp4_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-OSS with its experts in mxfp4, as it is published."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        layer_types=["full_attention"] * 2,
    )
    model = GptOssForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.copy_(0.1 * torch.randn_like(weight[:1]) + 0.05 * torch.randn_like(weight))
            for bias in (layer.mlp.experts.gate_up_proj_bias, layer.mlp.experts.down_proj_bias):
                bias.copy_(0.1 * torch.randn_like(bias))
    place = tmp_path_factory.mktemp("mxfp4")
    model.to(torch.bfloat16).save_pretrained(place / "plain")
    tensors: Tensors = {}
    for name, tensor in read(place / "plain").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = tensor
            continue
        numbers = tensor.mT.float().contiguous()  # [E, out, in]
        largest = numbers.unflatten(-1, (-1, 32)).abs().amax(-1)
        scales = (largest / 6).log2().ceil().add(127).to(torch.uint8)
        tensors[f"{name}_blocks"] = mxfp4.quantize(numbers, scales)
        tensors[f"{name}_scales"] = scales
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    return rewritten(place / "plain", place / "model", tensors, settings)


@pytest.fixture(params=["fp8", "mxfp4"])
def source(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(f"{request.param}_dir")
    return directory


def recipe(codec: Any, *projections: Projection) -> Recipe:
    rule = Rule(codec=codec, projections=projections or ("gate", "up", "down"))
    return Recipe(name="one", rules=(rule,))


def test_fp8_is_read_as_numbers(fp8_dir: Path) -> None:
    checkpoint, tensors = open_checkpoint(fp8_dir), read(fp8_dir)
    assert checkpoint.recognition.sure == 1
    for group in checkpoint.groups():
        assert group.dtype is Dtype.BF16
        for expert, matrix in enumerate(group.experts):
            codes = tensors[matrix.info.name].double()
            scales = tensors[f"{matrix.info.name}_scale_inv"].double()
            rows, columns = torch.arange(codes.shape[0]), torch.arange(codes.shape[1])
            wanted = codes * scales[(rows // BLOCK[0])[:, None], columns // BLOCK[1]]
            got = group.read(expert)
            assert torch.equal(got, wanted.float().bfloat16())
            assert torch.equal(group.read(expert, slice(7, 23)), got[7:23])
    stored = {name for name in tensors if name.endswith("_scale_inv")}
    assert stored <= {info.name for info in checkpoint.other_tensors()}


def test_mxfp4_is_read_as_transformers_reads_it(mxfp4_dir: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    checkpoint, tensors = open_checkpoint(mxfp4_dir), read(mxfp4_dir)
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.experts"
        both, down = (
            convert_moe_packed_tensors(
                tensors[f"{name}.{which}_blocks"], tensors[f"{name}.{which}_scales"]
            )
            for which in ("gate_up_proj", "down_proj")
        )  # [E, in, out]
        wanted = {"gate": both[..., ::2].mT, "up": both[..., 1::2].mT, "down": down.mT}
        for projection, weights in wanted.items():
            group = checkpoint.group(layer, projection)
            assert torch.equal(group.read(), weights)
            assert torch.equal(group.read(rows=slice(3, 9)), weights[:, 3:9])
            assert group.biases


def test_keep_comes_back_byte_for_byte(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "p", recipe(Keep()))
    synthesize(tmp_path / "p", tmp_path / "s")
    files = [place / "model.safetensors" for place in (source, tmp_path / "s")]
    assert files[0].read_bytes() == files[1].read_bytes()
    configs = [
        json.loads((place / "config.json").read_text()) for place in (source, tmp_path / "s")
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("projections", [("gate", "up", "down"), ("up",)])
def test_codes_are_written_again_under_the_same_scales(
    source: Path, tmp_path: Path, projections: tuple[Projection, ...]
) -> None:
    """Same names, shapes and dtypes; what was encoded is the nearest code to what was synthesized,
    and a projection that shares a tensor with it comes back code for code."""
    made = recipe(Quantized(bits=4, group_size=16), *projections)
    report = compress(source, tmp_path / "p", made)
    assert verify(tmp_path / "p", source).ok
    synthesize(tmp_path / "p", tmp_path / "s")
    before, after = read(source), read(tmp_path / "s")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
        n: (t.shape, t.dtype) for n, t in after.items()
    }
    packed, back = PackedCheckpoint(tmp_path / "p"), open_checkpoint(tmp_path / "s")
    assert {entry.codec for entry in report.entries if entry.projection == "up"} == {
        "4-bit, blocks of 16"
    }
    for group in open_checkpoint(source).groups():
        got = back.group(*group.key).read()
        if group.projection not in projections:
            assert torch.equal(got, group.read())
            continue
        stored = next(g for g in packed.manifest.groups if (g.layer, g.projection) == group.key)
        for expert in range(group.shape[0]):
            wanted = packed.matrices.weight(stored, expert).float()
            # codes of 3 bits of precision: a sixteenth of the value, or half the smallest step
            apart = (got[expert].float() - wanted).abs()
            largest = float(group.read(expert).abs().max())
            assert float((apart - wanted.abs() / 4).max()) < largest / 8
    others = [name for name in before if "experts" not in name or name.endswith(("_inv", "scales"))]
    assert all(torch.equal(before[name], after[name]) for name in others)


def test_numbers_that_were_not_changed_become_their_codes_again(
    source: Path, tmp_path: Path
) -> None:
    """A base with deltas that keep everything: every code is found again."""
    made = recipe(Quantized(bits=8, group_size=4))
    compress(source, tmp_path / "p", made)
    synthesize(tmp_path / "p", tmp_path / "s")
    before, after = read(source), read(tmp_path / "s")
    codes = [name for name in before if before[name].dtype in (torch.float8_e4m3fn, torch.uint8)]
    assert codes
    for name in codes:
        same = before[name].view(torch.uint8) == after[name].view(torch.uint8)
        # 8 bits of a delta are finer than the codes; a byte of mxfp4 holds two of them
        assert float(same.float().mean()) > (0.9 if before[name].dtype is not torch.uint8 else 0.8)


def test_a_packed_one_is_read_as_the_codes_that_it_stands_for(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "p", recipe(Quantized(bits=4, group_size=16)))
    synthesize(tmp_path / "p", tmp_path / "s")
    packed, wanted = open_checkpoint(tmp_path / "p"), open_checkpoint(tmp_path / "s")
    assert packed.scheme == wanted.scheme
    assert packed.config == wanted.config
    for group, expected in zip(packed.groups(), wanted.groups(), strict=True):
        assert group.is_quantized
        assert held(group).is_quantized
        assert group.of_rows([slice(2, 5)]).is_quantized
        assert torch.equal(group.read(), expected.read())
        assert torch.equal(group.read(1, slice(5, 9)), expected.read(1, slice(5, 9)))
    for name, codes in read(tmp_path / "s").items():
        assert torch.equal(packed.read(name).view(torch.uint8), codes.view(torch.uint8))
    again = recipe(Quantized(bits=2, group_size=16))
    compress(tmp_path / "p", tmp_path / "p2", again)
    compress(tmp_path / "s", tmp_path / "s2", again)
    one, other = (PackedCheckpoint(tmp_path / name).manifest for name in ("p2", "s2"))
    assert one.checksums == other.checksums
    assert one.groups == other.groups
    assert one.source.files == other.source.files
    assert verify(tmp_path / "p2", tmp_path / "p").ok


def test_transformers_loads_what_was_packed(source: Path, tmp_path: Path) -> None:
    """The plain numbers, bit for bit those of a model that was dequantized beforehand."""
    plain: Tensors = {}
    packed_dir = tmp_path / "p"
    compress(source, packed_dir, recipe(Keep(), "gate"))
    packed = PackedCheckpoint(packed_dir)
    parameters = packed.model_tensors()
    for name, parameter in parameters.names().items():
        plain[parameter] = parameters.read(name).contiguous()
    assert not [name for name in plain if "scale" in name or "blocks" in name]
    plain_dir = tmp_path / "plain"
    plain_dir.mkdir()
    save_file(plain, plain_dir / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (plain_dir / "config.json").write_text(json.dumps(config))
    text = torch.arange(12)[None]
    with torch.inference_mode():
        got = load_model(packed_dir)(input_ids=text).logits
        wanted = load_model(plain_dir)(input_ids=text).logits
    assert torch.equal(got, wanted)
    assert float(got.float().std()) > 0


def test_what_was_kept_answers_as_transformers_reads_the_original(
    source: Path, tmp_path: Path
) -> None:
    """transformers dequantizes the original by its own means."""
    compress(source, tmp_path / "p", recipe(Keep()))
    text = torch.arange(12)[None]
    with torch.inference_mode():
        got = load_model(tmp_path / "p")(input_ids=text).logits
        wanted = load_model(source)(input_ids=text).logits
    assert torch.equal(got, wanted)


def test_codes_are_not_written_in_another_dtype(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "packed", recipe(Quantized(bits=4)))
    with raises_saying(CheckpointError, tmp_path / "packed", "codes", "float32"):
        synthesize(tmp_path / "packed", tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()


def test_missing_scales_are_named(fp8_dir: Path, tmp_path: Path) -> None:
    tensors = read(fp8_dir)
    gone = next(name for name in tensors if name.endswith("experts.2.up_proj.weight_scale_inv"))
    del tensors[gone]
    place = rewritten(fp8_dir, tmp_path / "m", tensors, {"quant_method": "fp8"})
    with raises_saying(CheckpointError, gone.removesuffix("_scale_inv"), "scale"):
        open_checkpoint(place)
