"""What is small in an encoded delta and may be changed after encoding, while its codes stay.

Scales, offsets, levels, factors and kept values decide what codes stand for. A delta follows from
them differentiably, so a training can fit them to what a model says (`ders_core.repair`), and they
are put back in the places and dtypes that they had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ders_core.later import torch

TunedKind = Literal["scales", "offsets", "levels", "factors", "values", "gains"]
"""scales, offsets: of blocks. levels: what codes stand for. factors: of low rank, as numbers.
values: of kept entries, as numbers. gains: of rows and columns, which a stream has room for."""

TUNED_KINDS: tuple[TunedKind, ...] = get_args(TunedKind)

Values = Mapping[str, "torch.Tensor"]


def _nothing(values: Values) -> dict[str, torch.Tensor]:
    return {}


@dataclass(frozen=True)
class Tunable:
    """The small parts of one delta.

    values: by name, in the dtypes in which they are stored. kinds: what each is. decode: the delta
    `[out, in]` float32 from these values in float32, differentiable in each; with those that are
    stored it is what the codec decodes, but for the order in which float32 numbers are added.
    store: the codec's parts that hold these values, given in their dtypes; all other parts stay. A
    part whose length depends on the data may get another length.
    """

    decode: Callable[[Values], torch.Tensor]
    values: Values = field(default_factory=dict)
    kinds: Mapping[str, TunedKind] = field(default_factory=dict)
    store: Callable[[Values], dict[str, torch.Tensor]] = _nothing

    @classmethod
    def fixed(cls, delta: torch.Tensor) -> Tunable:
        """A delta of which nothing can be tuned: only the base below it."""
        return cls(lambda values: delta)

    @classmethod
    def joined(
        cls,
        pieces: Mapping[str, Tunable],
        combine: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    ) -> Tunable:
        """Several as one. combine: the delta from what each piece decodes. The names of values and
        parts are those of the pieces behind their own name and a dot."""

        def decode(values: Values) -> torch.Tensor:
            return combine(
                {name: piece.decode(_within(name, values)) for name, piece in pieces.items()}
            )

        def store(values: Values) -> dict[str, torch.Tensor]:
            return {
                f"{name}.{part}": tensor
                for name, piece in pieces.items()
                for part, tensor in piece.store(_within(name, values)).items()
            }

        return cls(
            decode,
            {f"{at}.{name}": v for at, piece in pieces.items() for name, v in piece.values.items()},
            {f"{at}.{name}": k for at, piece in pieces.items() for name, k in piece.kinds.items()},
            store,
        )


def _within(prefix: str, values: Values) -> dict[str, torch.Tensor]:
    head = f"{prefix}."
    return {name.removeprefix(head): v for name, v in values.items() if name.startswith(head)}
