"""How much of a large group is held and read ahead, of real shapes: told without reading them."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import pytest
import torch

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.held import Holding
from ders_core.codecs import Codec, Entropy, LowRank, Quantized, Sparse
from ders_core.codecs.fitting.block_codes import PIECE_BYTES
from ders_core.codecs.fitting.in_turn import ROWS
from ders_core.codecs.group import GroupCodec
from ders_core.compute.threads import threads_for, threads_of_torch
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import write_calibration
from ders_core.pipeline.holding import holding_of, left_free
from ders_core.recipe import Recipe, Rule

EXPERTS, OUT, WIDTH = 8, 14336, 4096
"""Of Mixtral."""

MATRIX = 2 * OUT * WIDTH
CPU = torch.device("cpu")


def mixtral_of(directory: Path, shape: tuple[int, int] = (OUT, WIDTH)) -> Path:
    """One layer, in a file of holes. shape: of gate and up."""
    directory.mkdir()
    header, end = dict[str, object](), 0
    for part, sides in (("w1", shape), ("w3", shape), ("w2", shape[::-1])):
        for expert in range(EXPERTS):
            begin, end = end, end + 2 * math.prod(sides)
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight"
            spec = {"dtype": "BF16", "shape": sides, "data_offsets": (begin, end)}
            header[name] = spec
    text = json.dumps(header).encode()
    file = directory / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + end)
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": EXPERTS}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def told(
    group: ExpertGroup, codec: Codec, threads: int, calibration: Path | None = None
) -> tuple[int, int] | None:
    """(experts that are held, those that fit when the next one is read ahead)."""
    recipe = Recipe(name="x", rules=(Rule(codec=codec),), calibration=calibration)
    with threads_of_torch(threads):
        holding = holding_of(group, recipe, GroupCodec.same(codec, EXPERTS), "cpu")
    matrix = 2 * group.shape[1] * group.shape[2]
    return None if holding is None else (holding.count, holding.ahead // matrix)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (Quantized(bits=2), [(8, 7), (8, 7), (8, 7)]),
        (Quantized(bits=4), [(8, 7), (8, 7), (8, 7)]),
        (Sparse(drop_rate=0.9), [(8, 7), (8, 7), (8, 7)]),
        (LowRank(rank=64), [(7, 6), (6, 4), (5, 2)]),
        (Entropy(bits=0.2, rounding="unbiased"), [(7, 5), (5, 2), (5, 2)]),
        (Entropy(bits=0.7, rounding="unbiased"), [(7, 5), (5, 2), (5, 2)]),
        (Entropy(bits=1, rounding="unbiased"), [(7, 5), (5, 2), (5, 2)]),
        (Entropy(bits=2, rounding="unbiased"), [(6, 4), (5, 1), (5, 1)]),
        (Entropy(bits=5, rounding="unbiased"), [(6, 3), (6, 1), (6, 1)]),
        (Entropy(bits=8, rounding="unbiased"), [(6, 2), None, None]),
    ],
    ids=lambda each: each.label if isinstance(each, Codec) else "",
)
def test_most_of_mixtral_is_read_ahead(
    codec: Codec, expected: list[tuple[int, int] | None], tmp_path: Path
) -> None:
    """With one thread, two and sixteen. As many are held as leave room for every thread; or for one
    thread, where all are held then, or where half of them or fewer would be otherwise."""
    for group in open_checkpoint(mixtral_of(tmp_path / "model")).groups():
        assert [told(group, codec, threads) for threads in (1, 2, 16)] == expected


@pytest.mark.parametrize(
    ("codec", "threads", "expected"),
    [
        (LowRank(rank=64), 1, [6]),
        (LowRank(rank=64), 2, [4, 6]),
        (LowRank(rank=64), 16, [2, 4, 5]),
        (Entropy(bits=3, rounding="unbiased"), 1, [4]),
        (Entropy(bits=3, rounding="unbiased"), 2, [1, 2, 4]),
        (Entropy(bits=5, rounding="unbiased"), 2, [1, 3]),
    ],
    ids=str,
)
def test_the_last_experts_leave_room_to_read_the_rest(
    codec: Codec, threads: int, expected: list[int], tmp_path: Path
) -> None:
    """With codecs that need much memory beside an expert. expected: how many experts fit that
    are read ahead, as soon as threads have their last expert, and as one after another ends. What
    is in use then stays within all that was said: one thread keeps both of its buffers."""
    for group in open_checkpoint(mixtral_of(tmp_path / "model")).groups():
        holding, working = held_by(group, codec, threads)
        fitting = list[int]()
        for unfinished in range(EXPERTS, 0, -1):
            ahead = holding.ahead + left_free(group, holding, holding, working, unfinished)
            fitting.append(ahead // MATRIX)
            assert fitting[-1] <= holding.count
            beside = min(working, unfinished) * holding.beside
            buffers = 2 if working == 1 else min(unfinished, working + 1)
            assert ahead + beside + min(buffers, EXPERTS - holding.count) * MATRIX <= holding.most
        assert fitting[-len(expected) :] == expected
        assert set(fitting[: -len(expected)]) == {expected[0]}


def test_a_thread_that_helps_the_last_expert_keeps_memory_for_its_rows(tmp_path: Path) -> None:
    """With full moments a helper rounds as many rows at a time as who is helped: here all experts
    are held, so that nothing else is kept."""
    side, codec = 6144, Quantized(bits=1)
    path = moments_in(tmp_path, side)
    gate = next(iter(open_checkpoint(mixtral_of(tmp_path / "model", (side, side))).groups()))
    holding, working = held_by(gate, codec, 2, path)
    assert (holding.count, working) == (EXPERTS, 2)
    ahead = holding.ahead + left_free(gate, holding, holding, working, 1)
    helper = PIECE_BYTES * ROWS * side
    assert ahead + holding.beside + helper <= holding.most


def held_by(
    group: ExpertGroup, codec: Codec, threads: int, calibration: Path | None = None
) -> tuple[Holding, int]:
    """What is held of a group, and how many threads encode it."""
    recipe = Recipe(name="x", rules=(Rule(codec=codec),), calibration=calibration)
    with threads_of_torch(threads):
        holding = holding_of(group, recipe, GroupCodec.same(codec, EXPERTS), "cpu")
        working = threads_for(EXPERTS, codec.working_bytes(group.shape[1:]), CPU)
    assert holding is not None
    return holding, working


def moments_in(directory: Path, width: int = WIDTH) -> Path:
    """A calibration with full moments of what goes into gate and up, and diagonals of down."""
    path = directory / "moments.safetensors"
    moments = {
        "0.in.moments": torch.zeros(width, width),
        "0.mid.moments": torch.zeros(OUT),
        "0.routed": torch.tensor([9] * EXPERTS),
    }
    write_calibration(path, "0" * 64, 36, moments)
    return path


def test_what_leaves_no_room_to_read_ahead_is_not_held(tmp_path: Path) -> None:
    """With full moments six gates fit beside one thread, and five beside two. With diagonals more
    of down do, if no threads help beside those that encode."""
    path = moments_in(tmp_path)
    groups = list(open_checkpoint(mixtral_of(tmp_path / "model")).groups())
    for group in groups:
        found = [told(group, Quantized(bits=2), threads, path) for threads in (1, 2, 16)]
        is_down = group.projection == "down"
        assert found == ([(7, 5), (5, 2), None] if is_down else [(6, 4), (5, 2), None])


@pytest.mark.parametrize(("width", "is_held"), [(4800, True), (5200, False)])
def test_of_eight_experts_about_1_4_gb_are_held(width: int, is_held: bool, tmp_path: Path) -> None:
    """As the guide says, of `quantized`: 1.38 GB, and not 1.49."""
    source = mixtral_of(tmp_path / "model", (18000, width))
    group = next(iter(open_checkpoint(source).groups()))
    assert (told(group, Quantized(bits=2), 2) is not None) == is_held
