"""The demo that comes with the package: its promises, and that what was packed comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.messages import raises_saying
from support.shell import ders

from ders_core.demo import unpack
from ders_core.demo.unpack import TRAINED, unpack_demo
from ders_core.errors import CheckpointError, OutputError
from ders_core.files.dtype import Dtype
from ders_core.hf import load_model, load_tokenizer
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.verify import verify

WINDOW, EXPERTS, LAYERS = 256, 8, 4
PROJECTIONS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Of the dense parent, and of the Mixtral layout."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shipped") / "demo"
    seen: list[tuple[int, int]] = []
    result = unpack_demo(out, progress=lambda done, total, message: seen.append((done, total)))
    assert (result.moe, result.dense) == (out / "moe", out / "dense")
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    return out


@pytest.fixture(scope="module")
def figures(demo: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((demo / "demo.json").read_text())
    return read


@pytest.fixture(scope="module")
def weights(demo: Path) -> dict[str, torch.Tensor]:
    read: dict[str, torch.Tensor] = load_file(demo / "moe" / "model.safetensors")
    return read


def expert_name(layer: int, expert: int, projection: str) -> str:
    word = PROJECTIONS[projection]
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{word}.weight"


@pytest.fixture(scope="module")
def perplexities(demo: Path, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """On the held-out text, in windows, by transformers' own loss. `base_only` has the mean of a
    layer's experts in the place of each, and is measured on every fourth window."""
    text = (demo / "heldout.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(load_tokenizer(demo / "dense")(text, verbose=False)["input_ids"])
    rows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    mean = demo.parent / "mean"
    shutil.copytree(demo / "moe", mean)
    _write_means(weights, mean / "model.safetensors")
    measured = {}
    for name, place in (("dense", demo / "dense"), ("moe", demo / "moe"), ("base_only", mean)):
        model = load_model(place, dtype=torch.float32)
        read = rows[::4] if name == "base_only" else rows
        with torch.inference_mode():
            losses = [
                len(part) * model(input_ids=part, labels=part).loss.double()
                for part in read.split(8)
            ]
        measured[name] = float((torch.stack(losses).sum() / len(read)).exp())
    return measured


def _write_means(weights: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    means = dict(weights)
    for layer in range(LAYERS):
        for projection in PROJECTIONS:
            names = [expert_name(layer, expert, projection) for expert in range(EXPERTS)]
            mean = torch.stack([weights[name].float() for name in names]).mean(0).bfloat16()
            means |= {name: mean.clone() for name in names}
    save_file(means, file, metadata={"format": "pt"})


def test_it_is_a_mixtral_of_eight_experts_in_four_layers(demo: Path) -> None:
    checkpoint = open_checkpoint(demo / "moe")
    assert (checkpoint.family, checkpoint.dtype) == ("mixtral", Dtype.BF16)
    assert (checkpoint.num_experts, checkpoint.top_k) == (EXPERTS, 2)
    assert checkpoint.moe_layers == list(range(LAYERS))


def test_its_experts_are_close(weights: dict[str, torch.Tensor], figures: dict[str, Any]) -> None:
    cosines = []
    for layer in range(LAYERS):
        for projection in PROJECTIONS:
            flat = np.stack(
                [
                    weights[expert_name(layer, expert, projection)].double().numpy().ravel()
                    for expert in range(EXPERTS)
                ]
            )
            unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
            pairs = np.triu_indices(EXPERTS, 1)
            cosines.append((unit @ unit.T)[pairs].mean())
    assert 0.99 <= np.mean(cosines) < 0.9999
    assert figures["mean_cosine"] == pytest.approx(float(np.mean(cosines)), rel=1e-9)


@pytest.mark.slow
def test_its_experts_matter(perplexities: dict[str, float], figures: dict[str, Any]) -> None:
    """And the figures that come with it are those of its files."""
    told = figures["perplexities"]
    assert told["moe"] < told["dense"]
    assert told["base_only"] >= 1.10 * told["moe"]
    for name, tolerance in (("dense", 1e-3), ("moe", 1e-3), ("base_only", 0.2)):
        assert told[name] == pytest.approx(perplexities[name], rel=tolerance)


def test_its_parent_is_what_the_experts_came_from(
    demo: Path, weights: dict[str, torch.Tensor]
) -> None:
    """Deltas are taken against the parent's FFNs; all else is the MoE's, but for the routers."""
    parent = load_file(demo / "dense" / "model.safetensors")
    outside = {name: weight for name, weight in weights.items() if "block_sparse_moe" not in name}
    ffns = {name for name in parent if ".mlp." in name}
    assert parent.keys() == outside.keys() | ffns
    assert len(ffns) == LAYERS * len(PROJECTIONS)
    assert all(torch.equal(parent[name], weight) for name, weight in outside.items())
    for layer in range(LAYERS):
        for projection in PROJECTIONS:
            start = parent[f"model.layers.{layer}.mlp.{projection}.weight"].double().flatten()
            for expert in range(EXPERTS):
                trained = weights[expert_name(layer, expert, projection)].double().flatten()
                assert torch.cosine_similarity(start, trained, dim=0) > 0.98
                assert not torch.equal(start, trained)
    tokenizer = load_tokenizer(demo / "dense")
    text = "def f(x):\n    return x  # ü"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_is_unpacked_is_what_was_packed(demo: Path) -> None:
    """Bit for bit: the manifest holds a hash of the trained experts."""
    assert verify(TRAINED / "moe", demo / "moe").ok
    packed = PackedCheckpoint(TRAINED / "moe")
    assert {str(group.codec) for group in packed.manifest.groups} == {"{'codec': 'lossless'}"}
    assert open_checkpoint(demo / "moe").identity == packed.manifest.source.identity


def test_it_is_small() -> None:
    sizes = [file.stat().st_size for file in TRAINED.rglob("*") if file.is_file()]
    assert sum(sizes) <= 8_000_000


def test_the_command_unpacks_it(tmp_path: Path, demo: Path, figures: dict[str, Any]) -> None:
    done = ders("demo", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "again" / "moe") in done.stdout
    assert f"moe: {figures['perplexities']['moe']:.4g}" in done.stdout
    files = {path.relative_to(demo) for path in demo.rglob("*") if path.is_file()}
    again = tmp_path / "again"
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert all((demo / file).read_bytes() == (again / file).read_bytes() for file in files)


@pytest.mark.parametrize("option", [("--seed", "1"), ("--steps", "4")])
def test_what_belongs_to_a_training_is_refused_without_one(
    tmp_path: Path, option: tuple[str, str]
) -> None:
    done = ders("demo", tmp_path / "demo", *option)
    assert done.returncode == 2
    assert option[0] in done.stderr
    assert "--build" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "file", ["moe/model.safetensors", "moe/ders_manifest.json", "heldout.txt.gz", "demo.json"]
)
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_package_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, how: str
) -> None:
    copy = shutil.copytree(TRAINED, tmp_path / "trained")
    data = bytearray((copy / file).read_bytes())
    if how == "missing":
        (copy / file).unlink()
    else:
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        (copy / file).write_bytes(data)
    monkeypatch.setattr(unpack, "TRAINED", copy)
    with raises_saying(CheckpointError, copy / Path(file).parent):
        unpack_demo(tmp_path / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    with raises_saying(OutputError, tmp_path / "demo", "exists already"):
        unpack_demo(tmp_path / "demo")


def test_unpacking_needs_no_transformers() -> None:
    """Their import alone would take longer than the unpacking."""
    code = "import ders_core.demo.unpack, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
