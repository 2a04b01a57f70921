"""The whole way for every form on disk: packed, verified, and back, byte for byte where promised.

What each codec does to a matrix is known from `make_codec`; here the matrices come out of fused,
turned, interleaved and stacked tensors, with biases, shared experts and several bases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.disk_forms import FORMS, D, H, K, extended, franken, only, read, write
from support.messages import raises_saying

from ders_core.checkpoint.layouts import Projection
from ders_core.codecs import Keep, LowRank, Quantized, Sparse
from ders_core.errors import RecipeError
from ders_core.packed.manifest import Manifest
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import ClusteredBase, Recipe


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tensors, config = FORMS[request.param]
    return write(tmp_path / request.param, tensors, config)


def same_file(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_keep_comes_back_byte_for_byte(form: Path, tmp_path: Path) -> None:
    compress(form, tmp_path / "p", only(Keep()))
    synthesize(tmp_path / "p", tmp_path / "s")
    assert same_file(form, tmp_path / "s")
    assert not Manifest.read(tmp_path / "p").groups


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_what_shares_a_tensor_with_an_encoded_group_is_kept_exactly(
    form: Path, tmp_path: Path, projection: Projection
) -> None:
    """One projection in 3 bits: the others, the biases and everything else come back as they were,
    and the encoded one is what the library says, in its place."""
    recipe = only(Quantized(bits=3, group_size=8), projection)
    checkpoint = open_checkpoint(form)
    plan = resolve(recipe, checkpoint)
    report = compress(form, tmp_path / "p", recipe)
    assert report.bytes_after == plan.bytes_after
    assert verify(tmp_path / "p", form).ok
    synthesize(tmp_path / "p", tmp_path / "s")
    before, after = read(form), read(tmp_path / "s")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
        n: (t.shape, t.dtype) for n, t in after.items()
    }
    back = open_checkpoint(tmp_path / "s")
    packed = PackedCheckpoint(tmp_path / "p")
    for group in checkpoint.groups():
        got = back.group(*group.key).read()
        if group.projection != projection:
            assert torch.equal(got, group.read())
        else:
            stored = next(g for g in packed.manifest.groups if g.projection == projection)
            expected = torch.stack([packed.matrices.weight(stored, expert) for expert in range(K)])
            assert torch.equal(got, expected)
            error = float((got.double() - group.read().double()).norm())
            entry = next(e for e in report.entries if e.projection == projection)
            assert error / float(group.read().double().norm()) == pytest.approx(
                entry.rel_error_weight, rel=1e-4
            )
            assert 0 < entry.rel_error_delta < 0.4
        if group.biases:
            assert torch.equal(back.group(*group.key).read_biases(), group.read_biases())
    experts = {name for group in checkpoint.groups() for name in group.sources}
    for name in before.keys() - experts:
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("codec", [LowRank(rank=D), Sparse(drop_rate=0.0)])
def test_whole_tensors_and_pieces_are_the_same(form: Path, tmp_path: Path, codec: Any) -> None:
    compress(form, tmp_path / "p", only(codec))
    packed = PackedCheckpoint(tmp_path / "p")
    original = read(form)
    for name in packed.original.names():
        whole = packed.original.read(name)
        assert whole.shape == original[name].shape
        pieces = torch.cat([piece.flatten() for piece in packed.original.pieces(name)])
        assert torch.equal(pieces, whole.flatten())
        # these codecs keep all of a delta but for roundings
        torch.testing.assert_close(whole.float(), original[name].float(), rtol=0.02, atol=0.02)


def test_a_fused_tensor_is_written_one_expert_at_a_time(tmp_path: Path) -> None:
    tensors, config = FORMS["gpt_oss"]
    path = write(tmp_path / "m", tensors, config)
    compress(path, tmp_path / "p", only(Quantized(bits=2)))
    packed = PackedCheckpoint(tmp_path / "p")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert [piece.numel() for piece in packed.original.pieces(name)] == [2 * H * D] * K


# Extended DeRS


def test_a_shared_expert_is_one_more_of_the_same_base(tmp_path: Path) -> None:
    path = extended(tmp_path / "m")
    codec = Quantized(bits=4, group_size=8)
    plain, more = only(codec), only(codec, extended=True)
    compress(path, tmp_path / "plain", plain)
    report = compress(path, tmp_path / "more", more)
    assert report.bytes_after == resolve(more, open_checkpoint(path)).bytes_after
    assert [g.shape[0] for g in Manifest.read(tmp_path / "more").groups] == [K + 1] * 3
    assert verify(tmp_path / "more", path).ok
    synthesize(tmp_path / "more", tmp_path / "s")
    before, after = read(path), read(tmp_path / "s")
    name = "model.layers.0.mlp.shared_expert.up_proj.weight"
    assert before.keys() == after.keys()
    assert not torch.equal(before[name], after[name])
    error = (before[name] - after[name]).norm() / before[name].norm()
    assert 0 < float(error) < 0.02  # the deltas are a tenth of the weights, 4 bits of them
    gate = "model.layers.0.mlp.shared_expert_gate.weight"
    assert torch.equal(before[gate], after[gate])
    synthesize(tmp_path / "plain", tmp_path / "s2")
    assert torch.equal(read(tmp_path / "s2")[name], before[name])
    text = more.to_yaml()
    assert "extended: true" in text
    assert Recipe.from_yaml(text) == more
    assert "extended" not in plain.to_yaml()


def test_a_shared_expert_of_another_shape_cannot_be_one_more(tmp_path: Path) -> None:
    path = extended(tmp_path / "m", like=False)
    with raises_saying(RecipeError, path.name, "shared expert", "shape", "extended"):
        resolve(only(Quantized(bits=4), extended=True), open_checkpoint(path))


# Several bases


@pytest.mark.parametrize("clusters", ["auto", 2])
def test_experts_of_two_starts_get_two_bases(tmp_path: Path, clusters: Any) -> None:
    path = franken(tmp_path / "m")
    codec = Quantized(bits=4, group_size=8)
    one, two = only(codec), only(codec, base=ClusteredBase(clusters=clusters))
    first = compress(path, tmp_path / "one", one)
    second = compress(path, tmp_path / "two", two)
    plan = resolve(two, open_checkpoint(path))
    assert plan.exact == (clusters != "auto")
    assert second.bytes_after == plan.bytes_after  # auto allows half of 5 experts: 2 bases
    packed = PackedCheckpoint(tmp_path / "two")
    for group in packed.manifest.groups:
        assert group.bases == (0, 1, 0, 1, 0)
        members = open_checkpoint(path).group(group.layer, group.projection).read().double()
        for expert in range(K):
            mean = members[expert % 2 :: 2].mean(0)
            base = packed.matrices.base(group, expert)
            assert base is not None
            torch.testing.assert_close(base.double(), mean, rtol=2**-8, atol=1e-6)
    both = zip(first.entries, second.entries, strict=True)
    assert (
        min(a.rel_error_weight / b.rel_error_weight for a, b in both) > 5
    )  # deltas of one base are of the weights' size, of two a twentieth
    assert verify(tmp_path / "two", path).ok
    synthesize(tmp_path / "two", tmp_path / "s")
    assert Recipe.from_yaml(two.to_yaml()) == two


def test_auto_takes_one_base_where_one_is_best(tmp_path: Path) -> None:
    path = extended(tmp_path / "m")
    recipe = only(Quantized(bits=4), base=ClusteredBase(clusters="auto"))
    report = compress(path, tmp_path / "p", recipe)
    assert report.bytes_after < resolve(recipe, open_checkpoint(path)).bytes_after
    assert {group.bases for group in Manifest.read(tmp_path / "p").groups} == {None}


def test_as_many_bases_as_experts_are_refused(tmp_path: Path) -> None:
    path = franken(tmp_path / "m")
    with raises_saying(RecipeError, "5 bases", "layer 0, gate", "5 experts"):
        resolve(only(Quantized(bits=4), base=ClusteredBase(clusters=5)), open_checkpoint(path))
    with raises_saying(RecipeError, "clusters: auto"):
        Recipe.from_yaml("name: x\nbase: {clusters: 1}\n")
