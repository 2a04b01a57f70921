"""What a repair refuses, in one sentence and without an output; how one is stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.messages import raises_saying
from support.repair_support import STEPS, Repaired, settings
from support.shell import ders, error_of

import ders_core.repair
from ders_core.codecs import Keep
from ders_core.errors import Cancelled, CheckpointError, EvaluationError, OutputError, RecipeError
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.recipe import Recipe, Rule
from ders_core.repair import RepairSettings, memory
from ders_core.repair.result import NotBetter

Repair = Callable[..., Any]


@pytest.fixture
def run(loud_dir: Path, tuned_dir: Path, repair_texts: tuple[Path, Path], tmp_path: Path) -> Repair:
    """A repair with some of its inputs changed; fields that are settings are such."""

    def start(**changed: Any) -> Any:
        fields = {key: changed.pop(key) for key in [*changed] if key in RepairSettings.model_fields}
        places = {"packed": tuned_dir, "original": loud_dir, "out": tmp_path / "out"}
        texts = {"text": repair_texts[0], "heldout": repair_texts[1]}
        inputs: dict[str, Any] = {**places, **texts, **changed}
        call: Any = ders_core.repair  # the package is called as its function
        return call(**inputs, settings=settings(**fields), device="cpu")

    return start


def nothing_below(directory: Path) -> bool:
    return not [path for path in directory.iterdir() if path.name.startswith("out")]


def test_another_original(run: Repair, scratch_dir: Path, tmp_path: Path) -> None:
    with raises_saying(CheckpointError, scratch_dir, "another checkpoint", "identity"):
        run(original=scratch_dir)
    assert nothing_below(tmp_path)


def test_words_and_numbers_that_are_not_known() -> None:
    with raises_saying(RecipeError, "'weights'", "scales", "bases", "norms"):
        settings(train=("scales", "weights"))
    with raises_saying(RecipeError, "steps"):
        settings(steps=0)
    assert settings(train=("norms", "scales")).train == ("scales", "norms")


def test_nothing_to_train(run: Repair, loud_dir: Path, tmp_path: Path) -> None:
    compress(loud_dir, tmp_path / "kept", Recipe(name="kept", rules=(Rule(codec=Keep()),)))
    with raises_saying(RecipeError, tmp_path / "kept", "nothing", "bases", "scales"):
        run(packed=tmp_path / "kept", train=("scales", "bases"))
    with raises_saying(CheckpointError, loud_dir, "not packed"):
        run(packed=loud_dir)


def test_too_little_text(run: Repair, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Only a few words. " * 4, encoding="utf-8")
    with raises_saying(EvaluationError, "held-out", "8"):
        run(heldout=short)
    with raises_saying(EvaluationError, short):
        run(text=tmp_path / "short.txt", heldout=None, window=128)


def test_what_was_trained_on_is_not_measured_with(
    run: Repair, repair_texts: tuple[Path, Path]
) -> None:
    with raises_saying(EvaluationError, "training reads"):
        run(heldout=repair_texts[0])


def test_too_little_memory(run: Repair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1_000_000)
    with raises_saying(EvaluationError, " 1.00 MB", "memory", "batch"):
        run()
    assert nothing_below(tmp_path)


def test_what_is_not_better_is_not_kept(run: Repair, tmp_path: Path) -> None:
    with raises_saying(NotBetter, "not kept", "0.00476", "before", "after", "rate"):
        run(steps=1, rate=1)
    assert nothing_below(tmp_path)


def test_damage_is_seen_before_the_work(run: Repair, tuned_dir: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in tuned_dir.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    with raises_saying(CheckpointError, damaged, "damaged"):
        run(packed=damaged)
    assert nothing_below(tmp_path)


def test_a_stopped_repair_goes_on_and_comes_to_the_same(
    run: Repair, repaired: Repaired, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    def stop_at(beginning: str) -> Callable[[int, int, str], None]:
        def stop(done: int, total: int, message: str) -> None:
            if message.startswith(beginning):
                raise Cancelled("stopped")

        return stop

    with pytest.raises(Cancelled):
        run(save_every=2, progress=stop_at(f"step {STEPS - 1}"))
    assert not (tmp_path / "out").exists()
    with raises_saying(OutputError, "--resume"):
        run(save_every=2)
    with raises_saying(OutputError, "another"):
        run(save_every=2, resume=True, rate=0.02)
    with pytest.raises(Cancelled):
        run(save_every=2, resume=True, progress=stop_at("measuring the repaired"))
    result = run(save_every=2, resume=True)
    assert f"step {STEPS}" in result.resumed
    assert snapshot(tmp_path / "out") == snapshot(repaired.out)


def test_the_command(
    tuned_dir: Path, loud_dir: Path, repair_texts: tuple[Path, Path], tmp_path: Path
) -> None:
    export(tuned_dir, tmp_path / "home", quality={"tokens": 9, "perplexity": 9.0, "kl": 0.123})
    words = ["repair", tmp_path / "home", "--original", loud_dir, "--text", repair_texts[0]]
    words += ["--window", 32, "--batch", 4, "--steps", 6, "--rate", 0.005, "--device", "cpu"]
    done = ders(*words, "-o", tmp_path / "out", "--train", "bases,norms", "--train", "scales")
    assert done.returncode == 0, done.stderr
    facts = ("KL", "bases", "norms", "scales", "6 steps", "95 %", "not trained on")
    assert all(fact in done.stdout for fact in facts)
    assert set(PackedCheckpoint(tmp_path / "out").manifest.repairs[0].trained) == {
        "bases",
        "norms",
        "scales",
    }
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "0.123" not in card  # what was true before
    assert "Repaired" in card
    assert "train.txt" in card
    refused = ders(*words, "-o", tmp_path / "out")
    assert refused.returncode == 1
    assert str(tmp_path / "out") in error_of(refused)
