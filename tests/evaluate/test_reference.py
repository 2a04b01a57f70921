"""The reference's answers on disk: exact in float32, nearly so in float16, gone afterwards."""

from __future__ import annotations

import gc
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.evaluate_support import TOKENS, measure
from support.messages import raises_saying

from ders_core import hf
from ders_core.errors import Cancelled, EvaluationError
from ders_core.evaluate import forward
from ders_core.evaluate.forward import Answers
from ders_core.evaluate.metrics import Totals, divergences
from ders_core.evaluate.reference import FLOAT32_BYTES, ReferenceStore, reference_store


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def answers_of(logits: torch.Tensor) -> Answers:
    tokens = len(logits)
    chosen = torch.arange(2 * tokens * 2).view(2, tokens, 2)
    return Answers(logits.log_softmax(-1), chosen, torch.zeros(tokens, dtype=torch.int64))


def test_float32_comes_back_as_it_was(tmp_path: Path) -> None:
    answers = answers_of(torch.randn(7, 50, generator=torch.Generator().manual_seed(0)))
    store = ReferenceStore(tmp_path, half=False)
    store.write(3, answers)
    kept = store.read(3)
    assert torch.equal(kept.log_probs, answers.log_probs)
    assert torch.equal(kept.top, answers.log_probs.argmax(-1))
    assert kept.chosen is not None
    assert answers.chosen is not None
    assert torch.equal(kept.chosen, answers.chosen)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 4.0, 30.0, 1e5]))
def test_float16_is_off_by_a_millionth_of_a_nat(seed: int, scale: float) -> None:
    answers = answers_of(
        scale * torch.randn(20, 2000, generator=torch.Generator().manual_seed(seed))
    )
    with tempfile.TemporaryDirectory() as directory:
        store = ReferenceStore(Path(directory), half=True)
        store.write(0, answers)
        kept = store.read(0)
    totals = Totals()
    totals.compare(answers, kept)
    assert 0 <= totals.kl / 20 < 4e-6
    assert totals.same_top == 20
    assert bool(torch.isfinite(kept.log_probs).all())


def test_large_stores_are_float16(
    pair: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = measure(pair.packed, pair.original, text_file, dtype=torch.float32)
    monkeypatch.setattr("ders_core.evaluate.reference.FLOAT32_BYTES", 1)
    half = measure(pair.packed, pair.original, text_file, dtype=torch.float32)
    assert half.perplexity == full.perplexity
    assert half.reference_perplexity == full.reference_perplexity
    assert half.top1_agreement == full.top1_agreement
    assert half.routing_agreement == full.routing_agreement
    assert half.kl == pytest.approx(full.kl, abs=4e-6)


def test_the_smallest_divergences_survive_float32() -> None:
    """float32 log-probabilities sum to 1 within 1e-7 only; the KL here is of that size."""
    logits = torch.randn(64, 3000, generator=torch.Generator().manual_seed(1)).double()
    moved = logits + 3e-4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    first, second = logits.log_softmax(-1), moved.log_softmax(-1)
    true = float((first.exp() * (first - second)).sum())
    assert 1e-8 < true / 64 < 1e-7
    measured = divergences(first.float(), second.float())
    assert float(measured.sum()) == pytest.approx(true, rel=1e-3)
    assert not divergences(first.float(), first.float()).any()


def test_the_precision_follows_the_size_and_the_disk_is_checked(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = FLOAT32_BYTES // 4
    free = SimpleNamespace(free=4 * most)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with reference_store(most, 1) as store:
        assert not store.half
    with reference_store(most + 1, 1) as store:
        assert store.half
    with (
        raises_saying(EvaluationError, "4.20 GB", "4.00 GB", temporary, "TMPDIR"),
        reference_store(2_100_000, 1000),
    ):
        pass
    assert not list(temporary.iterdir())


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    gone = ReferenceStore(tmp_path / "gone", half=False)
    with raises_saying(EvaluationError, "cannot be written"):
        gone.write(0, answers_of(torch.randn(2, 5)))


@pytest.mark.parametrize("limit", [0, 1, 200, TOKENS, TOKENS + 100])
def test_cancelling_anywhere_leaves_nothing(
    limit: int, mixtral_dir: Path, text_file: Path, temporary: Path
) -> None:
    def stop(done: int, total: int, message: str) -> None:
        assert total == 2 * TOKENS
        if done >= limit:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure(mixtral_dir, mixtral_dir, text_file, progress=stop)
    assert not list(temporary.iterdir())


def test_nothing_stays_and_progress_reaches_the_end(
    pair: Any, text_file: Path, temporary: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    measure(pair.packed, pair.original, text_file, progress=lambda *step: seen.append(step))
    assert not list(temporary.iterdir())
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[0][0] == 0
    assert seen[-1][:2] == (2 * TOKENS, 2 * TOKENS)
    phases = list(dict.fromkeys(message for _, _, message in seen))
    words = [("load", "original"), ("measur", "original"), ("load", "compressed")]
    words.append(("measur", "compressed"))
    assert len(phases) == len(words)
    for phase, (verb, model) in zip(phases, words, strict=True):
        assert verb in phase
        assert model in phase


def test_one_model_is_in_memory_at_a_time(
    pair: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []

    def load(path: Path, **options: Any) -> Any:
        gc.collect()
        for earlier in models:
            assert {weight.device.type for weight in earlier.parameters()} == {"meta"}
        models.append(hf.load_model(path, **options))
        return models[-1]

    monkeypatch.setattr(forward, "load_model", load)
    measure(pair.packed, pair.original, text_file)
    assert len(models) == 2
    assert {weight.device.type for weight in models[1].parameters()} == {"meta"}
