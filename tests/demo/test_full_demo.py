"""The demo as users get it, built once: what it promises about its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from ders_core.analysis import judge
from ders_core.demo import DemoResult, build_demo
from ders_core.evaluate import evaluate
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.recipe import presets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # five minutes on two idle cores, several times that on a busy one
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return build_demo(tmp_path_factory.mktemp("full") / "demo")


def test_experts_improve_on_the_dense_parent_and_differ(demo: DemoResult) -> None:
    assert demo.perplexities["moe"] < demo.perplexities["dense"]
    assert demo.perplexities["base_only"] > 1.10 * demo.perplexities["moe"]
    checkpoint = open_checkpoint(demo.moe)
    assert (checkpoint.num_experts, checkpoint.top_k, len(checkpoint.moe_layers)) == (8, 2, 4)
    assert judge(demo.mean_cosine).verdict == "upcycled"


def test_two_bits_keep_most_of_the_quality(demo: DemoResult, tmp_path: Path) -> None:
    recipe = presets()["quantized-2bit"]
    compress(demo.moe, tmp_path / "packed", recipe)
    predicted = resolve(recipe, open_checkpoint(demo.moe)).bytes_after
    assert PackedCheckpoint(tmp_path / "packed").bytes_total == predicted
    quality = evaluate(tmp_path / "packed", demo.moe, text=demo.heldout, max_tokens=8192)
    assert quality.kl is not None
    assert 0 < quality.kl < 1
    assert quality.top1_agreement is not None
    assert quality.top1_agreement > 0.5
