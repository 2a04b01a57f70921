"""Real trainings of a few steps: what is trained, what stays, stopping, resuming, several
processes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.changed_bytes import change_unseen
from support.forks import ranks
from support.messages import raises_saying
from support.upcycle_support import (
    LOW_RANK,
    RENEWED,
    SPARSE,
    STEPS,
    assert_same,
    config_of,
    tensors,
)

from ders_core.cli.main import main
from ders_core.errors import Cancelled, DersError
from ders_core.files.store import TensorStore
from ders_core.packed.manifest import FORMAT_VERSION
from ders_core.upcycle import training, upcycler
from ders_core.upcycle.history import read_history
from ders_core.upcycle.upcycler import read_result, upcycle


class StopAt:
    """A progress that asks to stop after some steps, once."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.seen: list[int] = []

    def __call__(self, done: int, total: int, message: str) -> None:
        self.seen.append(done)
        if done == self.step and message.startswith("step"):
            raise Cancelled("asked to stop")


@pytest.mark.parametrize(
    ("model", "forms"),
    [("llama", LOW_RANK), ("llama", "[{form: vanilla}]"), ("gpt2", RENEWED)],
)
def test_a_stopped_training_goes_on_exactly(
    model: str, forms: str, text: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dense = request.getfixturevalue(model)
    config = config_of(text, forms)
    upcycle(dense, tmp_path / "straight", config, device="cpu")
    stop = StopAt(3)  # between two checkpoints of save_every
    with pytest.raises(Cancelled):
        upcycle(dense, tmp_path / "stopped", config, device="cpu", progress=stop)
    assert not (tmp_path / "stopped").exists()
    assert stop.seen[-1] == 3
    assert list(read_history(tmp_path / "stopped").steps["step"]) == [1, 2, 3]
    went_on: list[int] = []
    upcycle(
        dense,
        tmp_path / "stopped",
        config,
        device="cpu",
        resume=True,
        progress=lambda done, total, message: went_on.append(done),
    )
    assert went_on[0] == 3  # the preparation, before a step
    assert min(step for step in went_on if step > 3) == 4
    assert went_on == sorted(went_on)
    assert_same(tmp_path / "straight", tmp_path / "stopped")
    one, other = read_history(tmp_path / "straight"), read_history(tmp_path / "stopped")
    assert list(other.steps["step"]) == list(range(1, STEPS + 1))
    assert one.steps["loss"].tolist() == pytest.approx(other.steps["loss"].tolist(), abs=1e-9)


def test_training_lowers_the_loss_and_tells_of_it(
    llama: Path, text: Path, heldout: Path, tmp_path: Path
) -> None:
    config = config_of(
        text, data={"heldout": str(heldout)}, training={"steps": 30, "measure_every": 10}
    )
    result = upcycle(llama, tmp_path / "out", config, device="cpu")
    tables = read_history(tmp_path / "out")
    assert result.perplexity is not None
    assert result.dense_perplexity is not None
    assert result.perplexity < 0.9 * result.dense_perplexity
    assert tables.heldout["step"].tolist() == [0, 10, 20, 30]
    first, last = tables.heldout["heldout_perplexity"].iloc[[0, -1]]
    assert first == pytest.approx(result.dense_perplexity, rel=1e-3)
    assert last == pytest.approx(result.perplexity, rel=1e-3)
    losses = tables.steps["loss"]
    assert losses.iloc[-5:].mean() < losses.iloc[:5].mean()
    sums = tables.loads.groupby(["step", "layer"])["share"].sum()
    assert sums.tolist() == pytest.approx([1.0] * len(sums), abs=1e-5)
    assert result == read_result(tmp_path / "out")
    assert result.start_difference < 1e-4
    rates = tables.steps["rate"]
    assert rates.max() == pytest.approx(1e-2, rel=0.05)
    assert rates.iloc[-1] < 1e-3


def names_that_changed(dense: Path, out: Path) -> set[str]:
    before, after = tensors(dense), tensors(out)
    return {
        name
        for name, tensor in after.items()
        if name in before and not torch.equal(before[name], tensor)
    }


@pytest.mark.parametrize("base", ["trained", "frozen"])
def test_only_what_was_asked_for_is_trained(
    base: str, llama: Path, text: Path, tmp_path: Path
) -> None:
    config = config_of(text, base=base, train=["*.layers.1.self_attn.q_proj.weight"])
    upcycle(llama, tmp_path / "out", config, device="cpu")
    changed = names_that_changed(llama, tmp_path / "out")
    assert changed == {"model.layers.1.self_attn.q_proj.weight"}
    dense, packed = tensors(llama), tensors(tmp_path / "out")
    kept = torch.equal(
        dense["model.layers.0.mlp.up_proj.weight"],
        packed["model.layers.0.block_sparse_moe.ders.up.base"],
    )
    assert kept == (base == "frozen")
    assert packed["model.layers.0.block_sparse_moe.ders.up.left"].abs().sum() > 0


def test_a_frozen_router_and_other_rates(llama: Path, text: Path, tmp_path: Path) -> None:
    still = config_of(text, router={"train": False, "std": 0.1})
    upcycle(llama, tmp_path / "still", still, device="cpu")
    moved = config_of(text, router={"std": 0.1}, training={"router_rate": 0.1, "base_rate": 0.0})
    upcycle(llama, tmp_path / "moved", moved, device="cpu")
    one, other = tensors(tmp_path / "still"), tensors(tmp_path / "moved")
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert (one[gate] - other[gate]).abs().mean() > 0.05
    base = "model.layers.0.block_sparse_moe.ders.up.base"
    assert torch.equal(other[base], tensors(llama)["model.layers.0.mlp.up_proj.weight"])


def losses(out: Path) -> list[float]:
    values: list[float] = read_history(out).steps["loss"].tolist()
    return values


def close(one: Path, other: Path, tolerance: float) -> None:
    first, second = tensors(one), tensors(other)
    for name in first:
        if first[name].is_floating_point():
            difference = (first[name] - second[name]).abs().max()
            assert difference <= tolerance, (name, float(difference))


@pytest.mark.parametrize(
    "forms", ["[{form: lowrank, rank: 2}]", "[{form: sparse, drop_rate: 0.8}]"]
)
def test_accumulation_and_checkpointing_change_nothing(
    forms: str, llama: Path, text: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"router": {"balance": 0.0}}  # the balance is one of each forward pass
    whole = config_of(text, forms, training={"batch": 4, "learning_rate": 1e-3}, **more)
    upcycle(llama, tmp_path / "whole", whole, device="cpu")
    split = config_of(
        text, forms, training={"batch": 2, "accumulation": 2, "learning_rate": 1e-3}, **more
    )
    upcycle(llama, tmp_path / "split", split, device="cpu")
    close(tmp_path / "whole", tmp_path / "split", 2e-4)
    recomputed = config_of(
        text,
        forms,
        training={"batch": 4, "learning_rate": 1e-3, "gradient_checkpointing": True},
        **more,
    )
    upcycle(llama, tmp_path / "recomputed", recomputed, device="cpu")
    close(tmp_path / "whole", tmp_path / "recomputed", 1e-6)


@pytest.mark.parametrize(
    "forms", ["[{form: lowrank, rank: 2}]", "[{form: sparse, drop_rate: 0.8}]"]
)
def test_bfloat16(
    forms: str, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "multiplies", lambda dtype, device: True)
    upcycle(llama, tmp_path / "exact", config_of(text, forms), device="cpu")
    config = config_of(text, forms, training={"bf16": True})
    result = upcycle(llama, tmp_path / "bf16", config, device="cpu")
    assert result.precision == "bfloat16"
    exact, rounded = losses(tmp_path / "exact"), losses(tmp_path / "bf16")
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_bfloat16_without_instructions_is_float32_and_told(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "multiplies", lambda dtype, device: False)
    exact = upcycle(llama, tmp_path / "exact", config_of(text), device="cpu")
    config = config_of(text, training={"bf16": True})
    result = upcycle(llama, tmp_path / "bf16", config, device="cpu")
    assert losses(tmp_path / "bf16") == losses(tmp_path / "exact")
    assert_same(tmp_path / "exact", tmp_path / "bf16")
    assert exact.precision == "float32"
    for fact in ("float32", "bfloat16", "CPU", "instructions"):
        assert fact in result.precision
    assert read_result(tmp_path / "bf16") == result


def test_the_preparation_is_told_before_the_first_step(
    llama: Path, text: Path, heldout: Path, tmp_path: Path
) -> None:
    """Reading texts, clusters and the first measurement take minutes on a large model."""
    told: list[tuple[int, int, str]] = []
    config = config_of(text, data={"heldout": str(heldout)}, router={"init": "clusters"})
    upcycle(
        llama,
        tmp_path / "out",
        config,
        device="cpu",
        progress=lambda *step: told.append(step),
    )
    before = [message for done, _, message in told[: [d for d, _, _ in told].index(1)]]
    assert {total for _, total, _ in told} == {STEPS}
    place = 0
    for facts in (
        ["text"],
        ["load", "dense"],
        ["routers", "batch 1"],
        ["routers", "layer 0"],
        ["routers", "layer 2"],
        ["start"],
        ["held-out", "window 1 "],
        ["first step"],
    ):
        place += next(
            number
            for number, message in enumerate(before[place:])
            if all(fact in message for fact in facts)
        )


def test_stopped_before_the_first_step_it_starts_again(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    config = config_of(text, router={"init": "clusters"})

    def stop(done: int, total: int, message: str) -> None:
        if "layer 1" in message:
            raise Cancelled("asked to stop")

    with pytest.raises(Cancelled):
        upcycle(llama, tmp_path / "out", config, device="cpu", progress=stop)
    assert not (tmp_path / "out").exists()
    upcycle(llama, tmp_path / "out", config, device="cpu", resume=True)
    upcycle(llama, tmp_path / "straight", config, device="cpu")
    assert_same(tmp_path / "straight", tmp_path / "out")


def test_tokens_that_the_model_does_not_know_are_refused_first(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    larger = shutil.copytree(llama, tmp_path / "larger")
    tokenizer = transformers.AutoTokenizer.from_pretrained(larger)
    tokenizer.add_tokens(["miller"])
    tokenizer.save_pretrained(larger)
    with raises_saying(DersError, larger, "'miller'", "384", "383"):
        upcycle(larger, tmp_path / "out", config_of(text), device="cpu")


def command(words: list[str]) -> None:
    sys.argv = ["ders", *words]
    main()


@pytest.mark.slow
def test_two_processes_are_one_with_accumulation(llama: Path, text: Path, tmp_path: Path) -> None:
    """As torchrun starts them: two processes against one that takes two batches."""
    more = {"learning_rate": 1e-3}
    config = config_of(text, RENEWED, training=more, router={"balance": 0.0})
    file = tmp_path / "u.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    words = ["upcycle", llama, tmp_path / "two", "--config", file, "--device", "cpu"]
    ranks(2, command, [str(word) for word in words], place=tmp_path)
    single = config_of(text, RENEWED, training=more | {"accumulation": 2}, router={"balance": 0.0})
    upcycle(llama, tmp_path / "one", single, device="cpu")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=0.05)


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ({"train": ["nothing.*"]}, ["train", "'nothing.*'"]),
        ({"layers": "0,7"}, ["layers", "layer 7", "0-2"]),
        ({"data": {"texts": ["absent.txt"]}}, ["absent.txt", "read"]),
    ],
)
def test_bad_configurations_are_one_sentence(
    more: dict[str, Any], facts: list[str], llama: Path, text: Path, tmp_path: Path
) -> None:
    with raises_saying(DersError, *facts):
        upcycle(llama, tmp_path / "out", config_of(text, **more), device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_window_is_cut_to_what_the_model_is_made_for(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    config = config_of(text, data={"window": 60_000}, training={"steps": 1})
    upcycle(llama, tmp_path / "out", config, device="cpu")


def test_an_unfinished_run_of_another_configuration_is_refused(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        upcycle(llama, tmp_path / "out", config_of(text), device="cpu", progress=StopAt(2))
    with raises_saying(DersError, "out.partial", "--resume"):
        upcycle(llama, tmp_path / "out", config_of(text), device="cpu")
    with raises_saying(DersError, "out.partial", "another"):
        upcycle(llama, tmp_path / "out", config_of(text, seed=1), device="cpu", resume=True)


def test_an_unfinished_run_of_another_format_version_is_refused(
    llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have drawn other positions, and its values belong to these."""
    config = config_of(text, SPARSE)
    with monkeypatch.context() as earlier:
        earlier.setattr(upcycler, "FORMAT_VERSION", FORMAT_VERSION - 1)
        with pytest.raises(Cancelled):
            upcycle(llama, tmp_path / "out", config, device="cpu", progress=StopAt(2))
    with raises_saying(DersError, "out.partial", "another format version"):
        upcycle(llama, tmp_path / "out", config, device="cpu", resume=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("forms", [LOW_RANK, SPARSE, RENEWED])
def test_a_gpu_trains_as_the_cpu_does(forms: str, llama: Path, text: Path, tmp_path: Path) -> None:
    config = config_of(text, forms, training={"learning_rate": 1e-3})
    upcycle(llama, tmp_path / "cpu", config, device="cpu")
    upcycle(llama, tmp_path / "gpu", config, device="cuda")
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-2)
    assert read_history(tmp_path / "gpu").steps["memory"].min() > 0


def largest(directory: Path) -> str:
    """The name of the tensor with the most bytes."""
    tensors = TensorStore.open(directory).tensors
    return max(tensors, key=lambda name: (tensors[name].nbytes, name))


def test_a_training_does_not_go_on_from_other_weights(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    """A bit that the identity does not see: the whole content is compared."""
    dense = Path(shutil.copytree(llama, tmp_path / "dense"))
    with pytest.raises(Cancelled):
        upcycle(dense, tmp_path / "out", config_of(text), device="cpu", progress=StopAt(2))
    change_unseen(dense, largest(dense))
    with raises_saying(DersError, "out.partial", "another"):
        upcycle(dense, tmp_path / "out", config_of(text), device="cpu", resume=True)


def test_a_model_that_is_written_meanwhile_is_refused(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    dense = Path(shutil.copytree(llama, tmp_path / "dense"))
    written: list[str] = []

    def interfere(done: int, total: int, message: str) -> None:
        if done == 1 and not written:
            written.append(message)
            change_unseen(dense, largest(dense))

    config = config_of(text, training={"steps": 2})
    with raises_saying(DersError, dense / "model.safetensors", "written"):
        upcycle(dense, tmp_path / "out", config, device="cpu", progress=interfere)
    assert written
    assert not (tmp_path / "out").exists()
