"""What a person decides beside the size of the file: fields, and what a job is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import CODECS
from ders_core.tune.constraints import Constraint
from ders_core.tune.demand import constraints_of
from ders_core.ui import kept
from ders_core.ui.tune.fields import friendly_toggle

KEEP, PIN, FLOOR, FRIENDLY = "tune_keep", "tune_pin", "tune_floor", "tune_friendly"


@dataclass(frozen=True)
class Wish:
    """keep: layers that stay as they are. friendly: only forms that hardware decodes easily. pin,
    floor: LAYERS=CODEC and LAYERS=BITS, as `ders tune` has them."""

    keep: tuple[int, ...] = ()
    friendly: bool = False
    pin: tuple[str, ...] = ()
    floor: tuple[str, ...] = ()

    @property
    def constraints(self) -> list[Constraint]:
        """Raises RecipeError and CodecError."""
        return constraints_of(self._kept_layers or None, (), self.pin, self.floor)

    @property
    def fields(self) -> dict[str, Any]:
        """Of a job's spec."""
        return {
            "keep": self._kept_layers,
            "friendly": self.friendly,
            "pin": list(self.pin),
            "floor": list(self.floor),
        }

    @property
    def _kept_layers(self) -> str:
        return ",".join(map(str, self.keep))


def wish_fields(source: Checkpoint, layers: Sequence[int]) -> Wish:
    """Draw the fields. layers: that can be kept as they are."""
    keep: list[int] = kept.field(
        st.multiselect,
        "Keep layers",
        key=KEEP,
        start=[],
        of=source.path,
        options=list(layers),
        placeholder="none",
        help="Their experts and matrices stay as they are.",
        width=220,
    )
    pin = _lines(
        source,
        "Pin codecs",
        PIN,
        placeholder="0,5-7=quantized",
        help="The codec of deltas in some layers, LAYERS=CODEC, one a line. Codecs: "
        f"{', '.join(f'`{name}`' for name in sorted(CODECS))}.",
    )
    floor = _lines(
        source,
        "Floor of bits",
        FLOOR,
        placeholder="0,5-7=4",
        help="Bits a weight that matrices of some layers take at least, unless nothing is lost in "
        "fewer: LAYERS=BITS, one a line.",
    )
    return Wish(tuple(sorted(keep)), friendly_toggle(FRIENDLY), pin, floor)


def typed_wish(source: Checkpoint) -> Wish:
    """What the fields hold, also where they are not drawn."""
    keep = kept.value(KEEP, list[int](), source.path)
    pin, floor = (kept.value(key, "", source.path) for key in (PIN, FLOOR))
    return Wish(tuple(sorted(keep)), kept.value(FRIENDLY, False), _split(pin), _split(floor))


def _lines(
    source: Checkpoint, label: str, key: str, *, placeholder: str, help: str
) -> tuple[str, ...]:
    typed = kept.field(
        st.text_area,
        label,
        key=key,
        start="",
        of=source.path,
        placeholder=placeholder,
        help=help,
        height="content",
        width=200,
    )
    return _split(typed)


def _split(typed: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in typed.split("\n") if line.strip())
