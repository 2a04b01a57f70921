"""Base and delta are added in float32 and rounded once, to the dtype that is asked for."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.messages import raises_saying
from support.shell import ders
from transformers import AutoModelForCausalLM

from ders_core.codecs import DeltaCodec, EncodeContext, Entropy, Keep, Lossless, Quantized, Sparse
from ders_core.codecs.group import GroupCodec, Lengths
from ders_core.errors import OutputError
from ders_core.files.dtype import Dtype
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedStack, PackedTensor
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.pipeline.original_form import DTYPES
from ders_core.pipeline.report import Report
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule

Tensors = Callable[[Path], dict[str, torch.Tensor]]

LAYERS = Recipe(
    name="several",
    version=2,
    rules=(
        Rule(codec=Quantized(bits=2, group_size=16)),
        Rule(projections=("up",), codec=Sparse(drop_rate=0.5)),
        Rule(projections=("down",), codec=Entropy(bits=1.5)),
        Rule(layers="1", projections=("gate",), codec=Lossless()),
        Rule(layers="1", projections=("up",), codec=Keep()),
        Rule(layers="0", experts="1", codec=Lossless()),
    ),
    base_codec=(BaseRule(codec=Quantized(bits=8, group_size=16)),),
    others=(OtherRule(kinds=("attention",), codec=Entropy(bits=6)),),
)


@pytest.fixture(scope="module", params=["absorbed", "shared"])
def made(
    request: pytest.FixtureRequest, mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Report]:
    """One checkpoint with codecs of deltas, of weights and of bases, and other tensors."""
    place = tmp_path_factory.mktemp("dtypes") / "packed"
    recipe = LAYERS.model_copy(update={"base_error": request.param})
    return place, compress(mixtral_dir, place, recipe)


@pytest.fixture(scope="module")
def packed(made: tuple[Path, Report]) -> Path:
    return made[0]


absorbed = pytest.mark.parametrize("made", ["absorbed"], indirect=True)
"""For what does not hang on the base's error."""


def decoded(
    packed: PackedCheckpoint, stack: PackedStack, number: int, codec: GroupCodec, head: str = ""
) -> torch.Tensor:
    """What the codec of deltas gives back, in float64."""
    shape, form = (stack.stacked[1], stack.stacked[2]), stack.base_form()
    lengths: Lengths = stack.lengths
    seed = stack.seed(0, number)
    if head:
        assert form is not None
        lengths, seed = form.lengths or {}, stack.base_seed(0, number)

    def read(part: str, rows: slice) -> torch.Tensor:
        return packed.store.tensors[f"{stack.prefix}.{head}{part}"].read(rows)

    parts = codec.take(number, read, shape, Dtype[stack.dtype], lengths)
    member = codec.expert(number)
    assert isinstance(member, DeltaCodec)
    delta = member.decode(parts, shape, EncodeContext(torch.bfloat16, seed))
    assert delta.dtype is torch.float32
    return delta.double()


def exact_weights(directory: Path) -> Iterator[tuple[PackedStack, int, torch.Tensor | None]]:
    """Ŵ of every coded matrix in float64, from the definition; None where no bit is lost."""
    packed = PackedCheckpoint(directory)
    is_shared = packed.manifest.recipe.get("base_error") == "shared"
    for stack in packed.manifest.stacks:
        codec, form = stack.group_codec(), stack.base_form()
        for number in range(stack.stacked[0]):
            if codec.expert(number).lossless:
                yield stack, number, None
                continue
            base = torch.zeros(1, dtype=torch.float64)
            if form is not None:
                base = decoded(packed, stack, stack.base_of(number), form.stacked, "base.")
                base = base if is_shared else base.bfloat16().double()
            yield stack, number, base + decoded(packed, stack, number, codec)


def test_float32_is_the_sum_within_its_last_bit(packed: Path) -> None:
    """And nearer than the checkpoint's dtype; what is lossless stays bit for bit."""
    matrices, kinds = PackedCheckpoint(packed).matrices, set[bool]()
    for stack, number, wanted in exact_weights(packed):
        stored = matrices.weight(stack, number)
        wide = matrices.weight(stack, number, dtype=torch.float32)
        kinds.add(wanted is None)
        if wanted is None:
            assert torch.equal(wide, stored.float())
            continue
        ulp = torch.finfo(torch.float32).eps * wanted.abs().clamp_min(2.0**-126)
        assert bool(((wide.double() - wanted).abs() <= ulp).all())
        half = matrices.weight(stack, number, dtype=torch.float16)
        narrow = torch.finfo(torch.float16)
        step = narrow.eps * wanted.abs().clamp_min(narrow.tiny)
        assert bool(((half.double() - wanted).abs() <= 0.5001 * step).all())  # rounded once
        near, far = ((each.double() - wanted).square().sum() for each in (wide, stored))
        assert near < 1e-6 * far
    assert kinds == {True, False}


def _name(stack: PackedStack) -> str:
    assert isinstance(stack, PackedTensor)
    return stack.name


def test_reports_tell_how_much_of_an_error_is_rounding(
    made: tuple[Path, Report], mixtral_dir: Path
) -> None:
    """As ‖Ŵ−W‖² in float64 with and without the rounding, of the first expert of each codec."""
    packed, report = PackedCheckpoint(made[0]), made[1]
    original, sums = open_checkpoint(mixtral_dir), dict[str, list[torch.Tensor]]()
    for stack, number, wanted in exact_weights(made[0]):
        codec = stack.group_codec()
        if codec.members(codec.uses[number])[0] != number or wanted is None:
            continue
        key = (stack.layer, stack.projection) if isinstance(stack, PackedGroup) else _name(stack)
        exact = original.stack(key).read(number).double()
        stored = packed.matrices.weight(stack, number).double()
        errors = [(each - exact).square().sum() for each in (stored, wanted)]
        title = stack.title if isinstance(stack, PackedGroup) else _name(stack)
        sums.setdefault(title, []).append(torch.stack(errors))
    shares = {}
    for title, each in sums.items():
        with_rounding, without = torch.stack(each).sum(0).tolist()
        shares[title] = 1 - without / with_rounding
    told = {entry.title: entry.rounding for entry in report.entries}
    told |= {other.title: other.rounding for other in report.others}
    # float32's own rounding is within 2⁻²⁴ of weights, which are at most some times their errors
    assert {title: told.pop(title) for title in shares} == pytest.approx(shares, abs=1e-6)
    assert set(told.values()) == {0.0, None}  # lossless, and not coded
    assert max(shares.values()) > 1e-4
    assert report.rounding == pytest.approx(
        statistics.fmean(entry.rounding or 0.0 for entry in report.entries if entry.is_replaced)
    )


def test_transformers_gets_what_is_asked_for(packed: Path, tmp_path: Path) -> None:
    """The loaded model has the weights that synthesis in that dtype writes, and these are not the
    rounded ones."""
    for word in ("float32", "float16"):
        synthesize(packed, tmp_path / word, dtype=word)
        dtype = getattr(torch, word)
        loaded = AutoModelForCausalLM.from_pretrained(packed, dtype=dtype).state_dict()
        written = AutoModelForCausalLM.from_pretrained(tmp_path / word, dtype="auto")
        assert written.dtype is dtype
        for name, tensor in written.state_dict().items():
            assert loaded[name].dtype is dtype
            assert torch.equal(loaded[name], tensor), name
    rounded = load_model(packed).state_dict()
    wide = load_model(packed, dtype=torch.float32).state_dict()
    same = {name: torch.equal(wide[name], tensor.float()) for name, tensor in rounded.items()}
    assert not all(same.values())
    assert all(same[name] for name in same if "norm" in name or "gate.weight" in name)


@absorbed
def test_auto_is_the_original_byte_for_byte(
    packed: Path, mixtral_dir: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    synthesize(packed, tmp_path / "default")
    synthesize(packed, tmp_path / "named", dtype="bfloat16")
    before, after = snapshot(tmp_path / "default"), snapshot(tmp_path / "named")
    assert before.keys() == after.keys() == snapshot(mixtral_dir).keys()
    assert before["config.json"] == snapshot(mixtral_dir)["config.json"]
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in ("default", "named")]
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name])


def test_wider_tensors_beside_the_model_stay(
    mixtral_dir: Path, tmp_path: Path, all_tensors: Tensors
) -> None:
    """float32 beside bfloat16 is not lowered, integers are no weights, config.json tells."""
    shutil.copytree(mixtral_dir, tmp_path / "source")
    tensors = all_tensors(tmp_path / "source")
    tensors["extra.bias"] = torch.tensor([1.0, 1 + 2.0**-20])
    tensors["extra.counts"] = torch.arange(3)
    save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    compress(tmp_path / "source", tmp_path / "packed", Recipe(name="experts", rules=LAYERS.rules))
    for word, size in (("float16", 2), ("float32", 4)):
        done = ders("synthesize", tmp_path / "packed", tmp_path / word, "--dtype", word)
        assert done.returncode == 0, done.stderr
        written = all_tensors(tmp_path / word)
        assert torch.equal(written["extra.bias"], tensors["extra.bias"])
        assert torch.equal(written["extra.counts"], tensors["extra.counts"])
        rest = [tensor for name, tensor in written.items() if "extra" not in name]
        assert {str(tensor.dtype) for tensor in rest} == {f"torch.{word}"}
        file = tmp_path / word / "model.safetensors"
        assert file.stat().st_size > size * sum(map(torch.Tensor.numel, rest))
        config = json.loads((tmp_path / word / "config.json").read_text())
        assert {config.get(key, word) for key in ("dtype", "torch_dtype")} == {word}


@absorbed
def test_what_cannot_be_written_is_refused(
    mixtral_dir: Path, tmp_path: Path, packed: Path, all_tensors: Tensors
) -> None:
    with raises_saying(OutputError, "'float8'", *DTYPES):
        synthesize(packed, tmp_path / "out", dtype="float8")
    with raises_saying(OutputError, "dtype", "packed"):
        export(packed, tmp_path / "out", "packed", dtype="float32")
    shutil.copytree(mixtral_dir, tmp_path / "source")
    tensors = all_tensors(tmp_path / "source")
    tensors["model.norm.weight"][3] = 70000.0
    save_file(tensors, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    compress(tmp_path / "source", tmp_path / "large", Recipe(name="experts", rules=LAYERS.rules))
    with raises_saying(OutputError, "model.norm.weight", "float16", "float32"):
        synthesize(tmp_path / "large", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@absorbed
def test_exports_have_a_dtype(packed: Path, tmp_path: Path, all_tensors: Tensors) -> None:
    result = export(packed, tmp_path / "out", "original", dtype="float32")
    assert all(check.ok for check in result.checks)
    assert {tensor.dtype for tensor in all_tensors(tmp_path / "out").values()} == {torch.float32}
