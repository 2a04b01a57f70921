"""Pages of a workspace of many runs and of a checkpoint of many tensors: what they read and draw is
bounded by what they show. All bounds are counts, none is of seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from streamlit.testing.v1 import AppTest
from support.large_workspaces import (
    FFN,
    HIDDEN,
    PARTS,
    fill_with_runs,
    kl_of,
    make_many_tensors,
)
from support.store_reads import STEPS, Reads
from support.studio_pages import on, opened, words

from ders_core.checkpoint import checkpoint as checkpoints
from ders_core.files import store as tensor_stores
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.which import PAGE
from ders_core.packed.open import open_checkpoint
from ders_core.ui import reads as reads_of_pages

PAGES = ("checkpoint", "redundancy", "spectra", "recipe", "runs", "export", "upcycle")


def drawn(app: AppTest) -> int:
    """Elements and blocks of everything that is shown."""

    def count(node: Any) -> int:
        return 1 + sum(map(count, getattr(node, "children", {}).values()))

    return count(app._tree)


def test_what_pages_read_and_draw_does_not_grow_with_the_runs(
    app: AppTest,
    workspace: Workspace,
    moe: Path,
    reads: Reads,
    rounds: Callable[[int, int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unbounded(*words: Any, **options: Any) -> None:
        raise AssertionError("a page read every job")

    monkeypatch.setattr(JobStore, "list", unbounded)
    count = rounds(3000, 20_000)
    fill_with_runs(workspace.store_path, count, failed=count // 50, waiting=count // 10)
    opened(app, moe)
    for page in PAGES:
        reads.rows = reads.parsed = reads.steps = 0
        on(app, page)
        assert reads.rows <= 8 * PAGE, page
        assert reads.parsed <= 3 * PAGE, page
        assert STEPS * reads.steps <= 100 * count, page  # indexes alone: no JSON is parsed in SQL
        assert drawn(app) <= 250, page
        assert len(words(app)) < 20_000, page
        for table in app.dataframe:
            assert len(table.value) <= PAGE


def test_runs_are_turned_chosen_and_sorted_by_page(
    app: AppTest, workspace: Workspace, moe: Path
) -> None:
    fill_with_runs(workspace.store_path, 300, failed=28, waiting=20)
    on(opened(app, moe), "runs")

    def least(number: int) -> float:
        kl = kl_of(number)
        assert kl is not None
        return kl

    def shown() -> list[str]:
        names: list[str] = app.dataframe[0].value["name"].tolist()
        return names

    assert shown() == [f"run {number}" for number in range(280, 255, -1)]
    assert "1 to 25 of 280" in words(app)
    assert "15 more wait" in words(app)
    assert len(app.error) == 3  # of the failed ones in the table, the newest
    assert app.dataframe[0].value["remark"].notna().sum() == 3
    pager: Any = app.get("pagination")[0]
    pager.set_value(2).run()
    assert shown() == [f"run {number}" for number in range(255, 230, -1)]
    app.session_state["runs_table"] = {"selection": {"rows": [1], "columns": []}}
    app.run()
    assert [button.key for button in app.button if str(button.key).startswith("delete_")] == [
        "delete_254"
    ]
    JobStore(workspace.store_path).delete(255)
    app.run()  # the same run is still the selected one
    assert "delete_254" in {button.key for button in app.button}
    assert app.session_state["runs_table"]["selection"]["rows"] == [0]
    app.segmented_control(key="runs_state").set_value("failed").run()
    assert shown() == [f"run {number}" for number in range(280, 30, -10)]
    assert not app.exception
    app.segmented_control(key="runs_state").set_value("done").run()
    app.selectbox(key="runs_order").set_value("KL").run()
    done = [number for number in range(1, 281) if number % 10 and number != 255]
    measured = [number for number in done if kl_of(number) is not None]
    assert shown() == [f"run {number}" for number in sorted(measured, key=least)[:25]]
    app.text_input(key="runs_named").set_value("run 19").run()
    ours = [number for number in measured if str(number).startswith("19")]
    unmeasured = [number for number in done if str(number).startswith("19") and number % 7 == 0]
    assert shown() == [f"run {n}" for n in (*sorted(ours, key=least), *unmeasured[::-1])]
    app.text_input(key="runs_named").set_value("no such").run()
    assert not app.exception
    assert not app.dataframe
    on(app, "export")
    assert app.selectbox(key="export_run").options[0].startswith("run 279")
    assert len(app.selectbox(key="export_run").options) == PAGE


def test_many_tensors_share_what_is_alike(tmp_path: Path) -> None:
    layers, experts, shards = 3, 40, 2
    count = make_many_tensors(tmp_path / "moe", layers, experts, shards)
    checkpoint = open_checkpoint(tmp_path / "moe")
    routed = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"
        for layer in range(layers)
        for expert in range(experts)
        for part in PARTS
    }
    tensors = checkpoint.tensors
    assert len(tensors) == count == len(routed) + len(checkpoint.other_tensors())
    assert routed.isdisjoint(info.name for info in checkpoint.other_tensors())
    for group in checkpoint.groups():
        part = {"gate": "w1", "up": "w3", "down": "w2"}[group.projection]
        block = f"model.layers.{group.layer}.block_sparse_moe.experts"
        assert group.sources == tuple(f"{block}.{e}.{part}.weight" for e in range(experts))
        assert group.shape == (experts, *PARTS[part])
        assert group.nbytes == experts * 2 * HIDDEN * FFN
        stored = load_file(tensors[group.sources[7]].sources()[0].file)[group.sources[7]]
        assert torch.equal(group.read(7), stored)
    assert checkpoint.bytes_experts == len(routed) * 2 * HIDDEN * FFN
    specs = {id(tensor.spec) for tensor in tensors.values()}
    assert len(specs) <= shards * len({tensor.shape for tensor in tensors.values()})
    slots = {id(matrix.slot) for group in checkpoint.groups() for matrix in group.experts}
    assert len(slots) == len(checkpoint.groups())


def test_pages_describe_a_checkpoint_once_whatever_its_size(
    app: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*words: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*words, **options)

        monkeypatch.setattr(module, name, call)

    counted(tensor_stores, "read_header")
    counted(checkpoints, "gather")
    counted(tensor_stores, "content_identity")
    counted(reads_of_pages, "resolve")
    counted(reads_of_pages, "summarize")
    sizes: list[list[tuple[int, int]]] = []
    places = {experts: tmp_path / f"moe{experts}" for experts in (4, 200)}
    for experts, place in places.items():
        make_many_tensors(place, 2, experts)
    for place in places.values():
        if sizes:
            on(app, "checkpoint")
        opened(app, place)
        drawings = []
        for _ in range(2):
            drawn_here, sent = 0, 0
            for page in PAGES:
                on(app, page)
                drawn_here += drawn(app)
                sent += sum(len(table.proto.arrow_data.data) for table in app.dataframe)
            drawings.append((drawn_here, sent))
        assert calls == {
            "read_header": 1,
            "gather": 1,
            "content_identity": 1,
            "resolve": 3,  # two bits without and with a coded base, and the current recipe
            "summarize": 1,
        }
        calls.clear()
        sizes.append(drawings)
    (few, few_sent), (many, many_sent) = (drawings[1] for drawings in sizes)
    assert many == few
    assert many_sent <= few_sent + 500  # the numbers have more digits
