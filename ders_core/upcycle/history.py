"""The history of a training: what was measured at each step, one JSON object a line.

It grows while the weights are trained, so that a page can follow it; readers skip a
last line that is only partly written.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ders_core.files.output import partial_path
from ders_core.files.place_errors import writing
from ders_core.files.untrusted_json import JsonFault, parse_json
from ders_core.files.writer import write_text
from ders_core.later import pd

HISTORY = "ders_upcycle.jsonl"


@dataclass(frozen=True)
class Moment:
    """One step.

    loss: cross-entropy, nats a token, without the balancing term. balance: of the routers, mean
    over layers, 1 where loads are even. rate: the optimizer's, of the deltas. gradient_norm: before
    clipping. tokens_per_second: since the last line. memory: bytes, what the process holds of the
    device (of the machine, on a CPU). loads: layer -> each expert's share of the choices.
    """

    step: int
    loss: float
    balance: float
    rate: float
    gradient_norm: float
    tokens_per_second: float
    memory: int
    loads: dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class Measured:
    """A measurement on the held-out text, before the first step (step 0) or after a later one."""

    step: int
    heldout_perplexity: float


class HistoryWriter:
    """Writes a history; first cuts off the steps that a resumed training will repeat, and lines
    that a disk damaged. Raises OutputError if it cannot be written."""

    def __init__(self, file: Path, done: int) -> None:
        """done: number of the last step that stays."""
        kept = [line for line in _lines(file) if line["step"] <= done] if file.exists() else []
        with writing(file):
            write_text(file, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = file
        self._measured = {line["step"] for line in kept if "heldout_perplexity" in line}

    def add_step(self, moment: Moment) -> None:
        self._append(asdict(moment))

    def add_measurement(self, measured: Measured) -> None:
        self._measured.add(measured.step)
        self._append(asdict(measured))

    def has_measured(self, step: int) -> bool:
        return step in self._measured

    def _append(self, line: dict[str, Any]) -> None:
        with writing(self._file), open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Tables:
    """A history as tables: `steps` and `heldout` with the fields of `Moment` and `Measured` as
    columns; `loads` with step, layer, expert, share."""

    steps: pd.DataFrame
    heldout: pd.DataFrame
    loads: pd.DataFrame


def history_file(out: Path) -> Path:
    """The history of an output directory, or of one that is still being written."""
    return (out if out.exists() else partial_path(out)) / HISTORY


def read_history(out: Path) -> Tables:
    """Of an output directory, finished or not; empty tables if there is no history yet."""
    return HistoryReader(out).tables()


class HistoryReader:
    """Reads a history that grows: each call reads the lines since the last one."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        columns = [name for name in Moment.__dataclass_fields__ if name != "loads"]
        self._read, self._end = 0, b""
        self._tables = Tables(
            pd.DataFrame(columns=columns),
            pd.DataFrame(columns=["step", "heldout_perplexity"]),
            pd.DataFrame(columns=["step", "layer", "expert", "share"]),
        )

    def tables(self) -> Tables:
        """The history now, without the lines that a resumed training cut off."""
        with self._lock:
            try:
                lines = self._new_lines()
            except FileNotFoundError:
                self._forget()
                return self._tables
            if lines:
                self._add(_entries(lines))
                self._read += sum(map(len, lines))
                self._end = lines[-1]
            return self._tables

    def _new_lines(self) -> list[bytes]:
        """The complete lines since the last call; all lines if the last one read has changed."""
        with open(history_file(self._out), "rb") as file:
            file.seek(self._read - len(self._end))
            if file.read(len(self._end)) != self._end:
                self._forget()
                file.seek(0)
            text = file.read()
        return text[: text.rfind(b"\n") + 1].splitlines(keepends=True)

    def _add(self, lines: list[dict[str, Any]]) -> None:
        moments = [line for line in lines if "loads" in line]
        loads = [
            (line["step"], int(layer), expert, share)
            for line in moments
            for layer, shares in line["loads"].items()
            for expert, share in enumerate(shares)
        ]
        now = self._tables
        self._tables = Tables(
            _longer(now.steps, moments),
            _longer(now.heldout, [line for line in lines if "heldout_perplexity" in line]),
            _longer(now.loads, loads),
        )


def _longer(table: pd.DataFrame, rows: Sequence[Any]) -> pd.DataFrame:
    """A table with `rows` at its end."""
    if not rows:
        return table
    more = pd.DataFrame(rows, columns=table.columns)
    return pd.concat([table, more], ignore_index=True) if len(table) else more


def _lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a file."""
    content = file.read_bytes()
    return _entries(content[: content.rfind(b"\n") + 1].split(b"\n"))


def _entries(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """What the lines say; those that a disk damaged, or that are of something else, are left
    out."""
    entries = []
    for line in lines:
        with suppress(JsonFault):
            entry = parse_json(line)
            if _is_of_a_step(entry):
                entries.append(entry)
    return entries


def _is_of_a_step(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        return False
    loads = entry.get("loads", {})
    return isinstance(loads, dict) and all(
        layer.isdecimal() and isinstance(shares, list) for layer, shares in loads.items()
    )
