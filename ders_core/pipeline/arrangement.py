"""Which tensor lies where in the weight files of an output.

Tensors whose shapes are known before any is encoded have fixed places. The others are appended, in
the order of the plan: behind the last of these, or to files of their own, where those of each item
size have other ones, so that every tensor is aligned for memory mapping. Where a group's tensors go
depends on the lengths of those before them alone, and not on which process wrote what, or when. Of
large groups they are a file instead (`ders_core.pipeline.own_files`). A small output that has
several files for item sizes alone is copied into one in the end.

A file to which tensors are appended has room in its header for all that could be.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from ders_core.files.output import UNFINISHED
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import (
    MAX_SHARD_BYTES,
    METADATA,
    Specs,
    encode_header,
    file_order,
    filled,
)
from ders_core.pipeline.own_files import bytes_of, is_own, most_small

K = TypeVar("K", bound=Hashable)

Ends = Mapping[int, tuple[int, int]]
"""Item size -> the number of the file, from 0, to which tensors of that size are appended, and
where it ends."""


class Place(NamedTuple):
    """Where a tensor begins: the name of a file that is not finished, and bytes."""

    file: str
    begin: int

    def tensor(self, directory: Path, name: str, spec: TensorSpec) -> FileTensor:
        """The tensor there. directory: of the files that are not finished."""
        return FileTensor(name, spec, directory / self.file, self.begin, self.begin + spec.nbytes)


@dataclass(frozen=True)
class Tail:
    """The files to which the tensors of one item size are appended.

    item: bytes of an element. first: the name of the first file. begin: where the first tensor
    begins in it. header: bytes of the header of a file that holds nothing else.
    """

    item: int
    first: str
    begin: int
    header: int

    def file(self, number: int) -> str:
        """The name of the file of that number."""
        return self.first if number == 0 else _appended_name(self.item, number)

    def next(self, end: tuple[int, int], nbytes: int) -> tuple[int, int]:
        """The number of the file and the position at which so many bytes begin."""
        number, position = end
        if position + nbytes > MAX_SHARD_BYTES and position != self.header:  # it holds something
            return number + 1, self.header
        return end


@dataclass(frozen=True)
class Tails:
    """One for each item size."""

    tails: tuple[Tail, ...]

    @property
    def start(self) -> Ends:
        """Where they end before anything is appended."""
        return {tail.item: (0, tail.begin) for tail in self.tails}

    def append(self, ends: Ends, specs: Specs) -> tuple[dict[str, Place], Ends]:
        """The places of a group's tensors behind `ends`, and where they end. Each must be of an
        item size that has a tail."""
        places, after = dict[str, Place](), dict(ends)
        for tail in self.tails:
            those = _of_item(specs, tail.item)
            if not those:
                continue
            number, position = tail.next(ends[tail.item], bytes_of(those))
            for name, spec in those.items():
                places[name] = Place(tail.file(number), position)
                position += spec.nbytes
            after[tail.item] = number, position
        if len(places) != len(specs):
            raise AssertionError(f"no place for {sorted(specs.keys() - places.keys())}")
        return places, after


@dataclass(frozen=True)
class WeightFile(Generic[K]):
    """One file of the output. name: until it is finished; "" if its tensors are in several, or a
    group's own. specs: its tensors, in their order. header: its bytes at least. own: the group
    whose file it is, if it is one's own."""

    name: str
    specs: Specs
    header: int = 0
    own: K | None = None

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return len(encode_header(self.specs, METADATA, self.header)) + bytes_of(self.specs)


class Arrangement(Generic[K]):
    """fixed: files with the tensors whose shapes are known. variable: key -> the other tensors of
    what is encoded, as large as they can be, in the order of the plan; keys without any are left
    out. tails: where these are appended."""

    def __init__(self, fixed: Specs, variable: Mapping[K, Specs]) -> None:
        """fixed: in the order in which files are filled. variable: as the attribute."""
        parts = map(file_order, filled(fixed)) if fixed else ()
        files = [WeightFile[K](_fixed_name(n), specs) for n, specs in enumerate(parts)]
        self.variable = {key: file_order(specs) for key, specs in variable.items()}
        most = {name: spec for specs in self.variable.values() for name, spec in specs.items()}
        tails = list[Tail]()
        for item in sorted({spec.dtype.itemsize for spec in most.values()}):
            those = _of_item(most, item)
            first, header = _appended_name(item, 0), len(encode_header(those, METADATA))
            begin = header
            if not tails and files and bytes_of(files[-1].specs) % item == 0:
                room = len(encode_header({**files[-1].specs, **those}, METADATA))
                files[-1] = WeightFile(files[-1].name, files[-1].specs, room)
                first, begin = files[-1].name, room + bytes_of(files[-1].specs)
            tails.append(Tail(item, first, begin, header))
        self.fixed, self.tails = tuple(files), Tails(tuple(tails))

    def files(self, tensors: Mapping[K, Specs]) -> list[WeightFile[K]]:
        """All weight files in the order of their names: those with fixed places, those to which
        tensors are appended, and large groups. tensors: the variable ones of each key as they are.
        """
        specs = {file.name: dict(file.specs) for file in self.fixed}
        headers = {file.name: file.header for file in self.fixed}
        ends, own = self.tails.start, list[WeightFile[K]]()
        for key in self.variable:
            if is_own(bytes_of(tensors[key])):
                own.append(WeightFile("", tensors[key], own=key))
                continue
            places, ends = self.tails.append(ends, tensors[key])
            for name, place in places.items():
                specs.setdefault(place.file, {})[name] = tensors[key][name]
        for tail in self.tails.tails:
            numbers = range(ends[tail.item][0] + 1)
            headers = {tail.file(number): tail.header for number in numbers} | headers
        files = [WeightFile[K](name, specs[name], headers[name]) for name in specs]
        return [*(files if len(self.fixed) > 1 else _joined(files)), *own]

    def nbytes(self, tensors: Mapping[K, Specs]) -> int:
        """Of all weight files. tensors: all that keys have; of others they are as large as they can
        be."""
        variable = {
            key: {name: spec for name, spec in tensors.get(key, most).items() if name in most}
            for key, most in self.variable.items()
        }
        return sum(file.nbytes for file in self.files(variable))

    @property
    def most_copied(self) -> int:
        """The room that copying takes beside the output: of a small group at a time, where
        processes end in another order, or of a small output."""
        sizes = [bytes_of(specs) for specs in self.variable.values()]
        first = {file.name for file in self.fixed} | {tail.first for tail in self.tails.tails}
        if len(self.fixed) <= 1 < len(first):  # they may be joined
            sizes.append(self.most_bytes())
        return max((min(nbytes, most_small()) for nbytes in sizes), default=0)

    def most_bytes(self) -> int:
        """Of all weight files, at most, whatever the variable tensors turn out to be."""
        total = sum(file.nbytes for file in self.fixed)
        for specs in self.variable.values():
            nbytes = bytes_of(specs)
            total += WeightFile("", specs).nbytes if is_own(nbytes) else nbytes
        for tail in self.tails.tails:
            sizes = [bytes_of(_of_item(specs, tail.item)) for specs in self.variable.values()]
            total += tail.header * (tail.begin == tail.header)
            if tail.begin + sum(sizes) > MAX_SHARD_BYTES:
                # two neighbours together are more than full
                full = 2 * sum(sizes) // max(MAX_SHARD_BYTES - tail.header, 1)
                total += tail.header * min(full + 1, len(sizes))
        return total


def _joined(files: list[WeightFile[K]]) -> list[WeightFile[K]]:
    """One file in their place where all of them are small."""
    total = sum(file.nbytes for file in files)
    if len(files) < 2 or is_own(total) or total > MAX_SHARD_BYTES:
        return files
    return [WeightFile("", file_order({n: s for file in files for n, s in file.specs.items()}))]


def _of_item(specs: Specs, item: int) -> Specs:
    return {name: spec for name, spec in specs.items() if spec.dtype.itemsize == item}


def _fixed_name(number: int) -> str:
    return f"fixed-{number:05d}{UNFINISHED}"


def _appended_name(item: int, number: int) -> str:
    return f"appended-{item}-{number:05d}{UNFINISHED}"
