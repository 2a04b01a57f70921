"""Experts with codecs of their own, the kinds of bases, and what a calibration is good for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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
from ders_core.packed.manifest import MANIFEST, Manifest
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.calibration import SIDES, write_calibration
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.report import Report
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

Tensors = Callable[[Path], dict[str, torch.Tensor]]
Tamper = Callable[[dict[str, Any]], None]

SEED = 13
TOKENS = 1000
ROUTED = (700, 1000, 250, 50)

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


@pytest.fixture(scope="module")
def calibration(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of few strong directions, and experts that are chosen unevenly."""
    source, path = (
        open_checkpoint(mixtral_dir),
        tmp_path_factory.mktemp("moments") / "c.safetensors",
    )
    random = torch.Generator().manual_seed(4)
    tensors = {}
    for group in source.groups():
        width = group.shape[2]
        mix = torch.randn(width, width, generator=random) * 0.8 ** torch.arange(width)
        moments = mix @ mix.T + 1e-3 * torch.eye(width)
        tensors[f"{group.layer}.{SIDES[group.projection]}.moments"] = (moments + moments.T) / 2
        tensors[f"{group.layer}.routed"] = torch.tensor(ROUTED)
    write_calibration(path, source.identity, TOKENS, tensors)
    return path


def with_codec(codec: Codec, **fields: Any) -> Recipe:
    return Recipe(name="one", seed=SEED, rules=(Rule(codec=codec),), **fields)


def originals(group: ExpertGroup) -> torch.Tensor:
    """`[K, out, in]` in storage dtype."""
    return torch.stack([group.read(expert) for expert in range(group.shape[0])])


def mean(group: ExpertGroup, weights: torch.Tensor | None = None) -> torch.Tensor:
    """In float64, then rounded to the storage dtype."""
    own = torch.ones(group.shape[0]) if weights is None else weights
    share = (own.double() / own.double().sum()).view(-1, 1, 1)
    return (originals(group).double() * share).sum(0).to(group.dtype)


def bases(checkpoint: Path) -> dict[tuple[int, str], torch.Tensor]:
    packed = PackedCheckpoint(checkpoint)
    found = {}
    for group in packed.manifest.groups:
        base = packed.experts.base(group)
        assert base is not None
        found[group.layer, group.projection] = base
    return found


def synthesized(group: ExpertGroup, codecs: list[Codec]) -> Iterator[torch.Tensor]:
    """Ŵ_i `[out, in]` from the codecs alone; those with a choice are fitted on their experts."""
    weights, base = originals(group), (originals(group).float().sum(0) / group.shape[0])
    base = base.to(group.dtype)
    for expert, codec in enumerate(codecs):
        own = [i for i, other in enumerate(codecs) if other == codec]
        fitted = codec.fit([weights[i].float() - base.float() for i in own])
        context = EncodeContext(group.dtype, expert_seed(SEED, *group.key, expert))
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
        returned = originals(after.group(*group.key))
        for expert, wanted in enumerate(synthesized(group, codecs)):
            assert torch.equal(returned[expert], wanted)
            assert torch.equal(packed.experts.weight(groups[group.key], expert), wanted)
            same = torch.equal(
                returned[expert].view(torch.int16), group.read(expert).view(torch.int16)
            )
            assert same == isinstance(codecs[expert], BIT_FOR_BIT)
            exact, lossy = exact + same, lossy + (not same)
    assert (exact, lossy) == (6, 18)


def test_it_verifies(mixtral_dir: Path, uses: tuple[Path, Report]) -> None:
    out, report = uses
    found = verify(out, mixtral_dir)
    assert found.ok
    for told, measured in zip(report.entries, found.groups, strict=True):
        assert measured.rel_error_delta == pytest.approx(told.rel_error_delta, rel=1e-6)
        assert measured.rel_error_weight == pytest.approx(told.rel_error_weight, rel=1e-6)


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
        own = {n: t for n, t in store.tensors.items() if n.startswith(f"{group.prefix}.")}
        assert sum(info.nbytes for info in own.values()) == entry.bytes_after
        for part, lengths in group.lengths.items():
            number = int(part.partition(".")[0])
            assert len(lengths) == group.uses.count(number)
            assert own[f"{group.prefix}.{part}"].shape == (sum(lengths),)
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
    for told, done in zip(plan.entries, report.entries, strict=True):
        assert done.bytes_after <= told.bytes_after
        if told.exact:
            assert done.bytes_after == told.bytes_after
            exact.append(told.key)
    assert exact == [(1, "down")]


def test_the_same_bytes_again(
    mixtral_dir: Path, uses: tuple[Path, Report], tmp_path: Path, snapshot: Callable[[Path], Any]
) -> None:
    compress(mixtral_dir, tmp_path / "again", RECIPE)
    assert snapshot(tmp_path / "again") == snapshot(uses[0])


# bases


@pytest.mark.parametrize("directory", ["mixtral_dir", "qwen2_moe_dir", "scratch_dir"])
def test_median(directory: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(directory)
    report = compress(source, tmp_path / "out", with_codec(Quantized(bits=2), base="median"))
    assert {(entry.base, tuple(entry.other_bases)) for entry in report.entries} == {("median", ())}
    found = bases(tmp_path / "out")
    for group in open_checkpoint(source).groups():
        assert torch.equal(found[group.key], torch.median(originals(group), 0).values)
    assert verify(tmp_path / "out", source).ok


def test_routed_is_the_weighted_mean(mixtral_dir: Path, calibration: Path, tmp_path: Path) -> None:
    recipe = with_codec(Quantized(bits=4), base="routed", calibration=calibration)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert {(entry.base, tuple(entry.other_bases)) for entry in report.entries} == {("routed", ())}
    found = bases(tmp_path / "out")
    for group in open_checkpoint(mixtral_dir).groups():
        wanted = mean(group, torch.tensor(ROUTED)).double()
        # the sum is in float32, which may round to the other neighbour in bfloat16
        torch.testing.assert_close(found[group.key].double(), wanted, rtol=2**-7, atol=1e-6)
        assert float((found[group.key].double() != wanted).double().mean()) < 1e-2
        assert not torch.equal(found[group.key], mean(group))
    assert verify(tmp_path / "out", mixtral_dir).ok


def test_auto_takes_the_base_with_the_least_error(mixtral_dir: Path, tmp_path: Path) -> None:
    """The median where experts differ in few entries, the mean where in all."""
    source, codec = (
        odd_experts(mixtral_dir, tmp_path / "odd"),
        Sparse(method="magnitude", drop_rate=0.9),
    )
    alone = {
        base: compress(source, tmp_path / base, with_codec(codec, base=base)).entries
        for base in ("mean", "median")
    }
    report = compress(source, tmp_path / "auto", with_codec(codec, base="auto"))
    chosen = []
    for entry, *single in zip(report.entries, alone["mean"], alone["median"], strict=True):
        errors = {own.base: own.rel_error_weight for own in single}
        best = min(errors, key=lambda base: errors[base])
        assert entry.base == best
        assert entry.rel_error_weight == errors[best]
        assert entry.other_bases == {b: e for b, e in errors.items() if b != best}
        chosen.append(best)
    assert set(chosen) == {"mean", "median"}
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    found, tried = bases(tmp_path / "auto"), {b: bases(tmp_path / b) for b in ("mean", "median")}
    for entry in report.entries:
        key = (entry.layer, entry.projection)
        assert torch.equal(found[key], tried[entry.base][key])


def odd_experts(source: Path, copy: Path) -> Path:
    """A copy in which layer 0's experts are expert 0 but for one entry in 16, all elsewhere."""
    shutil.copytree(source, copy)
    for group in open_checkpoint(copy).groups():
        if group.layer:
            continue
        start = group.read(0)
        for expert, matrix in enumerate(group.experts):
            weight = start.clone().view(-1)
            weight[expert::16] += 0.1
            info, count = matrix.info, start.numel()
            assert info.nbytes == count * start.element_size()  # a tensor is one expert's
            data = bytearray(info.file.read_bytes())
            data[info.begin : info.begin + info.nbytes] = weight.view(torch.uint8).numpy().tobytes()
            info.file.write_bytes(data)
    return copy


def test_auto_tries_routed_where_there_is_a_calibration(
    mixtral_dir: Path, calibration: Path, tmp_path: Path
) -> None:
    """The choice is then by the error of outputs; the report tells that of weights."""
    codec, kinds = Quantized(bits=2), ("mean", "median", "routed")
    alone = {
        base: compress(
            mixtral_dir, tmp_path / base, with_codec(codec, base=base, calibration=calibration)
        ).entries
        for base in kinds
    }
    recipe = with_codec(codec, base="auto", calibration=calibration)
    report = compress(mixtral_dir, tmp_path / "auto", recipe)
    for number, entry in enumerate(report.entries):
        single = {base: alone[base][number] for base in kinds}
        outputs = {base: own.rel_error_output or 0.0 for base, own in single.items()}
        assert entry.base == min(outputs, key=lambda base: outputs[base])
        assert entry.rel_error_output == outputs[entry.base]
        others = {b: own.rel_error_weight for b, own in single.items() if b != entry.base}
        assert entry.other_bases == others


# what a calibration is good for


@pytest.mark.parametrize(
    "codec",
    [Quantized(bits=2), Quantized(bits=3, grid="normal"), LowRank(rank=6)],
    ids=lambda codec: codec.label,
)
def test_a_calibration_lowers_the_error_of_outputs(
    codec: Codec, mixtral_dir: Path, calibration: Path, tmp_path: Path
) -> None:
    blind = compress(mixtral_dir, tmp_path / "blind", with_codec(codec))
    recipe = with_codec(codec, calibration=calibration)
    seeing = compress(mixtral_dir, tmp_path / "seeing", recipe)
    assert [entry.rel_error_output for entry in blind.entries] == [None] * 6
    packed = PackedCheckpoint(tmp_path / "blind"), PackedCheckpoint(tmp_path / "seeing")
    for number, entry in enumerate(seeing.entries):
        group = open_checkpoint(mixtral_dir).group(entry.layer, entry.projection)
        without, told = (output_error(one, number, group, calibration) for one in packed)
        assert entry.rel_error_output == pytest.approx(told, rel=1e-3)
        assert told < 0.8 * without
        assert entry.bytes_after == blind.entries[number].bytes_after
        # what is gained for outputs is lost for weights
        assert entry.rel_error_weight > blind.entries[number].rel_error_weight
    assert verify(tmp_path / "seeing", mixtral_dir).ok
    text = (tmp_path / "seeing" / MANIFEST).read_text()
    assert str(calibration.parent) not in text


def output_error(
    packed: PackedCheckpoint, number: int, group: ExpertGroup, calibration: Path
) -> float:
    """√(E‖(Ŵ−W)x‖² / E‖Wx‖²) in float64, from what is read back."""
    moments = load_file(calibration)[f"{group.layer}.{SIDES[group.projection]}.moments"].double()
    error = whole = 0.0
    for expert, weight in enumerate(originals(group).double()):
        lost = packed.experts.weight(packed.manifest.groups[number], expert).double() - weight
        error += float(((lost @ moments) * lost).sum())
        whole += float(((weight @ moments) * weight).sum())
    return (error / whole) ** 0.5


# tampering


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
        with pytest.raises(CodecError, match="damaged"):
            packed.experts.weight(packed.manifest.groups[0], expert)
