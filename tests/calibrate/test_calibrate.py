"""Calibration against float64 by hand, for unlike families; and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.calibrate_support import FAMILIES, SIZES, Tiny, expected
from support.measured_calibrations import READ, measure
from support.messages import raises_saying
from support.odd_models import own_code_model, with_added_token
from typer.testing import CliRunner

from ders_core.calibrate import has_room_for_each
from ders_core.checkpoint.quantized import fp8
from ders_core.cli.main import app
from ders_core.compute import precision
from ders_core.errors import Cancelled, CheckpointError, EvaluationError, OutputError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.synthesize import synthesize


def close(measured: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    assert measured is not None
    assert measured.dtype == torch.float32
    assert measured.shape == wanted.shape
    return float((measured.double() - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_and_counts_are_those_of_float64(
    family: str, saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    tiny, directory = FAMILIES[family], saved(family)
    calibration = measure(directory, tmp_path / "c.safetensors", text_file)
    checkpoint = open_checkpoint(directory)
    calibration.check(checkpoint)
    assert calibration.checkpoint == checkpoint.identity
    assert calibration.tokens == READ
    assert calibration.layers == checkpoint.moe_layers
    for layer, wanted in zip(calibration.layers, expected(directory, tiny, text_file), strict=True):
        assert torch.equal(calibration.routed(layer), wanted.routed)
        assert int(calibration.routed(layer).sum()) == READ * tiny.top_k
        assert calibration.use(layer).sum() == pytest.approx(1)
        for projection in ("gate", "up"):
            assert close(calibration.moments(layer, projection), wanted.block_input)
        assert close(calibration.moments(layer, "down"), wanted.middle)


def test_own_inputs_are_kept_where_they_are_small(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain and weighted moments of a layer's two inputs, and those of each expert."""
    checkpoint = open_checkpoint(saved("mixtral"))
    widths = {(group.layer, group.projection == "down"): group for group in checkpoint.groups()}
    each = [4 * group.shape[2] ** 2 * (2 + group.shape[0]) for group in widths.values()]
    monkeypatch.setattr("ders_core.calibrate.calibrator.ROOM_FOR_EACH", sum(each))
    assert has_room_for_each(checkpoint)
    monkeypatch.setattr("ders_core.calibrate.calibrator.ROOM_FOR_EACH", sum(each) - 1)
    assert not has_room_for_each(checkpoint)


def test_moments_are_symmetric_and_positive(calibration: Calibration) -> None:
    for layer in calibration.layers:
        for projection in ("up", "down"):
            moments = calibration.moments(layer, projection)
            assert moments is not None
            assert torch.equal(moments, moments.T)
            values = torch.linalg.eigvalsh(moments.double())
            assert values.min() > -1e-6 * values.max()


def test_what_was_not_measured_is_none(calibration: Calibration) -> None:
    assert calibration.moments(7, "up") is None
    with raises_saying(CheckpointError, "layer 7", "0, 1"):
        calibration.routed(7)


def test_wide_layers_keep_the_diagonal(
    calibration: Calibration, saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """In 32, middle 48."""
    narrow = measure(saved("mixtral"), tmp_path / "c", text_file, max_width=40)
    for layer in narrow.layers:
        whole, diagonal = calibration.moments(layer, "down"), narrow.moments(layer, "down")
        assert whole is not None
        assert close(diagonal, whole.diagonal().double())
        assert torch.equal(narrow.moments(layer, "up"), calibration.moments(layer, "up"))  # type: ignore[arg-type]


def test_the_batch_changes_nothing(
    calibration: Calibration, saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    batched = measure(saved("mixtral"), tmp_path / "c", text_file, batch=64)
    for layer in batched.layers:
        assert torch.equal(batched.routed(layer), calibration.routed(layer))
        whole = calibration.moments(layer, "down")
        assert whole is not None
        assert close(batched.moments(layer, "down"), whole.double())


def test_the_checkpoints_own_dtype(
    calibration: Calibration, saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """bfloat16 computes nearly the same, and twice the same bytes."""
    dtype = torch.bfloat16
    first = measure(saved("mixtral"), tmp_path / "first", text_file, dtype=dtype)
    second = measure(saved("mixtral"), tmp_path / "second", text_file, dtype=dtype)
    assert first.dtype == "bfloat16"
    assert first.path.read_bytes() == second.path.read_bytes()
    for layer in first.layers:
        one, other = first.moments(layer, "up"), calibration.moments(layer, "up")
        assert one is not None
        assert other is not None
        assert float((one - other).norm() / other.norm()) < 0.02


def test_auto_computes_in_what_the_cpu_multiplies(
    saved: Callable[[str], Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has, dtype in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(precision, "multiplies", lambda dtype, device, has=has: has)
        measured = measure(saved("mixtral"), tmp_path / dtype, text_file, dtype=None)
        assert measured.dtype == Calibration.open(tmp_path / dtype).dtype == dtype


def test_weights_that_are_copied_into_another_dtype_are_followed(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    """This one computes its experts in float32 whatever they are."""
    config = transformers.OpenAIPrivacyFilterConfig(num_local_experts=4, head_dim=8, **SIZES)
    build = lambda: transformers.OpenAIPrivacyFilterForTokenClassification(config)  # noqa: E731
    directory = Tiny(build, [], "").save(tmp_path / "model", tokenizer)
    copied = measure(directory, tmp_path / "copied", text_file, dtype=torch.bfloat16)
    plain = measure(directory, tmp_path / "plain", text_file)
    for layer in plain.layers:
        assert int(copied.routed(layer).sum()) == 2 * READ
        for projection in ("up", "down"):
            one, other = copied.moments(layer, projection), plain.moments(layer, projection)
            assert one is not None
            assert other is not None
            assert float((one - other).norm() / other.norm()) < 0.05


def test_fp8_is_measured_as_the_numbers_it_means(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """As DeepSeek-V3 is stored; transformers refuses to compute it in float32."""
    plain = saved("qwen2_moe")
    coded = shutil.copytree(plain, tmp_path / "fp8")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if ".experts." not in name and "_proj.weight" not in name:
            tensors[name] = tensor
            continue
        blocks = (
            tensor.float().unflatten(0, (-1, 8)).unflatten(-1, (-1, 8))
        )  # [rows, 8, columns, 8]
        tensors[f"{name}_scale_inv"] = scales = blocks.abs().amax((1, 3)) / 448
        tensors[name] = fp8.quantize(tensor, scales, (8, 8))
    save_file(tensors, coded / "model.safetensors", {"format": "pt"})
    config = json.loads((coded / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    (coded / "config.json").write_text(json.dumps(config))
    calibration = measure(coded, tmp_path / "coded", text_file, dtype=None)
    wanted = measure(plain, tmp_path / "plain", text_file, dtype=None)
    for layer in wanted.layers:
        assert int(calibration.routed(layer).sum()) == 2 * READ
        one, other = calibration.moments(layer, "up"), wanted.moments(layer, "up")
        assert one is not None
        assert other is not None
        assert float((one - other).norm() / other.norm()) < 0.1
    with raises_saying(EvaluationError, "fp8", "transformers", "dtype"):
        measure(coded, tmp_path / "refused", text_file)


def test_layers_that_transformers_leaves_on_disk_are_left_out(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    """DeepSeek-V3's 62nd layer predicts a second token; here it stands behind the third."""
    config = transformers.DeepseekV3Config(
        moe_intermediate_size=24,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        **SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 4},
    )
    tiny = Tiny(lambda: transformers.DeepseekV3ForCausalLM(config), [], "")
    directory = tiny.save(tmp_path / "model", tokenizer)
    tensors = load_file(directory / "model.safetensors")
    further = {
        name.replace("layers.2.", "layers.61."): tensor + 1
        for name, tensor in tensors.items()
        if "layers.2." in name
    }
    save_file(tensors | further, directory / "model.safetensors", {"format": "pt"})
    assert open_checkpoint(directory).moe_layers == [1, 2, 61]
    calibration = measure(directory, tmp_path / "c", text_file)
    assert calibration.layers == [1, 2]
    calibration.check(open_checkpoint(directory))


def test_a_model_that_runs_tokens_more_than_once_is_refused(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    """transformers 5.23 takes NLLB's mask of chosen experts for their numbers."""
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    steps = {"encoder_sparse_step": 1, "decoder_sparse_step": 1, "num_experts": 4}
    config = transformers.NllbMoeConfig(vocab_size=384, d_model=32, **sizes, **heads, **steps)
    tiny = Tiny(lambda: transformers.NllbMoeForConditionalGeneration(config), [], "")
    directory = tiny.save(tmp_path / "model", tokenizer)
    with raises_saying(EvaluationError, "layer 0", "expert 0", "320 tokens"):
        measure(directory, tmp_path / "c", text_file)
    assert not (tmp_path / "c").exists()


def test_values_that_are_not_finite_are_refused(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(saved("mixtral"), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][3] = float("inf")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with raises_saying(EvaluationError, "layer 1", "not finite"):
        measure(broken, tmp_path / "c", text_file)


def test_texts_and_sizes_that_make_no_sense(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words", encoding="utf-8")
    with raises_saying(EvaluationError, "too few", "at least 32"):
        measure(saved("mixtral"), tmp_path / "c", short)
    for name in ("window", "max_tokens", "batch"):
        with raises_saying(EvaluationError, f"{name} is 0", "at least"):
            measure(saved("mixtral"), tmp_path / "c", text_file, **{name: 0})


def test_what_is_no_original_checkpoint_is_refused(
    dense_parent_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    with raises_saying(CheckpointError, "no experts", dense_parent_dir.name):
        measure(dense_parent_dir, tmp_path / "c", text_file)


def test_a_packed_checkpoint_is_measured_as_what_it_stands_for(
    pair: Any, text_file: Path, tmp_path: Path
) -> None:
    synthesize(pair.packed, tmp_path / "whole")
    calibration = measure(pair.packed, tmp_path / "mine", text_file)
    wanted = measure(tmp_path / "whole", tmp_path / "wanted", text_file)
    assert calibration.layers == wanted.layers
    for layer in calibration.layers:
        assert torch.equal(calibration.routed(layer), wanted.routed(layer))
        for projection in ("gate", "up", "down"):
            one, other = (file.moments(layer, projection) for file in (calibration, wanted))
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)
    calibration.check(open_checkpoint(pair.packed))
    with pytest.raises(CheckpointError):
        calibration.check(open_checkpoint(pair.original))


def test_a_token_that_the_model_does_not_know_is_named(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    added = with_added_token(saved("mixtral"), tmp_path / "added")
    with raises_saying(EvaluationError, added, "'miller'", "token 384", "0 to 383"):
        measure(added, tmp_path / "c", text_file)


def test_code_of_the_models_own_is_run_if_it_is_trusted(
    tokenizer: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = own_code_model(tmp_path, tokenizer, monkeypatch)
    with raises_saying(CheckpointError, directory, "modeling_toy.py", "--trust-remote-code"):
        measure(directory, tmp_path / "c", text_file)
    with raises_saying(EvaluationError, "every expert received every token"):
        measure(directory, tmp_path / "c", text_file, trust_remote_code=True)


def test_codes_are_not_measured_out_of_a_packed_checkpoint(text_file: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "v1-fp8"
    with raises_saying(EvaluationError, "`ders synthesize`"):
        measure(golden, tmp_path / "c", text_file)


def test_the_output_appears_whole_or_not_at_all(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int, str]] = []

    def stop(done: int, total: int, message: str) -> None:
        steps.append((done, total, message))
        if done >= 200:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure(saved("mixtral"), tmp_path / "c", text_file, progress=stop)
    assert steps[0] == (0, READ, "loading the model")
    assert not list(tmp_path.iterdir())
    (tmp_path / "c").touch()
    with raises_saying(OutputError, tmp_path / "c", "exists already"):
        measure(saved("mixtral"), tmp_path / "c", text_file)
    with raises_saying(OutputError, tmp_path / "c", "cannot be written", "directory"):
        measure(saved("mixtral"), tmp_path / "c" / "d", text_file)


def test_the_command(saved: Callable[[str], Path], text_file: Path, tmp_path: Path) -> None:
    runner = CliRunner()

    def ders(out: str, *words: str) -> Any:
        sizes = ("--max-tokens", "310", "--window", "32", "--device", "cpu")
        call = ("calibrate", saved("mixtral"), "-o", tmp_path / out, "--text", text_file)
        return runner.invoke(app, [*map(str, call), *sizes, *words])

    first = ders("a.safetensors")
    assert first.exit_code == 0, first.output
    assert "most chosen expert" in first.stdout
    calibration = Calibration.open(tmp_path / "a.safetensors")
    assert calibration.tokens == READ
    assert isinstance(ders("a.safetensors").exception, OutputError)
    printed = json.loads(ders("b.safetensors", "--json").stdout)
    assert printed["layers"] == [0, 1]
    assert printed["tokens"] == READ
    assert printed["most_chosen"] == max(float(calibration.use(layer).max()) for layer in (0, 1))
    assert printed["least_chosen"] == min(float(calibration.use(layer).min()) for layer in (0, 1))
