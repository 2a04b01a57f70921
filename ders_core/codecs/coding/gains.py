"""Gains of rows and columns: factors near 1, four bits each, that a stream may have beside its
steps. A repair finds them; what is encoded has none."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.stream import Reader, Writer, damaged
from ders_core.later import np

MIDDLE = 8
"""The code of 1. The others stand for 1 + unit · (code − MIDDLE)."""

FARTHEST = 7

MOST_UNIT = 1.0


@dataclass(frozen=True)
class Gains:
    """rows: float32 `[out]`. columns: float32 `[in]`. Both as they are stored."""

    rows: np.ndarray
    columns: np.ndarray

    def put(self, writer: Writer) -> None:
        """Other values than stored ones are rounded to the nearest that can be stored."""
        for vector in (self.rows, self.columns):
            unit = _unit_of(vector)
            writer.put(np.array([unit]), "<f4")
            codes = np.full(len(vector) + len(vector) % 2, MIDDLE, dtype=np.uint8)
            if unit:
                steps = np.rint((vector - np.float32(1)) / unit)
                codes[: len(vector)] = MIDDLE + np.clip(steps, -FARTHEST, FARTHEST)
            writer.put(codes[::2] | codes[1::2] << 4, "u1")

    @classmethod
    def take(cls, reader: Reader, shape: tuple[int, int]) -> Gains:
        """Raises CodecError for what no stream can hold."""
        vectors = []
        for count in shape:
            unit = np.float32(reader.take(1, "<f4")[0])
            if not 0 <= unit <= MOST_UNIT:
                raise damaged()
            packed = reader.take(-(-count // 2), "u1")
            codes = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count]
            vectors.append(1 + unit * (codes.astype(np.float32) - MIDDLE))
        return cls(*vectors)


def gain_bytes(shape: tuple[int, int]) -> int:
    """What they take in a stream of a matrix `[out, in]`."""
    return sum(4 + -(-count // 2) for count in shape)


def _unit_of(vector: np.ndarray) -> np.float32:
    farthest = float(np.abs(vector - np.float32(1)).max(initial=0.0))
    return np.float32(min(farthest / FARTHEST, MOST_UNIT))
