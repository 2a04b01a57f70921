"""What errors in attention, dense FFNs, always-on experts and embeddings cost, against autograd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.calibrate_support import SIZES, WINDOW, Tiny, windows_of
from support.measured_calibrations import measure
from support.messages import raises_saying
from support.other_references import OtherReference, by_name, other_reference
from typer.testing import CliRunner

from ders_core.calibrate.gradient_observer import GradientObserver
from ders_core.calibrate.gradients import measure_gradients
from ders_core.calibrate.measure_others import OtherMeasure
from ders_core.calibrate.other_sums import OtherSums
from ders_core.calibrate.others import ABSENT, UNLIKE, LocatedTensor, Piece, locate_others
from ders_core.calibrate.placement import Region, Regions
from ders_core.calibrate.projections import locate_projections
from ders_core.calibrate.trouble import Trouble
from ders_core.cli.main import app
from ders_core.compute.progress import Meter, quiet
from ders_core.errors import CheckpointError
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration

FEW = 2 * (WINDOW - 1)
READ = 2 * WINDOW
SHARED = "model.layers.1.mlp.shared_expert.down_proj.weight"


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    assert found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


def agree(calibration: Calibration, truth: OtherReference, names: set[str]) -> None:
    """Marginals and moments of these tensors, as in the file."""
    tensors = load_file(calibration.path)
    for name in names:
        squares = truth.squares[name] / READ
        rows = tensors.get(f"other.{name}.rows", tensors.get(f"other.{name}.token_rows"))
        assert float(squares.sum()) > 0
        assert rows is not None
        assert close(tensors[f"other.{name}.columns"], squares.sum(0))
        assert close(rows, squares.sum(1))
        found = calibration.others.moments(name)
        coherence = tensors.get(f"other.{name}.coherence")
        assert (coherence is not None) == (name in truth.together)
        if coherence is not None:
            wanted = truth.together[name] / truth.apart[name]
            assert float(coherence) == pytest.approx(wanted, rel=1e-4)
        if name in truth.moments:
            total, count = truth.moments[name]
            assert found is not None
            assert close(found[0], total / count)
            assert found[1] == 1
            alike = [
                other for other in names if first(calibration, other) == first(calibration, name)
            ]
            totals, counts = zip(*(truth.weighted[other] for other in alike), strict=True)
            weighted = calibration.others.weighted_moments(name)
            assert weighted is not None
            assert close(weighted, sum(totals) / sum(counts))
        else:
            assert found is None
            assert calibration.others.weighted_moments(name) is None


def first(calibration: Calibration, name: str) -> str:
    """Which tensor has the moments of this one's inputs."""
    return calibration.notes.inputs.get(name, name)


def matrices(directory: Path) -> set[str]:
    """Names of all matrices on disk that are no experts' and no routers."""
    checkpoint = open_checkpoint(directory)
    routers = {group.router for group in checkpoint.groups()}
    return {
        tensor.name
        for tensor in checkpoint.other_tensors()
        if len(tensor.shape) == 2 and tensor.name not in routers
    }


@pytest.fixture(scope="module")
def measured(
    saved: Callable[[str], Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    """Attention with biases, an always-on expert with a gate of one row, two embeddings."""
    out = tmp_path_factory.mktemp("others") / "c"
    return measure(saved("qwen2_moe"), out, text_file, others=True, max_tokens=FEW)


def test_every_other_matrix_costs_what_autograd_says(
    measured: Calibration, saved: Callable[[str], Path], text_file: Path
) -> None:
    directory = saved("qwen2_moe")
    names = matrices(directory)
    truth = other_reference(directory, windows_of(directory, text_file)[:2], by_name)
    assert set(measured.others.names) == names
    assert SHARED in names
    agree(measured, truth, names)
    measured.check(open_checkpoint(directory))
    assert set(measured.notes.left_out.values()) == {"it is a router"}
    attention = "model.layers.0.self_attn"
    assert measured.notes.inputs[f"{attention}.q_proj.weight"] == f"{attention}.k_proj.weight"
    assert f"{attention}.o_proj.weight" not in measured.notes.inputs


def test_what_it_does_to_later_choices_is_that_of_an_expert(
    measured: Calibration, saved: Callable[[str], Path]
) -> None:
    """The always-on expert is measured as the last of the extended group too."""
    tensors = load_file(measured.path)
    for projection in ("gate", "up", "down"):
        name = f"model.layers.0.mlp.shared_expert.{projection}_proj.weight"
        for kind in ("router_columns", "router_rows"):
            wanted = tensors[f"0.{projection}.{kind}"][6]
            assert close(tensors[f"other.{name}.{kind}"], wanted.double())
            assert float(wanted.sum()) > 0
        found = measured.others.router_curvature(name)
        assert found is not None
        assert (len(found.rows), len(found.columns)) == open_checkpoint(saved("qwen2_moe")).tensors[
            name
        ].shape
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight"):
        assert float(tensors[f"other.{name}.router_rows"].sum()) > 0
    assert not bool(tensors["other.lm_head.weight.router_rows"].any())  # no router is behind it


def tied() -> Any:
    """One matrix reads tokens and answers. Scores and embeddings are scaled, as Granite's are."""
    config = transformers.GraniteMoeSharedConfig(
        num_local_experts=4,
        shared_intermediate_size=24,
        tie_word_embeddings=True,
        logits_scaling=2.0,
        embedding_multiplier=3.0,
        **SIZES,
    )
    return transformers.GraniteMoeSharedForCausalLM(config)


def test_tied_embeddings_and_fused_matrices(
    tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    """Both uses of the embeddings add up. Gate and up of the always-on FFN are one tensor."""
    directory = Tiny(tied, [], "").save(tmp_path / "model", tokenizer)
    calibration = measure(directory, tmp_path / "c", text_file, others=True, max_tokens=FEW)
    truth = other_reference(directory, windows_of(directory, text_file)[:2], by_name)
    names = matrices(directory)
    assert "lm_head.weight" not in names
    assert "model.layers.0.shared_mlp.input_linear.weight" in names
    assert set(calibration.others.names) == names
    agree(calibration, truth, names)
    rows = load_file(calibration.path)["other.model.embed_tokens.weight.token_rows"]
    curvature = calibration.others.curvature("model.embed_tokens.weight")
    assert curvature is not None
    coherence = float(load_file(calibration.path)["other.model.embed_tokens.weight.coherence"])
    met = max(coherence, 1) * (rows * READ + rows.mean()) / (READ + 1)
    assert torch.allclose(curvature.rows, met.clamp(min=float(met.mean())))
    assert int((curvature.rows > met).sum()) > len(rows) // 3  # tokens hardly met
    assert float(curvature.columns.double().sum()) == pytest.approx(curvature.total)


def in_other_forms(directory: Path, out: Path) -> Path:
    """The checkpoint as another program might write it: q, k and v of layer 0 in one tensor, the
    rows of the always-on expert's gate and up in turn; and what cannot be told: rows in another
    order, other values."""
    shutil.copytree(directory, out)
    tensors = load_file(out / "model.safetensors")
    attention, shared = "model.layers.0.self_attn", "model.layers.0.mlp.shared_expert"
    parts = [tensors.pop(f"{attention}.{name}_proj.weight") for name in "qkv"]
    tensors["attn.qkv.weight"] = torch.cat(parts)
    pair = [tensors.pop(f"{shared}.{name}_proj.weight") for name in ("gate", "up")]
    tensors["shared.weight"] = torch.stack(pair, 1).flatten(0, 1).contiguous()
    tensors[f"{attention}.o_proj.weight"] = tensors[f"{attention}.o_proj.weight"].flip(0)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_rows_are_found_in_whatever_matrix_they_are(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """Of tensors in another form than the model keeps; what cannot be told is left out, and why."""
    directory = saved("qwen2_moe")
    changed = open_checkpoint(in_other_forms(directory, tmp_path / "changed"))
    windows = windows_of(directory, text_file)[:2]
    model = load_model(directory, dtype=torch.float32)
    model.set_experts_implementation("eager")
    located = locate_projections(model, open_checkpoint(directory), {0, 1})
    others = locate_others(model, changed, located)
    for tensor in others.tensors:
        weight = changed.read(tensor.name).float()
        assert sum(len(weight[piece.rows]) for piece in tensor.pieces) == len(weight)
        for piece in tensor.pieces:
            assert torch.equal(piece.weight, weight[piece.rows])
    assert others.left_out["lm_head.weight"] == ABSENT
    assert others.left_out["model.layers.0.self_attn.o_proj.weight"] == UNLIKE
    measure_all = OtherMeasure.of(model, others, max_width=100)
    measure_gradients(model, located, windows, Meter(1000, quiet), measure_all)
    tensors, notes = measure_all.tensors_of_file(READ)
    truth = other_reference(directory, windows, by_name).squares
    layer = "model.layers.0"
    wanted = {
        "attn.qkv.weight": torch.cat(
            [truth[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkv"]
        ),
        "shared.weight": torch.stack(
            [truth[f"{layer}.mlp.shared_expert.{name}_proj.weight"] for name in ("gate", "up")], 1
        ).flatten(0, 1),
    }
    for name, squares in wanted.items():
        assert name not in notes.left_out
        assert close(tensors[f"other.{name}.rows"], squares.sum(1) / READ)
        assert close(tensors[f"other.{name}.columns"], squares.sum(0) / READ)
        assert tensors[f"other.{notes.inputs.get(name, name)}.moments"].shape == (32, 32)


def test_a_part_of_a_matrix_has_marginals_of_its_own(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """The model has q, k and v in one, the checkpoint apart: each is measured alone."""
    directory = saved("dbrx")
    calibration = measure(directory, tmp_path / "c", text_file, others=True, max_tokens=FEW)
    one = "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight"

    def rows_of(model: Any) -> dict[str, torch.Tensor]:
        whole = dict(model.named_parameters())[one].detach()
        return {one: whole, "q": whole[:32], "k": whole[32:48], "v": whole[48:]}

    windows = windows_of(directory, text_file)[:2]
    truth = other_reference(directory, windows, rows_of)
    agree(calibration, truth, {one})
    apart = shutil.copytree(directory, tmp_path / "apart")
    tensors = load_file(apart / "model.safetensors")
    whole = tensors.pop(one)
    tensors |= {"q": whole[:32].clone(), "k": whole[32:48].clone(), "v": whole[48:].clone()}
    save_file(tensors, apart / "model.safetensors", {"format": "pt"})
    model = load_model(directory, dtype=torch.float32)
    model.set_experts_implementation("eager")
    located = locate_projections(model, open_checkpoint(directory), {0, 1})
    found = OtherMeasure.of(model, locate_others(model, open_checkpoint(apart), located), 100)
    measure_gradients(model, located, windows, Meter(1000, quiet), found)
    measured, _ = found.tensors_of_file(READ)
    for name in "qkv":
        assert close(measured[f"other.{name}.rows"], truth.squares[name].sum(1) / READ)
        assert close(measured[f"other.{name}.columns"], truth.squares[name].sum(0) / READ)


@pytest.mark.parametrize("turned", [False, True])
def test_inputs_may_run_along_rows(turned: bool) -> None:
    """As in GPT-2's linear layers, whose weights are `[in, out]`."""
    random = torch.Generator().manual_seed(0)
    weight, x, after = (torch.randn(*shape, generator=random) for shape in ((5, 5), (7, 5), (7, 5)))
    piece = Piece(slice(0, 5), weight, weight)
    tensor = LocatedTensor("w", (5, 5), (piece,))
    sums = OtherSums.empty(tensor, max_width=9)
    regions = Regions([Region.of(weight, [place for _, place in tensor.placements()])])
    observer = GradientObserver(regions, {"w": sums}, 0)
    with observer:
        inputs = x.clone().requires_grad_().clone()
        output = inputs @ weight if turned else inputs @ weight.T
        observer.is_backward = True
        output.backward(after)
    sums.add_inputs()
    squares = torch.einsum("ti,tj->ij", after.square().double(), x.square().double())
    squares = squares.T if turned else squares
    measured = sums.tensors(1, of_tokens=False)
    assert close(measured["rows"], squares.sum(1))
    assert close(measured["columns"], squares.sum(0))
    assert close(measured["row_moments" if turned else "moments"], (x.T @ x / 7).double())
    assert sums.finished(needs_lookups=False) is None
    assert sums.finished(needs_lookups=True) is Trouble.NO_LOOKUP


def test_what_cannot_be_told_is_left_out_alone() -> None:
    """A matrix that is multiplied in another form, or without gradients, refuses no other."""
    weight, x = torch.ones(4, 6), torch.ones(3, 6)
    tensor = LocatedTensor("w", (4, 6), (Piece(slice(0, 4), weight, weight),))
    wanted = {
        Trouble.ANOTHER_FORM: lambda x: x[:, :3] @ weight[:, :3].T,
        Trouble.NO_GRADIENT: lambda x: x[:, :4] + (x.detach() @ weight.T),
        Trouble.NEVER: lambda x: x[:, :4] * weight.sum(),
        Trouble.NO_COST: lambda x: 0 * (x @ weight.T),
    }
    for trouble, act in wanted.items():
        sums = OtherSums.empty(tensor, max_width=9)
        regions = Regions([Region.of(weight, [place for _, place in tensor.placements()])])
        observer = GradientObserver(regions, {"w": sums}, 0)
        with observer:
            output = act(x.clone().requires_grad_().clone())
            observer.is_backward = True
            output.sum().backward()
        assert sums.finished(needs_lookups=False) is trouble


def file_with(calibration: Calibration, out: Path, change: Any, notes: str | None = None) -> Path:
    tensors = change(load_file(calibration.path))
    metadata = {"format": "ders-calibration", "version": "2", "checkpoint": calibration.checkpoint}
    metadata |= {"tokens": str(calibration.tokens)} | ({} if notes is None else {"others": notes})
    save_file(tensors, out, metadata)
    return out


HEAD = "other.lm_head.weight"


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda t: {k: v for k, v in t.items() if k != f"{HEAD}.columns"}, ["columns", "lm_head"]),
        (lambda t: t | {f"{HEAD}.rows": torch.ones(384)}, ["'lm_head.weight'", "token_rows"]),
        (lambda t: t | {f"{HEAD}.row_moments": torch.ones(384)}, ["lm_head", "row_moments"]),
        (lambda t: t | {f"{HEAD}.what": torch.ones(3)}, ["lm_head.weight.what", "belong"]),
        (lambda t: t | {f"{HEAD}.columns": torch.ones(31)}, ["lm_head", "[384, 32]", "[31]"]),
        (
            lambda t: (
                t | {"other.nothing.columns": torch.ones(3), "other.nothing.rows": torch.ones(3)}
            ),
            ["'nothing'", "checkpoint"],
        ),
        (lambda t: t | {f"{HEAD}.columns": t[f"{HEAD}.columns"] * 1.01}, ["lm_head", "one sum"]),
        (lambda t: t | {f"{HEAD}.columns": -t[f"{HEAD}.columns"]}, ["lm_head", "not negative"]),
        (
            lambda t: {k: v for k, v in t.items() if k != f"{HEAD}.router_rows"},
            ["router_rows", "none"],
        ),
        (lambda t: t | {f"{HEAD}.coherence": torch.ones(2)}, ["lm_head", "coherence [2]"]),
        (lambda t: t | {f"{HEAD}.coherence": torch.tensor([-1.0])}, ["coherence", "-1.0"]),
        (lambda t: t | {f"{HEAD}.moments": t[f"{HEAD}.moments"].triu()}, ["moments", "symmetric"]),
    ],
)
def test_files_are_checked(
    change: Any, facts: list[str], measured: Calibration, saved: Any, tmp_path: Path
) -> None:
    with raises_saying(CheckpointError, *facts):
        file = Calibration.open(file_with(measured, tmp_path / "c", change))
        file.check(open_checkpoint(saved("qwen2_moe")))
        file.others.curvature("lm_head.weight")
        file.others.moments("lm_head.weight")


@pytest.mark.parametrize(
    "notes", ["{", "[]", "3", '{"left_out": {"a": 3}, "inputs": {}}', "[" * 9999]
)
def test_notes_that_are_none_are_refused(notes: str, measured: Calibration, tmp_path: Path) -> None:
    with raises_saying(CheckpointError, "'others'", "left_out"):
        Calibration.open(file_with(measured, tmp_path / "c", dict, notes))


def test_what_was_not_measured_is_none(measured: Calibration, calibration: Calibration) -> None:
    for file in (measured, calibration):
        assert file.others.curvature("nothing") is None
        assert file.others.moments("nothing") is None
    assert calibration.others.names == []


def test_the_command(saved: Callable[[str], Path], text_file: Path, tmp_path: Path) -> None:
    call = ["calibrate", str(saved("mixtral")), "-o", str(tmp_path / "c"), "--text", str(text_file)]
    sizes = ["--max-tokens", "31", "--window", "32", "--device", "cpu", "--dtype", "float32"]
    result = CliRunner().invoke(app, [*call, *sizes, "--others", "--max-width", "0", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    calibration = Calibration.open(tmp_path / "c")
    assert (told["gradients"], told["bases"], told["others"]) == (True, True, 10)
    assert len(told["left_out"]) == 2
    assert told["bytes"] == calibration.path.stat().st_size
    found = calibration.others.moments("model.layers.1.self_attn.v_proj.weight")
    assert found is not None
    assert found[0].shape == (32,)
