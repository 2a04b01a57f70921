"""Real trainings of a few steps: what is trained, what stays, stopping, resuming, several
processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from upcycle_support import dense_model

from ders_core.checkpoint import TensorStore
from ders_core.errors import Cancelled, DersError, EvaluationError, RecipeError
from ders_core.packed import PackedCheckpoint
from ders_core.patch import apply_patch, make_patch, rollback
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.data import IGNORED, Windows
from ders_core.upcycle.history import read_history
from ders_core.upcycle.run import UpcycleResult, read_result, upcycle, upcycle_further

STEPS = 6
LOW_RANK = "[{form: lowrank, rank: 2}]"
SPARSE = "[{form: sparse, drop_rate: 0.8}]"
RENEWED = "[{form: sparse, drop_rate: 0.8, renew: {first: 1, every: 2, until: 1.0}}]"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: Any, tokenizer: Any) -> Path:
    directory = tmp_path_factory.mktemp("llama") / "dense"
    dense_model("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: Any, tokenizer: Any) -> Path:
    """With dropout, so that a resumed training needs the random state too."""
    directory = tmp_path_factory.mktemp("gpt2") / "dense"
    dense_model("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def text(tmp_path_factory: Any, tiny_text: str) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file


def config_of(text: Path, forms: str = "[{form: lowrank, rank: 2}]", **more: Any) -> UpcycleConfig:
    training = {"steps": STEPS, "batch": 2, "warmup": 1, "learning_rate": 1e-2, "save_every": 2}
    whole: dict[str, Any] = {
        "name": "tiny",
        "experts": 3,
        "data": {"texts": [str(text)], "heldout": str(text), "window": 32},
        "training": training | more.pop("training", {}),
    }
    data = whole["data"] | more.pop("data", {})
    rules = UpcycleConfig.from_yaml(f"name: x\nforms: {forms}\ndata: {{texts: x}}\n").forms
    return UpcycleConfig.model_validate(whole | more | {"data": data, "forms": rules})


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    store = TensorStore.open(directory)
    return {name: info.read() for name, info in store.tensors.items()}


def assert_same(one: Path, other: Path) -> None:
    """Byte for byte."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different


class StopAt:
    """A progress that asks to stop after some steps, once."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, []

    def __call__(self, done: int, total: int, message: str) -> None:
        self.seen.append(done)
        if done == self.step and message.startswith("step"):
            raise Cancelled("asked to stop")


@pytest.mark.parametrize("forms", ["[{form: lowrank, rank: 2}]", RENEWED, "[{form: vanilla}]"])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
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
    assert went_on[0] == 4
    assert_same(tmp_path / "straight", tmp_path / "stopped")
    one, other = read_history(tmp_path / "straight"), read_history(tmp_path / "stopped")
    assert list(other.steps["step"]) == list(range(1, STEPS + 1))
    assert one.steps["loss"].tolist() == pytest.approx(other.steps["loss"].tolist(), abs=1e-9)
    assert one.heldout["step"].tolist() == [0, STEPS]


def test_training_lowers_the_loss_and_tells_of_it(llama: Path, text: Path, tmp_path: Path) -> None:
    config = config_of(text, training={"steps": 30, "measure_every": 10})
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
    assert rates.iloc[0] == pytest.approx(1e-2)
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
def test_bfloat16(forms: str, llama: Path, text: Path, tmp_path: Path) -> None:
    exact = upcycle(llama, tmp_path / "exact", config_of(text, forms), device="cpu")
    config = config_of(text, forms, training={"bf16": True})
    found = upcycle(llama, tmp_path / "bf16", config, device="cpu")
    assert found.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert found.perplexity != exact.perplexity


@pytest.mark.slow
def test_two_processes_are_one_with_accumulation(llama: Path, text: Path, tmp_path: Path) -> None:
    """torchrun, with no code of ours: two processes against one that takes two batches."""
    more = {"learning_rate": 1e-3}
    config = config_of(text, RENEWED, training=more, router={"balance": 0.0})
    file = tmp_path / "u.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "ders_core", "upcycle", str(llama), str(tmp_path / "two")]
    command += ["--config", str(file), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    single = config_of(text, RENEWED, training=more | {"accumulation": 2}, router={"balance": 0.0})
    upcycle(llama, tmp_path / "one", single, device="cpu")
    two, one = read_result(tmp_path / "two"), read_result(tmp_path / "one")
    assert two.perplexity == pytest.approx(one.perplexity, rel=0.02)
    steps = read_history(tmp_path / "two").steps["loss"]
    assert steps.tolist() == pytest.approx(
        read_history(tmp_path / "one").steps["loss"].tolist(), abs=0.05
    )


def further(text: Path, name: str, forms: str, **more: Any) -> UpcycleConfig:
    rules = UpcycleConfig.from_yaml(f"name: x\nforms: {forms}\ndata: {{texts: x}}\n").forms
    whole: dict[str, Any] = {
        "name": name,
        "forms": rules,
        "data": {"texts": [str(text)], "heldout": str(text), "window": 32},
        "training": {"steps": 3, "batch": 2, "warmup": 0, "learning_rate": 1e-2},
    }
    return UpcycleConfig.model_validate(whole | more)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("[{form: lowrank, rank: 2}]", "[{form: sparse, drop_rate: 0.8}]"),
        ("[{form: sparse, drop_rate: 0.8}]", "[{form: sparse, drop_rate: 0.9}]"),
        (RENEWED, "[{form: lowrank, rank: 1}]"),
    ],
)
def test_further_deltas_are_a_set_that_comes_and_goes(
    first: str, second: str, llama: Path, text: Path, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    upcycle(llama, before, config_of(text, first, universal=True), device="cpu")
    result = upcycle_further(before, after, further(text, "more", second), device="cpu")
    assert result.start_difference < 1e-4
    assert result.perplexity < result.dense_perplexity  # of what went in
    old, new = tensors(before), tensors(after)
    bases = [name for name in old if name.endswith(".base")]
    assert bases
    assert all(torch.equal(old[name], new[name]) for name in bases)
    stages = {name.split(".ders.")[1].split(".")[1] for name in new if ".ders." in name}
    assert stages == {"base", "0", "1"}
    record = json.loads((after / "ders_upcycle.json").read_text(encoding="utf-8"))
    assert record["sets"] == ["tiny", "more"]

    rollback(after, tmp_path / "back")  # the set goes
    assert_same(before, tmp_path / "back")
    patch = tmp_path / "patch"  # the set alone
    patch.mkdir()
    made = make_patch(PackedCheckpoint(after), patch, before)
    deltas = sum(t.nbytes for name, t in new.items() if ".ders." in name and ".1." in name)
    routers = sum(t.nbytes for name, t in new.items() if "gate.weight" in name)
    assert made.bytes <= deltas + routers
    apply_patch(before, patch, tmp_path / "again")  # and comes
    assert_same(after, tmp_path / "again")

    third = further(text, "third", "[{form: lowrank, rank: 1}]", router={"train": False})
    upcycle_further(after, tmp_path / "third", third, device="cpu")
    assert len(PackedCheckpoint(tmp_path / "third").manifest.groups[0].codec["stages"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tiny"}, "has a set of deltas named 'tiny' already"),
        ({"experts": 5}, "experts is 5 in the configuration, but 3"),
        ({"forms": "[{form: vanilla}]"}, "vanilla experts have no base"),
    ],
)
def test_what_cannot_be_added_is_refused(
    changes: dict[str, Any], message: str, llama: Path, text: Path, tmp_path: Path
) -> None:
    upcycle(llama, tmp_path / "before", config_of(text, training={"steps": 1}), device="cpu")
    forms = changes.pop("forms", "[{form: lowrank, rank: 1}]")
    config = further(text, changes.pop("name", "more"), forms, **changes)
    with pytest.raises(RecipeError, match=message):
        upcycle_further(tmp_path / "before", tmp_path / "after", config, device="cpu")
    assert not list(tmp_path.glob("after*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": ["nothing.*"]}, "train names 'nothing.\\*'"),
        ({"layers": "0,7"}, "layers names layer 7, but the model's layers are 0-2"),
        ({"data": {"window": 60_000}, "training": {"steps": 1}}, None),
        ({"data": {"texts": ["absent.txt"]}}, "absent.txt cannot be read"),
    ],
)
def test_bad_configurations_are_one_sentence(
    more: dict[str, Any], message: str | None, llama: Path, text: Path, tmp_path: Path
) -> None:
    if message is None:  # the window is cut to what the model is made for
        upcycle(llama, tmp_path / "out", config_of(text, **more), device="cpu")
        return
    with pytest.raises(DersError, match=message):
        upcycle(llama, tmp_path / "out", config_of(text, **more), device="cpu")
    assert not (tmp_path / "out").exists()


CHAT = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


def test_of_a_chat_what_the_assistant_says_is_learned(
    tmp_path: Path, tokenizer: Any, tiny_text: str
) -> None:
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = CHAT
    question, answer = "How many sacks of wheat?", " The miller counts thirteen sacks. " * 3
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text(
        json.dumps({"messages": messages}) + "\n" + json.dumps({"text": tiny_text}) + "\n",
        encoding="utf-8",
    )
    windows = Windows([file], own, 16)
    tokens, labels = windows.tokens.flatten(), windows.labels.flatten()
    asked = len(own(question)["input_ids"])
    learned = len(own(answer)["input_ids"])
    assert (labels[:asked] == IGNORED).all()
    assert torch.equal(labels[asked:], tokens[asked:])
    assert own.decode(labels[asked : asked + learned].tolist()).strip() == answer.strip()
    with pytest.raises(EvaluationError, match="no chat template"):
        Windows([file], tokenizer, 16)
    file.write_text('{"sentence": "x"}\n', encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1 has neither a text nor messages"):
        Windows([file], own, 16)
    file.write_text("{\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1 is not JSON"):
        Windows([file], own, 16)


def test_an_unfinished_run_of_another_configuration_is_refused(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        upcycle(llama, tmp_path / "out", config_of(text), device="cpu", progress=StopAt(2))
    with pytest.raises(DersError, match="holds an unfinished run"):
        upcycle(llama, tmp_path / "out", config_of(text), device="cpu")
    with pytest.raises(DersError, match="begun from another"):
        upcycle(llama, tmp_path / "out", config_of(text, seed=1), device="cpu", resume=True)


@pytest.mark.slow
def test_the_command(llama: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "u.yaml"
    file.write_text(config_of(text).to_yaml(), encoding="utf-8")
    out, more = tmp_path / "out", tmp_path / "more"

    def ders(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ders_core", "upcycle", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = ders(str(llama), str(out), "--config", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert UpcycleResult(**json.loads(done.stdout)) == read_result(out)
    file.write_text(further(text, "more", "[{form: lowrank, rank: 1}]").to_yaml(), encoding="utf-8")
    done = ders("--continue", str(out), str(more), "--config", str(file))
    assert done.returncode == 0, done.stderr
    assert "LM 1" in done.stdout
    file.write_text("name: x\ndata: {texts: a}\nexpert: 3\n", encoding="utf-8")
    done = ders(str(llama), str(tmp_path / "no"), "--config", str(file))
    assert done.returncode == 1
    assert done.stderr == "ders: u.yaml: line 3: unknown key 'expert'\n"
