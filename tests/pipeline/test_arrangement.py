"""Where tensors lie, whatever their lengths turn out to be: without holes, aligned, within room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import METADATA, Specs, encode_header, file_order
from ders_core.pipeline import arrangement as arrangement_module
from ders_core.pipeline import own_files
from ders_core.pipeline.arrangement import Arrangement, WeightFile

MOST = 3_000
OWN = 300

DTYPES = st.sampled_from([Dtype.U8, Dtype.BF16, Dtype.F32])
TENSORS = st.lists(st.tuples(DTYPES, st.integers(0, 90), st.integers(0, 100)), max_size=3)
"""dtype, the most elements, and the share of them that there are."""


def specs(of: str, tensors: list[Any]) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """As large as they can be, and as they are; one with a share of 0 is not there."""
    most, actual = {}, {}
    for number, (dtype, elements, share) in enumerate(tensors):
        most[f"{of}.{number}"] = TensorSpec(dtype, (elements,))
        if share:
            actual[f"{of}.{number}"] = TensorSpec(dtype, (elements * share // 100,))
    return most, actual


@pytest.fixture(autouse=True, scope="module")
def small_files() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrangement_module, "MAX_SHARD_BYTES", MOST)
        patch.setattr(own_files, "OWN_BYTES", OWN)
        yield


def appended(arranged: Arrangement[str], groups: Mapping[str, Specs]) -> dict[str, tuple[str, int]]:
    """The place of each tensor, one group after another."""
    ends, places = arranged.tails.start, dict[str, tuple[str, int]]()
    for key in arranged.variable:
        if not own_files.is_own(own_files.bytes_of(groups[key])):
            added, ends = arranged.tails.append(ends, groups[key])
            places |= added
    return places


@settings(max_examples=200, deadline=None)
@given(fixed=TENSORS, groups=st.lists(TENSORS, max_size=25))
def test_each_tensor_has_one_place(fixed: list[Any], groups: list[Any]) -> None:
    first, _ = specs("f", fixed)
    both = {f"g{number}": specs(f"g{number}", tensors) for number, tensors in enumerate(groups)}
    most = {key: each for key, (each, _) in both.items()}
    actual = {key: each for key, (_, each) in both.items()}
    arranged = Arrangement(first, most)
    files, places = arranged.files(actual), appended(arranged, actual)
    every = {name: spec for each in actual.values() for name, spec in each.items()} | first
    assert sorted(name for file in files for name in file.specs) == sorted(every)
    assert sum(file.nbytes for file in files) <= arranged.most_bytes()
    assert arranged.nbytes(actual) == sum(file.nbytes for file in files)
    joined = [file for file in files if file.own is None and not file.name]
    if joined:
        assert len(joined) == sum(file.own is None for file in files) == 1
        assert list(joined[0].specs) == list(file_order(joined[0].specs))
        assert joined[0].nbytes < OWN
        assert joined[0].nbytes <= arranged.most_copied
        return
    assert {file.own for file in files} - {None} == {
        key for key, each in actual.items() if own_files.bytes_of(each) >= OWN
    }
    for file in files:
        header = encode_header(file.specs, METADATA, file.header)
        assert len(header) == max(file.header, len(encode_header(file.specs, METADATA)))
        if file.own is not None:
            continue
        assert file.specs
        begin = len(header)
        for name, spec in file.specs.items():
            assert begin % spec.dtype.itemsize == 0
            assert spec == every[name]
            assert places.get(name, (file.name, begin)) == (file.name, begin)
            begin += spec.nbytes
        assert begin == file.nbytes
    assert len({file.name for file in files if file.own is None}) == sum(
        file.own is None for file in files
    )


def test_a_file_is_full_before_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 12_000
    monkeypatch.setattr(arrangement_module, "MAX_SHARD_BYTES", most)
    groups = {f"g{number}": {f"t{number}": TensorSpec(Dtype.U8, (250,))} for number in range(90)}
    files = Arrangement({}, groups).files(groups)
    assert len(files) > 2
    for file, following in pairwise(files):
        assert most - 250 < file.nbytes <= most
        assert following.header == file.header


def test_all_that_is_fixed_is_laid_out_as_ever() -> None:
    tensors = {"b": TensorSpec(Dtype.U8, (3,)), "a": TensorSpec(Dtype.F32, (2,))}
    arranged = Arrangement[str](tensors, {})
    (file,) = arranged.files({})
    assert file == WeightFile(file.name, {"a": tensors["a"], "b": tensors["b"]})
    assert file.nbytes == arranged.most_bytes() == len(encode_header(file.specs, METADATA)) + 11
    assert arranged.most_copied == 0


def test_wide_tensors_follow_fixed_ones_only_where_they_are_aligned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_files, "OWN_BYTES", 20)
    wide = {"g": {"w": TensorSpec(Dtype.BF16, (5,))}}
    for odd, files, copied in ((3, 2, 19), (4, 1, 10)):  # two might be small enough for one
        arranged = Arrangement({"a": TensorSpec(Dtype.U8, (odd,))}, wide)
        assert len(arranged.files(wide)) == files
        assert arranged.most_copied == copied


def test_a_small_output_is_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files, "OWN_BYTES", 1000)
    fixed = {"a": TensorSpec(Dtype.U8, (3,)), "b": TensorSpec(Dtype.F32, (2,))}
    variable = {"g": {"s": TensorSpec(Dtype.U8, (9,)), "w": TensorSpec(Dtype.BF16, (5,))}}
    arranged = Arrangement(fixed, variable)
    (file,) = arranged.files(variable)
    assert (file.name, file.header, list(file.specs)) == ("", 0, ["b", "w", "a", "s"])
    assert arranged.most_copied == arranged.most_bytes() > file.nbytes


def test_a_tensor_of_an_item_size_that_was_not_foreseen_is_a_fault() -> None:
    tails = Arrangement({}, {"g": {"s": TensorSpec(Dtype.U8, (9,))}}).tails
    with pytest.raises(AssertionError, match=r"no place for .*'w'"):
        tails.append(tails.start, {"w": TensorSpec(Dtype.BF16, (5,))})


def test_a_place_is_a_tensor_of_a_file(tmp_path: Path) -> None:
    spec = TensorSpec(Dtype.U8, (7,))
    groups = {"g": {"t": spec}, "h": {"u": replace(spec, shape=(2,))}}
    arranged = Arrangement({}, groups)
    places, ends = arranged.tails.append(arranged.tails.start, groups["g"])
    tensor = places["t"].tensor(tmp_path, "t", spec)
    assert (tensor.file.parent, tensor.nbytes) == (tmp_path, 7)
    further, _ = arranged.tails.append(ends, groups["h"])
    assert further["u"] == (places["t"].file, tensor.end)
