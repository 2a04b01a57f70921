"""Numbers one after another in a string of bytes, little-endian. What is read is not trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ders_core.compute.buffers import fresh
from ders_core.errors import CodecError
from ders_core.later import np, torch

MOST_DIGITS = 5
"""Of a number that is mostly small: below 2³⁵."""

FEW = 16
"""So many numbers are sooner read and written one by one."""


def small_lengths(numbers: np.ndarray) -> np.ndarray:
    """int64 `[n]`: the bytes that `put_small` makes of each number, int64 `[n]`."""
    lengths = np.ones(len(numbers), np.int64)
    for place in range(1, MOST_DIGITS):
        lengths += numbers >> 7 * place > 0
    return lengths


class Writer:
    """Puts arrays behind each other."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def put(self, values: np.ndarray | Sequence[int], dtype: str) -> None:
        """dtype: numpy's name for little-endian numbers, such as `<u4`."""
        self._pieces.append(np.ascontiguousarray(np.asarray(values, dtype=dtype)).view(np.uint8))

    def put_small(self, numbers: np.ndarray | Sequence[int]) -> None:
        """Non-negative numbers that are mostly small: 7 bits a byte, the lowest first, with the
        high bit where more follow (LEB128)."""
        if len(numbers) <= FEW:
            few = b"".join(_digits(int(number)) for number in numbers)
            self._pieces.append(np.frombuffer(few, dtype=np.uint8))
            return
        left = np.asarray(numbers, dtype=np.int64)
        rest = left[:, None] >> 7 * np.arange(MOST_DIGITS)
        used = rest > 0
        used[:, 0] = True
        digits = rest & 127
        digits[:, :-1] |= 128 * used[:, 1:]
        self.put(digits[used], "u1")

    def tensor(self) -> torch.Tensor:
        """All of it: uint8 `[n]`."""
        stream = fresh((sum(piece.size for piece in self._pieces),), torch.uint8)
        filled, begin = stream.numpy(), 0
        for piece in self._pieces:
            filled[begin : begin + piece.size] = piece.reshape(-1)
            begin += piece.size
        return stream


class Reader:
    """Takes the parts off again. Raises CodecError where less is left than requested."""

    def __init__(self, stream: torch.Tensor | np.ndarray) -> None:
        self._bytes = stream if isinstance(stream, np.ndarray) else stream.cpu().numpy()
        self._at = 0

    @property
    def position(self) -> int:
        """How many bytes were taken."""
        return self._at

    @property
    def left(self) -> int:
        """How many bytes were not taken yet."""
        return len(self._bytes) - self._at

    def take(self, count: int, dtype: str) -> np.ndarray:
        piece = self.lent(count * np.dtype(dtype).itemsize)
        return np.frombuffer(piece.tobytes(), dtype=dtype)

    def lent(self, size: int) -> np.ndarray:
        """So many bytes: no copy."""
        if not 0 <= size <= len(self._bytes) - self._at:
            raise damaged()
        piece = self._bytes[self._at : self._at + size]
        self._at += size
        return piece

    def lend(self, read: Callable[[np.ndarray, int], int]) -> None:
        """Let a loop take numbers. read: takes all bytes, uint8 `[n]`, and where those that are
        left begin, and returns where they begin then, −1 for what cannot be read."""
        at = read(self._bytes, self._at)
        if not 0 <= at <= len(self._bytes):
            raise damaged()
        self._at = at

    def number(self, dtype: str = "<u4") -> int:
        return int(self.take(1, dtype)[0])

    def small(self, count: int) -> list[int]:
        """What `put_small` put; below 2³⁵."""
        if count > FEW:
            numbers: list[int] = self.small_array(count).tolist()
            return numbers
        return [self._one_small() for _ in range(count)]

    def _one_small(self) -> int:
        number = 0
        for place, digit in enumerate(self._bytes[self._at : self._at + MOST_DIGITS]):
            number |= (int(digit) & 127) << 7 * place
            if digit < 128:
                self._at += place + 1
                return number
        raise damaged()

    def small_array(self, count: int) -> np.ndarray:
        """The same, int64 `[count]`."""
        if not count:
            return np.zeros(0, dtype=np.int64)
        some = self._bytes[self._at : self._at + MOST_DIGITS * max(count, 0)]
        ends = np.flatnonzero(some < 128)[:count] + 1
        if len(ends) < count:
            raise damaged()
        begins = np.concatenate([[0], ends[:-1]])
        if (ends - begins).max() > MOST_DIGITS:
            raise damaged()
        digits = self.take(int(ends[-1]), "u1").astype(np.int64) & 127
        places = np.arange(len(digits)) - np.repeat(begins, ends - begins)
        numbers: np.ndarray = np.add.reduceat(digits << 7 * places, begins)
        return numbers

    def rest(self, dtype: str) -> np.ndarray:
        """All that is left: no copy, and not aligned."""
        if (len(self._bytes) - self._at) % np.dtype(dtype).itemsize:
            raise damaged()
        piece = self._bytes[self._at :].view(dtype)
        self._at = len(self._bytes)
        return piece


def _digits(number: int) -> bytearray:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return digits


def damaged() -> CodecError:
    return CodecError("the coded stream is damaged; copy the file again")
