"""Numbers one after another in a string of bytes, little-endian. What is read is not trusted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ders_core.errors import CodecError
from ders_core.later import np, torch


class Writer:
    """Puts arrays behind each other."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def put(self, values: np.ndarray | Sequence[int], dtype: str) -> None:
        """dtype: numpy's name for little-endian numbers, such as `<u4`."""
        self._pieces.append(np.ascontiguousarray(np.asarray(values, dtype=dtype)).view(np.uint8))

    def put_small(self, numbers: Iterable[int]) -> None:
        """Non-negative numbers that are mostly small: 7 bits a byte, the lowest first, with the
        high bit where more follow (LEB128)."""
        coded = bytearray()
        for number in numbers:
            while number > 127:
                coded.append(number & 127 | 128)
                number >>= 7
            coded.append(number)
        self.put(list(coded), "u1")

    def tensor(self) -> torch.Tensor:
        """All of it: uint8 `[n]`."""
        pieces = [piece.reshape(-1) for piece in self._pieces]
        return torch.from_numpy(np.concatenate(pieces) if pieces else np.empty(0, np.uint8))


class Reader:
    """Takes the parts off again. Raises CodecError where less is left than requested."""

    def __init__(self, stream: torch.Tensor) -> None:
        self._bytes = stream.cpu().numpy()
        self._at = 0

    def take(self, count: int, dtype: str) -> np.ndarray:
        size = count * np.dtype(dtype).itemsize
        if count < 0 or size > len(self._bytes) - self._at:
            raise damaged()
        piece = self._bytes[self._at : self._at + size]
        self._at += size
        return np.frombuffer(piece.tobytes(), dtype=dtype)

    def number(self, dtype: str = "<u4") -> int:
        return int(self.take(1, dtype)[0])

    def small(self, count: int) -> list[int]:
        """What `put_small` put; below 2³²."""
        numbers = []
        for _ in range(count):
            number, shift = 0, 0
            while True:
                byte = self.number("u1")
                number |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
                if shift > 28:
                    raise damaged()
            numbers.append(number)
        return numbers

    def rest(self, dtype: str) -> np.ndarray:
        """All that is left."""
        left = len(self._bytes) - self._at
        if left % np.dtype(dtype).itemsize:
            raise damaged()
        return self.take(left // np.dtype(dtype).itemsize, dtype)


def damaged() -> CodecError:
    return CodecError("the coded stream is damaged; copy the file again")
