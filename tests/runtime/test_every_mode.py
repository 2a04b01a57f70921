"""Each codec in each mode of loading: memory, replies, measurements, training on top, saving."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluate_support import measure
from support.packed_checkpoints import all_tensors
from transformers import PreTrainedModel
from typer.testing import CliRunner

from ders_core.cli.main import app
from ders_core.codecs import Chain, Codec, Entropy, Lossless, LowRank, Quantized, Sparse
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.modes import MODES, Mode
from ders_core.runtime.resident import ModeBytes, bytes_by_mode
from ders_core.units import bytes_text

__all__ = ["all_tensors"]

CODECS: dict[str, Codec] = {
    "codes": Quantized(bits=2, group_size=16),
    "learned levels": Quantized(bits=3, grid="learned", group_size=16),
    "trits": Quantized(grid="ternary", group_size=16, scale_bits=8),
    "factors": LowRank(rank=3),
    "coded factors": LowRank(rank=3, factor_bits=6),
    "random drop": Sparse(drop_rate=0.9),
    "drop in few bits": Sparse(drop_rate=0.9, value_bits=4),
    "largest": Sparse(drop_rate=0.9, method="magnitude", value_bits=8),
    "pattern": Sparse(pattern="2:4", value_bits=8),
    "rare levels": Entropy(bits=0.3, rounding="unbiased"),
    "levels": Entropy(bits=1.3, rounding="unbiased"),
    "lossless": Lossless(),
    "chain": Chain(stages=(LowRank(rank=2), Entropy(bits=1))),
    "chain of entries": Chain(stages=(LowRank(rank=2), Sparse(drop_rate=0.9, method="magnitude"))),
}
STREAMED = ("rare levels", "levels", "chain")
"""Whose bytes in memory are told to a hundredth."""

HELD: tuple[Mode, ...] = ("packed", "cached")
IDS = torch.arange(3, 43)[None] % 90


@pytest.fixture(scope="module", params=CODECS)
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path
) -> tuple[str, Path]:
    """The name of a codec, and a checkpoint that is packed with it."""
    out = tmp_path_factory.mktemp("every-mode") / "packed"
    compress(mixtral_dir, out, Recipe(name="every", rules=(Rule(codec=CODECS[request.param]),)))
    return request.param, out


@pytest.fixture(scope="module")
def of_mode(packed: tuple[str, Path]) -> dict[Mode, PreTrainedModel]:
    """In float32, loaded once: a test that changes one puts it back."""
    return {
        mode: load_model(packed[1], dtype=torch.float32, mode=mode, cache_bytes=100_000)
        for mode in MODES
    }


def replied(model: PreTrainedModel) -> torch.Tensor:
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    reply: torch.Tensor = model.generate(IDS, **options)
    return reply


def test_bytes_are_told_before_and_files_are_as_they_were(
    packed: tuple[str, Path],
    tmp_path: Path,
    all_tensors: Callable[[Path], dict[str, torch.Tensor]],
) -> None:
    """Those of the tensors that a model of each mode then has; also after it computed, it is saved
    as what was loaded."""
    name, place = packed
    modes = bytes_by_mode(open_checkpoint(place))
    assert modes is not None
    rounding = 0.01 if name in STREAMED else 0.0
    for told in modes:
        model = load_model(place, mode=told.mode)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        sizes = {name: each.nbytes for name, each in tensors.items() if "rotary" not in name}
        rotations = sum(each.nbytes for name, each in tensors.items() if "rotary" in name)
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        assert model.get_memory_footprint() - rotations == sum(sizes.values())
        assert abs(told.experts - experts) <= rounding * experts
        assert told.weights - told.experts == sum(sizes.values()) - experts
        if told.mode in HELD:
            with torch.inference_mode():
                model(IDS)
            model.save_pretrained(tmp_path / told.mode)
            before, after = all_tensors(place), all_tensors(tmp_path / told.mode)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
    whole, cached, held = modes
    assert (whole.mode, whole.cache, held.mode, held.cache) == ("synthesized", 0, "packed", 0)
    assert cached == ModeBytes("cached", held.experts, held.weights, whole.experts)


def test_replies_and_measurements_are_those_of_whole_weights(
    packed: tuple[str, Path], of_mode: dict[Mode, PreTrainedModel], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One word after another is said here. " * 40)
    expected = replied(of_mode["synthesized"])
    options: dict[str, Any] = {"dtype": torch.float32, "window": 16, "max_tokens": 60}
    whole = measure(packed[1], None, text, **options)
    for mode in HELD:
        assert torch.equal(replied(of_mode[mode]), expected)
        quality = measure(packed[1], None, text, mode=mode, **options)
        assert quality.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_learns_what_it_learns_on_whole_weights(
    of_mode: dict[Mode, PreTrainedModel],
) -> None:
    """PEFT's LoRA, after the model computed without gradients: gradients, and the loss after a
    step."""
    peft = pytest.importorskip("peft")
    found: dict[Mode, tuple[dict[str, torch.Tensor], float]] = {}
    for mode, model in of_mode.items():
        with torch.inference_mode():
            model(IDS)
        settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        tuned = peft.get_peft_model(model, settings)
        try:
            trained = {name: each for name, each in tuned.named_parameters() if each.requires_grad}
            random = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for weight in trained.values():
                    weight.normal_(std=0.1, generator=random)
            tuned(IDS, labels=IDS).loss.backward()
            gradients = {name: weight.grad.clone() for name, weight in trained.items()}
            torch.optim.SGD(trained.values(), lr=1.0).step()
            with torch.no_grad():
                found[mode] = gradients, tuned(IDS, labels=IDS).loss.item()
        finally:
            tuned.unload()
    expected, after = found["synthesized"]
    assert len(expected) == 8
    for mode in HELD:
        gradients, loss = found[mode]
        assert loss == pytest.approx(after, rel=1e-5)
        for name, gradient in expected.items():
            error = float((gradients[name] - gradient).abs().max())
            assert error <= 1e-4 * float(gradient.abs().max()), (mode, name)
            assert gradient.any()


def test_the_command_tells_the_modes(tmp_path: Path, mixtral_dir: Path) -> None:
    place = tmp_path / "packed"
    compress(mixtral_dir, place, Recipe(name="told", rules=(Rule(codec=CODECS["codes"]),)))
    told = CliRunner().invoke(app, ["info", str(place), "--runtime", "--json"])
    modes = bytes_by_mode(open_checkpoint(place))
    assert modes is not None
    assert json.loads(told.stdout) == [asdict(each) for each in modes]
    told = CliRunner().invoke(app, ["info", str(place), "--runtime"])
    lines = {line.split()[0]: line for line in told.stdout.splitlines()}
    for each in modes:
        assert bytes_text(each.experts) in lines[each.mode]
        assert bytes_text(each.weights) in lines[each.mode]
    assert "share of synthesized experts" in told.stdout
    refused = CliRunner().invoke(app, ["info", str(place), "--runtime", "--verdict"])
    assert refused.exit_code == 2
    assert "show different things" in refused.stderr
    refused = CliRunner().invoke(app, ["info", str(mixtral_dir), "--runtime"])
    assert refused.exit_code != 0
    assert "is not packed" in str(refused.exception)
