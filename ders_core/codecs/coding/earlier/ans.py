"""Entropy coding with asymmetric numeral systems (Duda, arXiv 1311.2540), by `constriction`: a
stack, of which the last symbol pushed is popped first."""

from __future__ import annotations

from typing import Any

from ders_core.codecs.coding.stream import damaged
from ders_core.later import np

MOST_SYMBOLS = 1 << 14
"""Shares are kept with 24 bits, so that many symbols still have one each."""


class Model:
    """How often each symbol 0 … n − 1 comes.

    counts: `[n]`, all above 0.
    """

    def __init__(self, counts: np.ndarray) -> None:
        import constriction

        if not 0 < len(counts) <= MOST_SYMBOLS or counts.min() < 1:
            raise damaged()
        self.alone = len(counts) == 1
        shares = counts.astype(np.float64) / counts.sum(dtype=np.float64)
        categorical = constriction.stream.model.Categorical
        self.categorical: Any = None if self.alone else categorical(shares, perfect=False)


class Stack:
    """words: uint32 `[n]` to pop from."""

    def __init__(self, words: np.ndarray) -> None:
        import constriction

        try:
            self._coder = constriction.stream.stack.AnsCoder(np.array(words))
        except ValueError as error:
            raise damaged() from error

    def pop(self, count: int, model: Model) -> np.ndarray:
        """int32 `[count]`."""
        if model.alone or not count:
            return np.zeros(count, dtype=np.int32)
        symbols: np.ndarray = self._coder.decode(model.categorical, count)
        return symbols
