"""Quick evaluation against transformers' own loss and float64 brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluate_support import TOKENS, WINDOW, measure

from ders_core.evaluate.metrics import divergences, overlap
from ders_core.hf import load_model, load_tokenizer
from ders_core.hf.routing import NONE


def windows_of(directory: Path, text: Path) -> torch.Tensor:
    tokens = load_tokenizer(directory)(text.read_text(encoding="utf-8"))["input_ids"]
    count = TOKENS // (WINDOW - 1)
    return torch.tensor(tokens[: count * WINDOW]).view(count, WINDOW)


def test_a_model_agrees_with_itself(mixtral_dir: Path, text_file: Path) -> None:
    quality = measure(mixtral_dir, mixtral_dir, text_file)
    assert quality.tokens == 310
    assert quality.kl == 0
    assert quality.top1_agreement == quality.routing_agreement == 1
    assert quality.perplexity == quality.reference_perplexity


@pytest.mark.parametrize("family", ["mixtral_dir", "qwen2_moe_dir"])
def test_perplexity_is_transformers_own_loss(
    family: str, text_file: Path, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(family)
    model = load_model(directory)
    rows = windows_of(directory, text_file)
    with torch.inference_mode():
        model.config.output_router_logits = False
        loss = model(input_ids=rows, labels=rows).loss
    quality = measure(directory, None, text_file)
    assert quality.perplexity == pytest.approx(math.exp(float(loss)), rel=5e-3)  # bf16 model
    assert quality.kl is None
    assert quality.reference_perplexity is None


@pytest.mark.parametrize("family", ["mixtral_dir", "qwen2_moe_dir"])
def test_kl_and_agreements_are_those_of_float64(
    family: str, text_file: Path, request: pytest.FixtureRequest, pair_of: Callable[[Path], Any]
) -> None:
    pair = pair_of(request.getfixturevalue(family))
    rows = windows_of(pair.original, text_file)
    outputs = []
    with torch.inference_mode():
        for directory in (pair.original, pair.packed):
            model = load_model(directory, dtype=torch.float64)
            model.set_experts_implementation("eager")  # the fast one is for float32 and below
            outputs.append(model(input_ids=rows, output_router_logits=True))
    first, second = (o.logits[:, :-1].log_softmax(-1) for o in outputs)
    kl = (first.exp() * (first - second)).sum(-1).mean()
    top = (first.argmax(-1) == second.argmax(-1)).double().mean()
    shared = []
    for one, two in zip(outputs[0].router_logits, outputs[1].router_logits, strict=True):
        for a, b in zip(
            one.view(*rows.shape, -1)[:, :-1].flatten(0, 1),
            two.view(*rows.shape, -1)[:, :-1].flatten(0, 1),
            strict=True,
        ):
            shared.append(
                len(set(a.topk(2).indices.tolist()) & set(b.topk(2).indices.tolist())) / 2
            )
    loss = -second.gather(-1, rows[:, 1:, None]).mean()
    quality = measure(pair.packed, pair.original, text_file, dtype=torch.float32)
    assert quality.kl is not None
    assert quality.top1_agreement is not None
    assert quality.routing_agreement is not None
    assert quality.kl == pytest.approx(float(kl), rel=1e-4)
    assert quality.kl > 1e-3
    assert quality.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert quality.top1_agreement == pytest.approx(float(top), abs=0.004)
    assert quality.top1_agreement < 1
    assert quality.routing_agreement == pytest.approx(sum(shared) / len(shared), abs=0.004)
    assert quality.routing_agreement < 1


def test_the_package_is_called_as_its_function(mixtral_dir: Path, text_file: Path) -> None:
    from ders_core import evaluate

    quality = evaluate(mixtral_dir, text=text_file, max_tokens=62)  # type: ignore[operator]
    same = evaluate.evaluate(mixtral_dir, text=text_file, max_tokens=62)
    assert quality.perplexity == same.perplexity


def test_divergence_and_overlap_by_hand() -> None:
    first = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    second = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergences(first, second).tolist() == pytest.approx([wanted, 0], rel=1e-6, abs=1e-12)
    assert divergences(first, first).tolist() == [0, 0]
    chosen = torch.tensor([[[0, 1], [2, 3]]])
    other = torch.tensor([[[1, 0], [3, 4]]])
    assert overlap(chosen, other).tolist() == [[1.0, 0.5]]
    some, none = torch.tensor([[[2, NONE], [NONE, NONE]]]), torch.full((1, 2, 2), NONE)
    assert overlap(some, torch.tensor([[[2, 5], [NONE, 3]]])).tolist() == [[0.5, 0.0]]
    assert overlap(some, none).tolist() == [[0.0, 1.0]]


def test_a_dense_parent_is_compared_without_routing(
    mixtral_dir: Path, dense_parent_dir: Path, text_file: Path
) -> None:
    quality = measure(mixtral_dir, dense_parent_dir, text_file)
    assert quality.routing_agreement is None
    assert quality.kl is not None
    assert quality.kl > 0


def test_the_batch_changes_nothing(pair: Any, text_file: Path) -> None:
    one = measure(pair.packed, pair.original, text_file, dtype=torch.float32, batch=1)
    all_at_once = measure(pair.packed, pair.original, text_file, dtype=torch.float32, batch=64)
    assert one.kl == pytest.approx(all_at_once.kl, rel=1e-4)
    assert one.perplexity == pytest.approx(all_at_once.perplexity, rel=1e-5)


def test_the_result_is_plain_json(mixtral_dir: Path, text_file: Path) -> None:
    quality = measure(mixtral_dir, None, text_file)
    assert json.loads(json.dumps(quality.to_dict(), allow_nan=False)) == quality.to_dict()
    assert quality.device.startswith("CPU")
    assert quality.seconds > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_measures_the_same(pair: Any, text_file: Path) -> None:
    on_cpu = measure(pair.packed, pair.original, text_file, dtype=torch.float32)
    on_gpu = measure(pair.packed, pair.original, text_file, dtype=torch.float32, device="cuda")
    assert on_gpu.perplexity == pytest.approx(on_cpu.perplexity, rel=1e-3)
    assert on_gpu.kl == pytest.approx(on_cpu.kl, rel=0.02, abs=1e-5)
