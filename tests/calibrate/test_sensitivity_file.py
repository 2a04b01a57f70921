"""What gradients add to a calibration file: what is read of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration, write_calibration
from ders_core.pipeline.sensitivity import BORROWED

Tensors = dict[str, torch.Tensor]
UP = (4, 48, 32)
"""Experts, out, in."""
MARGINALS = ("columns", "rows")


def sensitivities(prefix: str = "0.up", shape: tuple[int, int, int] = UP) -> Tensors:
    """As of one product x_j² g_i² for each expert."""
    experts, out, width = shape
    random = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(experts, n, generator=random).square() for n in (out, width))
    return {
        f"{prefix}.columns": columns * rows.sum(1, keepdim=True),
        f"{prefix}.rows": rows * columns.sum(1, keepdim=True),
        f"{prefix}.shrinkage": torch.randn(10, experts, generator=random),
    }


def routers(prefix: str = "0.up", tokens: int = 310) -> Tensors:
    """What is known of tipped choices, besides `sensitivities`."""
    random = torch.Generator().manual_seed(1)
    known = {
        f"{prefix.partition('.')[0]}.{kind}": torch.rand(tokens, generator=random)
        for kind in ("margins", "swaps")
    }
    plain = sensitivities(prefix)
    return known | {f"{prefix}.router_{kind}": plain[f"{prefix}.{kind}"] for kind in MARGINALS}


@pytest.fixture
def written(calibration: Calibration, tmp_path: Path) -> Callable[..., Calibration]:
    """The calibration with more tensors."""

    def write(tensors: Tensors, texts: list[str] | None = None) -> Calibration:
        whole = load_file(calibration.path) | tensors
        path = tmp_path / "c.safetensors"
        identity, tokens = calibration.checkpoint, calibration.tokens
        write_calibration(path, identity, tokens, whole, texts=texts or [])
        return Calibration.open(path)

    return write


def test_marginals_are_those_of_the_file_but_for_what_an_expert_borrows(
    written: Callable[..., Calibration], saved: Callable[[str], Path]
) -> None:
    """By the definition, expert by expert: means of a token, blended, times the tokens."""
    tensors = sensitivities()
    file = written(tensors | {"0.routed": torch.tensor([200, 100, 30, 0])})
    group = open_checkpoint(saved("mixtral")).group(0, "up")
    curvatures = file.curvatures(group)
    assert file.has_gradients
    assert curvatures is not None
    for expert, seen in enumerate([200, 100, 30, 0]):
        for kind in ("columns", "rows"):
            marginals = tensors[f"0.up.{kind}"].double()
            average = marginals.sum(0) / 330
            average = (330 * average + average.mean()) / 331
            mean = (marginals[expert] + BORROWED * average) / (seen + BORROWED)
            measured = getattr(curvatures[expert], kind)
            assert measured.dtype == torch.float32
            assert torch.allclose(measured.double(), mean * max(seen, 1), rtol=1e-5)
        assert float(curvatures[expert].columns.sum()) == pytest.approx(curvatures[expert].total)


def test_an_expert_without_tokens_costs_little_and_no_entry_nothing(
    written: Callable[..., Calibration], saved: Callable[[str], Path]
) -> None:
    """Its own marginals are zero, and an input is zero for every expert."""
    tensors = sensitivities()
    for kind in ("columns", "rows"):
        tensors[f"0.up.{kind}"][3] = 0
    tensors["0.up.columns"][:, 5] = 0
    tensors["0.up.rows"] *= (
        tensors["0.up.columns"].sum(1) / tensors["0.up.rows"].sum(1)
    ).nan_to_num()[:, None]
    file = written(tensors | {"0.routed": torch.tensor([300, 300, 40, 0])})
    curvatures = file.curvatures(open_checkpoint(saved("mixtral")).group(0, "up"))
    assert curvatures is not None
    assert 0 < curvatures[3].total < min(each.total for each in curvatures[:3]) / 4
    for each in curvatures:
        assert float(each.columns.min()) > 0
        assert float(each.rows.min()) > 0


def test_what_was_measured_without_gradients_has_none(
    calibration: Calibration, saved: Callable[[str], Path]
) -> None:
    group = open_checkpoint(saved("mixtral")).group(0, "up")
    assert not calibration.has_gradients
    assert calibration.curvatures(group) is None
    assert calibration.shrinkage(0, "up") is None


def test_shrinkage_is_read_as_it_is(written: Callable[..., Calibration]) -> None:
    tensors = sensitivities()
    shrinkage = written(tensors).shrinkage(0, "up")
    assert shrinkage is not None
    assert torch.equal(shrinkage, tensors["0.up.shrinkage"])
    assert written(tensors).shrinkage(1, "up") is None


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    tensors = sensitivities()
    return tensors | {name: change(tensors[name])}


def with_entry(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.cat([torch.full_like(tensor[:, :1], value), tensor[:, 1:]], 1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.up.columns", torch.Tensor.double),
        ("0.up.rows", lambda tensor: tensor[0]),
        ("0.up.shrinkage", lambda tensor: tensor[:0]),
        ("0.up.shrinkage", lambda tensor: tensor.long()),
    ],
    ids=["float64", "one dimension", "no windows", "integers"],
)
def test_forms_are_checked(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    written: Callable[..., Calibration],
) -> None:
    with raises_saying(CheckpointError, repr(name), "calibration"):
        written(changed(name, change))


@pytest.mark.parametrize("name", ["0.left.columns", "0.up.moments", "00.up.rows", "columns"])
def test_names_are_checked(name: str, written: Callable[..., Calibration]) -> None:
    with raises_saying(CheckpointError, repr(name), "does not belong"):
        written({name: torch.ones(4, 32)})


@pytest.mark.parametrize(
    "tensors",
    [
        {name: tensor for name, tensor in sensitivities().items() if "rows" not in name},
        changed("0.up.rows", lambda tensor: tensor[:3]),
        changed("0.up.shrinkage", lambda tensor: tensor[:, :2]),
        sensitivities()
        | {"1.down.shrinkage": torch.ones(9, 4)}
        | {f"1.down.{kind}": torch.ones(4, 4) for kind in ("columns", "rows")},
    ],
    ids=["no rows", "experts", "experts of shrinkage", "windows"],
)
def test_tensors_that_do_not_fit_each_other_are_refused(
    tensors: Tensors, written: Callable[..., Calibration]
) -> None:
    with raises_saying(CheckpointError, "columns, rows", "shrinkage", "--gradients"):
        written(tensors)


def test_what_is_known_of_routers_is_read(
    written: Callable[..., Calibration], saved: Callable[[str], Path]
) -> None:
    """A file without it is as good as before."""
    group = open_checkpoint(saved("mixtral")).group(0, "up")
    before = written(sensitivities())
    assert before.has_gradients
    assert not before.has_routers
    assert before.tipping() is None
    assert before.router_curvatures(group) is None
    file = written(sensitivities() | routers() | layer_1())
    tipping, curvatures = file.tipping(), file.router_curvatures(group)
    assert file.has_routers
    assert tipping is not None
    assert [each.layer for each in tipping] == [0, 1]
    assert torch.equal(tipping[0].margins, routers()["0.margins"])
    assert torch.equal(tipping[0].swaps, routers()["0.swaps"])
    assert curvatures is not None
    assert [each.total for each in curvatures] == [
        each.total for each in file.curvatures(group) or ()
    ]


def layer_1() -> Tensors:
    shape = (4, 48, 32)
    return sensitivities("1.up", shape) | routers("1.up")


@pytest.mark.parametrize(
    "name", ["0.margins", "1.swaps", "0.up.router_rows", "1.up.router_columns"]
)
def test_all_is_known_of_routers_or_nothing(name: str, written: Callable[..., Calibration]) -> None:
    tensors = sensitivities() | routers() | layer_1()
    with raises_saying(CheckpointError, repr(name), "--gradients"):
        written({key: tensor for key, tensor in tensors.items() if key != name})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.margins", lambda tensor: tensor[None]),
        ("0.swaps", torch.Tensor.double),
        ("0.up.router_rows", lambda tensor: tensor[0]),
    ],
    ids=["two dimensions", "float64", "one dimension"],
)
def test_forms_of_routers_are_checked(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    written: Callable[..., Calibration],
) -> None:
    tensors = sensitivities() | routers() | layer_1()
    with raises_saying(CheckpointError, repr(name), "calibration"):
        written(tensors | {name: change(tensors[name])})


def test_sizes_and_values_of_routers_are_checked(
    written: Callable[..., Calibration], saved: Callable[[str], Path]
) -> None:
    checkpoint = open_checkpoint(saved("mixtral"))
    tensors = sensitivities() | routers() | layer_1()
    written(tensors).check(checkpoint)
    with raises_saying(CheckpointError, "margins", "309", "310"):
        written(tensors | {"1.margins": torch.ones(309)})
    with raises_saying(CheckpointError, "'0.up.router_rows'", "needs"):
        written(tensors | {"0.up.router_rows": torch.ones(4, 47)}).check(checkpoint)
    for value in (-1.0, float("nan"), float("inf")):
        spoilt = tensors["0.swaps"].clone()
        spoilt[7] = value
        with raises_saying(CheckpointError, "swaps", "layer 0", "not negative"):
            written(tensors | {"0.swaps": spoilt}).tipping()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.up.columns", with_entry(float("nan"))),
        ("0.up.rows", with_entry(float("inf"))),
        ("0.up.columns", with_entry(-1.0)),
        ("0.up.rows", lambda tensor: tensor * 1.01),
    ],
    ids=["nan", "inf", "negative", "sums"],
)
def test_values_are_checked(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    written: Callable[..., Calibration],
    saved: Callable[[str], Path],
) -> None:
    file = written(changed(name, change))
    with raises_saying(CheckpointError, "'0.up.columns'", "'0.up.rows'", "marginals"):
        file.curvatures(open_checkpoint(saved("mixtral")).group(0, "up"))


def test_shrinkage_that_is_not_finite_is_refused(written: Callable[..., Calibration]) -> None:
    file = written(changed("0.up.shrinkage", with_entry(float("nan"))))
    with raises_saying(CheckpointError, "'0.up.shrinkage'", "not finite"):
        file.shrinkage(0, "up")


@pytest.mark.parametrize(
    ("prefix", "shape", "name"),
    [
        ("0.up", (4, 48, 31), "0.up.columns"),
        ("0.up", (4, 47, 32), "0.up.rows"),
        ("0.up", (5, 48, 32), "0.up.columns"),
        ("1.down", (4, 48, 32), "1.down.columns"),
    ],
)
def test_sizes_are_checked(
    prefix: str,
    shape: tuple[int, int, int],
    name: str,
    written: Callable[..., Calibration],
    saved: Callable[[str], Path],
) -> None:
    checkpoint = open_checkpoint(saved("mixtral"))
    written(sensitivities()).check(checkpoint)
    with raises_saying(CheckpointError, repr(name), "needs"):
        written(sensitivities(prefix, shape)).check(checkpoint)


def test_the_texts_are_told_by_short_names(written: Callable[..., Calibration]) -> None:
    names = ["/home/me/french.txt", "a\nb", "x" * 200, *map(str, range(20))]
    texts = written({}, texts=names).texts
    assert texts[0] == "french.txt"
    assert texts[1] == "a\N{REPLACEMENT CHARACTER}b"
    assert len(texts[2]) == 80
    assert len(texts) == 8


@pytest.mark.parametrize("field", ["{", "3", "[1]", "[" * 5000, '{"a": "b"}'])
def test_texts_that_are_no_names_are_left_out(
    field: str, calibration: Calibration, tmp_path: Path
) -> None:
    identity = {"checkpoint": calibration.checkpoint, "tokens": str(calibration.tokens)}
    metadata = {"format": "ders-calibration", "version": "1", **identity, "texts": field}
    save_file(load_file(calibration.path), tmp_path / "c", metadata)
    assert Calibration.open(tmp_path / "c").texts == ()
