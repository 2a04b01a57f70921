"""Experts with codecs of their own: each is what its codec gives; tampered uses are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs import (
    Chain,
    Codec,
    EncodeContext,
    Entropy,
    Keep,
    Lossless,
    LowRank,
    Quantized,
    Sparse,
)
from ders_core.codecs.coding.prng import expert_seed
from ders_core.compute.threads import one_thread
from ders_core.errors import CheckpointError, CodecError
from ders_core.files.store import TensorStore
from ders_core.packed.manifest import Manifest
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.report import Report
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

Tensors = Callable[[Path], dict[str, torch.Tensor]]


Tamper = Callable[[dict[str, Any]], None]


SEED = 13


MAGNITUDE = Sparse(method="magnitude", drop_rate=0.8)


CHAIN = Chain(stages=(LowRank(rank=2, factor_bits=6), Entropy(bits=0.8)))


RECIPE = Recipe(
    name="uses",
    seed=SEED,
    rules=(
        # layer 0, all projections: sparse, sparse, entropy, lossless
        Rule(codec=MAGNITUDE),
        Rule(experts="2", codec=Entropy(bits=1.5)),
        Rule(experts="3", codec=Lossless()),
        # layer 1: each expert another one, and other ones in down
        Rule(layers="1", experts="0", codec=CHAIN),
        Rule(layers="1", experts="1", codec=Keep()),
        Rule(layers="1", experts="2-3", codec=LowRank(energy=0.6)),
        Rule(layers="1", projections=("down",), experts="0", codec=Sparse(pattern="2:4")),
        Rule(layers="1", projections=("down",), experts="2", codec=Sparse(drop_rate=0.5)),
        Rule(
            layers="1", projections=("down",), experts="3", codec=Quantized(grid="learned", bits=3)
        ),
    ),
)


BIT_FOR_BIT = (Lossless, Keep)


@pytest.fixture(scope="module")
def uses(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("uses") / "packed"
    return out, compress(mixtral_dir, out, RECIPE)


def synthesized(group: ExpertGroup, codecs: list[Codec]) -> Iterator[torch.Tensor]:
    """Ŵ_i `[out, in]` from the codecs alone; those with a choice are fitted on their experts."""
    weights = group.read()
    base = (weights.float().sum(0) / group.shape[0]).to(group.dtype.torch)
    for expert, codec in enumerate(codecs):
        members = [i for i, other in enumerate(codecs) if other == codec]
        fitted = codec.fit([weights[i].float() - base.float() for i in members])
        context = EncodeContext(group.dtype.torch, expert_seed(SEED, *group.key, expert))
        with one_thread():
            weight = fitted.unpack(fitted.pack(weights[expert], base, context), base, context)
        yield weight


def test_each_expert_is_what_its_codec_gives(
    mixtral_dir: Path, uses: tuple[Path, Report], tmp_path: Path
) -> None:
    out, _ = uses
    synthesize(out, tmp_path / "back")
    packed, source, back = PackedCheckpoint(out), open_checkpoint(mixtral_dir), tmp_path / "back"
    after = open_checkpoint(back)
    groups = {(group.layer, group.projection): group for group in packed.manifest.groups}
    exact = lossy = 0
    for group in source.groups():
        codecs = [RECIPE.codec(*group.key, expert) for expert in range(group.shape[0])]
        assert len(set(codecs)) >= 3
        returned = after.group(*group.key).read()
        for expert, wanted in enumerate(synthesized(group, codecs)):
            assert torch.equal(returned[expert], wanted)
            assert torch.equal(packed.matrices.weight(groups[group.key], expert), wanted)
            same = torch.equal(
                returned[expert].view(torch.int16), group.read(expert).view(torch.int16)
            )
            assert same == isinstance(codecs[expert], BIT_FOR_BIT)
            exact, lossy = exact + same, lossy + (not same)
    assert (exact, lossy) == (6, 18)


def test_it_verifies(mixtral_dir: Path, uses: tuple[Path, Report]) -> None:
    out, report = uses
    verification = verify(out, mixtral_dir)
    assert verification.ok
    for entry, measured in zip(report.entries, verification.groups, strict=True):
        assert measured.rel_error_delta == pytest.approx(entry.rel_error_delta, rel=1e-6)
        assert measured.rel_error_weight == pytest.approx(entry.rel_error_weight, rel=1e-6)


def test_the_manifest_tells_codecs_uses_and_lengths(uses: tuple[Path, Report]) -> None:
    out, report = uses
    store = TensorStore.open(out)
    wanted = {(0, p): (0, 0, 1, 2) for p in ("gate", "up", "down")}
    wanted |= {(1, p): (0, 1, 2, 2) for p in ("gate", "up")} | {(1, "down"): (0, 1, 2, 3)}
    for group, entry in zip(Manifest.read(out).groups, report.entries, strict=True):
        assert group.uses == wanted[group.layer, group.projection]
        codec = group.group_codec()
        assert codec.settled  # an energy has become a rank
        assert entry.codec == codec.label
        parts = {n: t for n, t in store.tensors.items() if n.startswith(f"{group.prefix}.")}
        assert sum(info.nbytes for info in parts.values()) == entry.bytes_after
        for part, lengths in group.lengths.items():
            number = int(part.partition(".")[0])
            assert len(lengths) == group.uses.count(number)
            assert parts[f"{group.prefix}.{part}"].shape == (sum(lengths),)
        if group.layer == 0:
            assert set(group.lengths) == {"0.positions", "1.stream", "2.stream"}
    down = next(g for g in Manifest.read(out).groups if (g.layer, g.projection) == (1, "down"))
    assert down.lengths == {}


def test_the_plan_is_an_upper_bound(mixtral_dir: Path, uses: tuple[Path, Report]) -> None:
    _, report = uses
    plan = resolve(RECIPE, open_checkpoint(mixtral_dir))
    assert not plan.exact
    assert report.bytes_after <= plan.bytes_after
    exact = []
    for planned, written in zip(plan.entries, report.entries, strict=True):
        assert written.bytes_after <= planned.bytes_after
        if planned.exact:
            assert written.bytes_after == planned.bytes_after
            exact.append(planned.key)
    assert exact == [(1, "down")]


def test_the_same_bytes_again(
    mixtral_dir: Path, uses: tuple[Path, Report], tmp_path: Path, snapshot: Callable[[Path], Any]
) -> None:
    compress(mixtral_dir, tmp_path / "again", RECIPE)
    assert snapshot(tmp_path / "again") == snapshot(uses[0])


@pytest.fixture
def damaged(uses: tuple[Path, Report], tmp_path: Path) -> Path:
    return Path(shutil.copytree(uses[0], tmp_path / "damaged"))


def longer(group: dict[str, Any]) -> None:
    group["lengths"]["1.stream"][0] += 1


def shorter(group: dict[str, Any]) -> None:
    group["lengths"]["1.stream"][0] -= 1


def too_long(group: dict[str, Any]) -> None:
    group["lengths"]["0.positions"][0] = 1 << 62


def beyond_the_bound(group: dict[str, Any]) -> None:
    first, second = group["lengths"]["0.positions"]
    group["lengths"]["0.positions"] = [first + second + 7000, -7000]


def negative(group: dict[str, Any]) -> None:
    group["lengths"]["0.positions"][0] = -1


def no_number(group: dict[str, Any]) -> None:
    group["lengths"]["0.positions"][0] = "many"


def a_fraction(group: dict[str, Any]) -> None:
    group["lengths"]["0.positions"][0] += 0.5


def one_missing(group: dict[str, Any]) -> None:
    group["lengths"]["0.positions"].pop()


def one_too_many(group: dict[str, Any]) -> None:
    group["lengths"]["1.stream"].append(0)


def no_part(group: dict[str, Any]) -> None:
    del group["lengths"]["2.stream"]


def unknown_part(group: dict[str, Any]) -> None:
    group["lengths"]["0.values"] = [1, 1]


def none_at_all(group: dict[str, Any]) -> None:
    del group["lengths"]


def a_list(group: dict[str, Any]) -> None:
    group["lengths"] = [1, 2]


def fewer_uses(group: dict[str, Any]) -> None:
    group["uses"].pop()


def more_uses(group: dict[str, Any]) -> None:
    group["uses"].append(0)


def no_uses(group: dict[str, Any]) -> None:
    group["uses"] = None


def empty_uses(group: dict[str, Any]) -> None:
    group["uses"] = []


def negative_use(group: dict[str, Any]) -> None:
    group["uses"][0] = -1


def use_of_none(group: dict[str, Any]) -> None:
    group["uses"][0] = 7


def unused(group: dict[str, Any]) -> None:
    group["uses"] = [0, 0, 1, 1]


def others(group: dict[str, Any]) -> None:
    group["uses"] = [0, 1, 1, 2]


def use_of_words(group: dict[str, Any]) -> None:
    group["uses"][0] = "first"


def one_codec(group: dict[str, Any]) -> None:
    group["codec"] = group["codec"][0]


def no_codec(group: dict[str, Any]) -> None:
    group["codec"] = []


def codec_of_words(group: dict[str, Any]) -> None:
    group["codec"][1] = "entropy"


def unknown_codec(group: dict[str, Any]) -> None:
    group["codec"][1] = {"codec": "exec"}


def an_energy(group: dict[str, Any]) -> None:
    group["codec"][1] = {"codec": "lowrank", "energy": 0.5}


TAMPERS: list[Tamper] = [
    longer,
    shorter,
    too_long,
    beyond_the_bound,
    negative,
    no_number,
    a_fraction,
    one_missing,
    one_too_many,
    no_part,
    unknown_part,
    none_at_all,
    a_list,
    fewer_uses,
    more_uses,
    no_uses,
    empty_uses,
    negative_use,
    use_of_none,
    unused,
    others,
    use_of_words,
    one_codec,
    no_codec,
    codec_of_words,
    unknown_codec,
    an_energy,
]


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.__name__)
def test_tampered_uses_and_lengths_are_refused(damaged: Path, tamper: Tamper) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    tamper(manifest["groups"][0])
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    for action in (PackedCheckpoint, verify):
        with pytest.raises(CheckpointError) as caught:
            action(damaged)
        message = str(caught.value)
        assert "\n" not in message
        assert "layer 0, gate" in message or f"{MANIFEST}: groups.0" in message, message


def test_swapped_lengths_are_an_error_and_no_crash(damaged: Path) -> None:
    """Lengths that fit together and yet are wrong: the parts say so."""
    manifest = json.loads((damaged / MANIFEST).read_text())
    lengths = manifest["groups"][0]["lengths"]["0.positions"]
    lengths[:] = [lengths[0] - 8, lengths[1] + 8]
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    packed = PackedCheckpoint(damaged)
    for expert in (0, 1):
        with raises_saying(CodecError, "damaged"):
            packed.matrices.weight(packed.manifest.groups[0], expert)
