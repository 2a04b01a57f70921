"""`sparse`: a share of the delta's entries is kept, the rest is zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from ders_core.codecs.choice import Choice, Strength
from ders_core.codecs.codec import DeltaCodec, EncodeContext, Parts, prefixed, register, within
from ders_core.codecs.coding.patterns import (
    choose_pattern,
    decode_pattern,
    encode_pattern,
    parse_pattern,
    pattern_bytes,
)
from ders_core.codecs.coding.positions import (
    decode_fixed,
    decode_shortest,
    encode_fixed,
    encode_shortest,
    fixed_bytes,
    shortest_bytes,
)
from ders_core.codecs.coding.prng import position_chunks, random_positions, random_uniform
from ders_core.codecs.fitting.select import largest, largest_of_rows, largest_read
from ders_core.codecs.quantized import Quantized
from ders_core.codecs.statistics import DeltaStatistics
from ders_core.compute.pieces import at_least, chunk_values
from ders_core.files.spec import TensorSpec

VALUES_PER_SCALE = 128

Rescale = Literal["none", "unbiased", "least_squares"]

DROP = Strength("drop_rate", "share of entries dropped", 0.9, 0, 0.999, 0.05, 0.01)


@register
class Sparse(DeltaCodec):
    """Keep a share 1 − drop_rate of the entries, or (`pattern: N:M`) N of each M neighbours.

    method `random`: F(Δ) = (1−M) ⊙ Δ / (1−p), M random with share p of ones (DeRS eq. 4; DARE).
    M has exactly round(p·n) ones, drawn without replacement, and is drawn again from the seed when
    the delta is decoded: positions take no bytes. `magnitude`: the largest |Δ| stay; with a
    calibration, the largest |Δ_ij|·√E[x_j²] (Wanda, arXiv 2306.11695). `della`: drawn at random,
    with a chance that falls with the rank of |Δ| within its row from p + ε/2 to p − ε/2 (DELLA,
    arXiv 2406.11617, eq. 2), where ε is `spread` times the most that p allows; an exact number is
    kept by Pareto sampling (Rosén 1997).

    budget `row`: every row keeps as many; `matrix`: the matrix as a whole does.
    rescale `unbiased` divides by the chance to be kept; `least_squares` multiplies each row by
    ⟨Δ, Δ̂⟩/⟨Δ̂, Δ̂⟩, in the metric of the second moments where there is a calibration; without one
    it changes nothing unless values are quantized. Default: unbiased for what is drawn at random.
    value_bits: values in the model's dtype, or with 8 bits, or 4 with 16 learnt levels.
    """

    name: ClassVar[str] = "sparse"
    summary: ClassVar[str] = "Keeps a share of each delta's entries and drops the rest."
    source: ClassVar[str] = (
        "DeRS (arXiv 2503.01359) eq. 4; DARE (arXiv 2311.03099); DELLA (arXiv 2406.11617)"
    )
    choices: ClassVar[tuple[Choice, ...]] = (
        Choice("random drop", {"method": "random"}, DROP),
        Choice("magnitude", {"method": "magnitude", "pattern": None}, DROP),
        Choice("della", {"method": "della"}, DROP),
    )
    menu_place: ClassVar[int] = 2
    use_of_calibration: ClassVar[str] = "weighs entries by their inputs"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"drop_rate": 0.0},
        {"drop_rate": 0.9},
        {"drop_rate": 0.8, "rescale": "least_squares", "value_bits": 4},
        {"drop_rate": 0.3, "method": "magnitude"},
        {"drop_rate": 0.99, "method": "magnitude", "positions": "fixed"},
        {"drop_rate": 0.8, "method": "magnitude", "budget": "row", "value_bits": 4},
        {"drop_rate": 0.8, "method": "della", "value_bits": 8},
        {"drop_rate": 0.6, "method": "della", "budget": "row", "spread": 0.5},
        {"pattern": "2:4"},
        {"pattern": "1:16", "value_bits": 8, "rescale": "least_squares"},
    )

    drop_rate: float | None = Field(
        default=None, ge=0, lt=1, description="share of entries that are dropped (p)"
    )
    pattern: str | None = Field(default=None, description="N:M, such as 2:4, instead of drop_rate")
    method: Literal["random", "magnitude", "della"] = Field(
        default="random", description="random drop, keep the largest, or both at once"
    )
    budget: Literal["matrix", "row"] = Field(
        default="matrix", description="what keeps its share: the matrix, or each row"
    )
    rescale: Rescale | None = Field(default=None, description="what is done to the kept values")
    spread: float = Field(
        default=1.0, ge=0, le=1, description="della: how far chances differ, of what is possible"
    )
    value_bits: Literal[4, 8] | None = Field(
        default=None, description="bits of a value; none for the model's dtype"
    )
    positions: Literal["shortest", "fixed"] = Field(
        default="shortest", description="fixed: in a form whose bytes are known beforehand"
    )

    @model_validator(mode="before")
    @classmethod
    def _pattern_chooses(cls, data: Any) -> Any:
        """N:M keeps the largest of each block."""
        if isinstance(data, dict) and data.get("pattern") is not None:
            return {"method": "magnitude", **data}
        return data

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            parse_pattern(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Sparse:
        if (self.drop_rate is None) == (self.pattern is None):
            raise ValueError("give either a drop_rate or a pattern, and not both")
        if self.pattern is not None and self.method != "magnitude":
            raise ValueError("a pattern keeps the largest of each block: its method is magnitude")
        if self.method == "random" and self.budget == "row":
            raise ValueError("the budget row is for magnitude and della; random draws are even")
        if self.method == "magnitude" and self.rescale == "unbiased":
            raise ValueError("unbiased is for random draws; magnitude has none or least_squares")
        return self

    @property
    def label(self) -> str:
        if self.pattern is not None:
            name = f"{self.pattern} magnitude"
        else:
            name = f"{self.method} drop {self.drop_rate:g}"
        extras = [
            "by row" if self.budget == "row" else "",
            f"{self.value_bits}-bit values" if self.value_bits else "",
            (self.rescale or "").replace("_", " "),
        ]
        return ", ".join([name, *filter(None, extras)])

    def dump(self) -> dict[str, Any]:
        """Omit budget, spread and positions that have their default."""
        optional = ("budget", "spread", "positions")
        return {
            key: value
            for key, value in super().dump().items()
            if key not in optional or value != type(self).model_fields[key].default
        }

    def expected_error(self, statistics: DeltaStatistics) -> float | None:
        """Random: the expectation √(p/(1−p)), or √p where values are not rescaled to be unbiased.
        Magnitude: √ of the energy in the smallest entries, as if the matrix had one budget. Bits of
        stored values are taken to be enough. Unknown for patterns and della."""
        rate = self.drop_rate
        if rate is None or self.method == "della":
            return None
        if self.method == "magnitude":
            return math.sqrt(statistics.energy_of_smallest(rate))
        return math.sqrt(rate / (1 - rate) if self._scaling == "unbiased" else rate)

    @property
    def ragged(self) -> frozenset[str]:
        stored = self.method != "random" and self.pattern is None
        return frozenset({"positions"} if stored and self.positions == "shortest" else ())

    @property
    def _scaling(self) -> Rescale:
        return self.rescale or ("none" if self.method == "magnitude" else "unbiased")

    def kept(self, shape: tuple[int, int]) -> int:
        """How many entries of one expert stay; with a pattern, how many values are stored."""
        out, width = shape
        if self.pattern is not None:
            kept, block = parse_pattern(self.pattern)
            return out * math.ceil(width / block) * kept
        rate = self.drop_rate or 0.0
        if self.budget == "row":
            return out * (width - round(rate * width))
        return out * width - round(rate * out * width)

    def _coder(self) -> Quantized | None:
        """What values are stored with, if not as they are."""
        if self.value_bits is None:
            return None
        grid: Literal["learned", "uniform"] = "learned" if self.value_bits == 4 else "uniform"
        return Quantized(bits=self.value_bits, grid=grid, group_size=0)

    def parts(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, TensorSpec]:
        count, size = self.kept(shape), math.prod(shape)
        coder = self._coder()
        if coder is None:
            parts = {"values": TensorSpec(dtype, (count,))}
        else:
            parts = prefixed("values", coder.parts(_table(count), dtype))
        if self.pattern is not None:
            kept, block = parse_pattern(self.pattern)
            length = pattern_bytes(count // kept, kept, block)
        elif self.method == "random":
            return parts
        else:
            bound = shortest_bytes if self.positions == "shortest" else fixed_bytes
            length = bound(size, count)
        return parts | {"positions": TensorSpec(torch.uint8, (length,))}

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        if not self._looks_at_entries(context):
            return super().pack(weight, base, context)
        own, start, size = weight.reshape(-1), base.reshape(-1), weight.numel()
        count = self.kept((weight.shape[0], weight.shape[1]))
        stored: Parts = {}
        if self.method == "random":
            chunks: Iterable[torch.Tensor] = position_chunks(
                size, count, context.seed, weight.device
            )
        else:
            room = torch.empty(2, min(chunk_values(own.device), size), device=own.device)

            def read(piece: slice) -> torch.Tensor:
                length = piece.stop - piece.start
                mine, bases = room[0, :length], room[1, :length]
                return mine.copy_(own[piece]).sub_(bases.copy_(start[piece]))

            places = largest_read(read, size, count, weight.device)
            stored = {"positions": self._encode_positions(places, size)}
            chunks = places.split(chunk_values(places.device))
        values, begin = torch.empty(count, dtype=torch.float32, device=weight.device), 0
        for places in chunks:
            kept = own.index_select(0, places).float().sub_(start.index_select(0, places).float())
            values[begin : begin + places.numel()] = kept
            begin += places.numel()
        return self._store(values, context) | stored

    def _looks_at_entries(self, context: EncodeContext) -> bool:
        """Whether what is kept follows from each entry alone, so that no matrix is needed."""
        if self._scaling == "least_squares":
            return False
        weighed = context.importance is not None
        alone = self.budget == "matrix" and self.pattern is None and not weighed
        return self.method == "random" or (self.method == "magnitude" and alone)

    def _encode_positions(self, places: torch.Tensor, size: int) -> torch.Tensor:
        encode = encode_shortest if self.positions == "shortest" else encode_fixed
        return encode(places, size)

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        values, chunks = self._kept(parts, (base.shape[0], base.shape[1]), context)
        start = base.reshape(-1)
        weight = start + 0.0  # as every sum with a dropped entry: −0 becomes 0
        for own, places in _placed(values, chunks):
            own = own + start.index_select(0, places).float()
            weight.index_copy_(0, places, own.to(base.dtype))
        return weight.view(base.shape)

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        shape = (delta.shape[0], delta.shape[1])
        chances = self._chances(delta) if self.method == "della" else None
        places, stored = self._select(delta, chances, context)
        flat = delta.reshape(-1)
        values = torch.where(places >= 0, flat[places.clamp_min(0)], 0.0)
        if self._scaling == "unbiased" and chances is not None:
            values = values / chances.view(-1)[places]
        parts = self._store(values, context)
        if self._scaling == "least_squares":
            kept = _scattered(self._load(parts), places.split(chunk_values(places.device)), shape)
            factor = _row_factors(delta, kept, context.moments)
            rows = places.clamp_min(0) // max(shape[1], 1)
            parts = self._store(values * factor[rows], context)
        return parts | stored

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        values, chunks = self._kept(parts, shape, context)
        return _scattered(values, chunks, shape)

    def _kept(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> tuple[torch.Tensor, Iterable[torch.Tensor]]:
        """The kept values `[kept]`, float32, and a piece at a time their flat places (−1 for
        none)."""
        count, size = self.kept(shape), math.prod(shape)
        values = self._load(parts)[:count]
        if self.method == "random":
            if self._scaling == "unbiased":
                values = values * (size / count if count else 0.0)
            return values, position_chunks(size, count, context.seed, values.device)
        if self.pattern is not None:
            kept, block = parse_pattern(self.pattern)
            chosen = decode_pattern(parts["positions"], count // kept, kept, block)
            places = _block_places(chosen, shape, block)
        elif self.positions == "shortest":
            places = decode_shortest(parts["positions"], size, count)
        else:
            places = decode_fixed(parts["positions"], size, count)
        return values, places.split(chunk_values(values.device))

    def _select(
        self, delta: torch.Tensor, chances: torch.Tensor | None, context: EncodeContext
    ) -> tuple[torch.Tensor, Parts]:
        """Flat places of the kept entries, in the order of their values (−1 for none), and the
        part that tells them. chances: della's, `[out, in]`."""
        shape, size = (delta.shape[0], delta.shape[1]), delta.numel()
        count = self.kept(shape)
        if self.method == "random":
            return random_positions(size, count, context.seed, delta.device), {}
        scores = delta.abs()
        if chances is not None:
            luck = random_uniform(size, context.seed, delta.device).view(shape)
            chance = chances.clamp(1e-6, 1 - 1e-6)
            scores = chance / (1 - chance) * ((1 - luck) / luck)  # Pareto sampling: the largest
        elif context.importance is not None:
            scores *= context.importance.to(delta.device).clamp_min(0).sqrt()
        if self.pattern is not None:
            kept, block = parse_pattern(self.pattern)
            padded = torch.nn.functional.pad(scores, (0, -shape[1] % block), value=-1.0)
            chosen = choose_pattern(padded.view(-1, block), kept)
            stored = encode_pattern(chosen, block)
            return _block_places(chosen, shape, block), {"positions": stored}
        if self.budget == "row":
            places = largest_of_rows(scores, count // max(shape[0], 1))
        else:
            places = largest(scores, count)
        return places, {"positions": self._encode_positions(places, size)}

    def _chances(self, delta: torch.Tensor) -> torch.Tensor:
        """della: the chance of each entry to be kept, `[out, in]`; their mean in a row is 1 − p."""
        out, width = delta.shape
        rate = self.drop_rate or 0.0
        half = self.spread * min(rate, 1 - rate)
        order = delta.abs().sort(dim=1, descending=True, stable=True).indices
        falling = torch.linspace(1 - rate + half, 1 - rate - half, width, device=delta.device)
        if width == 1:
            falling = falling.new_tensor([1 - rate])
        return torch.empty_like(delta).scatter_(1, order, falling.expand(out, width))

    def _store(self, values: torch.Tensor, context: EncodeContext) -> Parts:
        coder = self._coder()
        if coder is None:
            return {"values": values.to(context.dtype)}
        rows, width = _table(values.numel())
        padded = torch.nn.functional.pad(values, (0, rows * width - values.numel()))
        plain = EncodeContext(context.dtype, context.seed)
        return prefixed("values", coder.encode(padded.view(rows, width), plain))

    def _load(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The values, float32; perhaps with padding behind them."""
        coder = self._coder()
        if coder is None:
            return parts["values"].float()
        own = within("values", parts)
        shape = (own["scales"].shape[0], VALUES_PER_SCALE)
        return coder.decode(own, shape, EncodeContext(own["scales"].dtype, 0)).view(-1)


def _table(count: int) -> tuple[int, int]:
    """Rows and columns in which `count` values are quantized: one scale a row."""
    return math.ceil(count / VALUES_PER_SCALE), VALUES_PER_SCALE


def _block_places(chosen: torch.Tensor, shape: tuple[int, int], block: int) -> torch.Tensor:
    """Places within blocks `[blocks, N]` as flat places in the matrix; −1 beyond a row's end."""
    out, width = shape
    blocks = math.ceil(width / block)
    number = torch.arange(out * blocks, device=chosen.device).unsqueeze(1)
    column = (number % max(blocks, 1)) * block + chosen
    places = (number // max(blocks, 1)) * width + column
    return torch.where(column < width, places, -1).view(-1)


def _placed(
    values: torch.Tensor, chunks: Iterable[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Values and their places, a piece at a time; what has the place −1 is left out."""
    begin = 0
    for places in chunks:
        own = values[begin : begin + places.numel()]
        begin += places.numel()
        if places.numel() and int(places.min()) < 0:
            inside = at_least(places, 0)
            own, places = own.index_select(0, inside), places.index_select(0, inside)
        yield own, places


def _scattered(
    values: torch.Tensor, chunks: Iterable[torch.Tensor], shape: tuple[int, int]
) -> torch.Tensor:
    """A matrix with `values` at the places, zero elsewhere."""
    flat = torch.zeros(math.prod(shape), dtype=torch.float32, device=values.device)
    for own, places in _placed(values, chunks):
        flat.index_copy_(0, places, own)
    return flat.view(shape)


def _row_factors(
    delta: torch.Tensor, kept: torch.Tensor, moments: torch.Tensor | None
) -> torch.Tensor:
    """argmin over s of E‖(Δ_r − s·Δ̂_r) x‖² for each row r, `[out]`; 1 where nothing is kept."""
    if moments is None:
        heavy = kept
    elif moments.dim() == 1:
        heavy = kept * moments.to(kept.device)
    else:
        heavy = kept @ moments.to(kept.device)
    largest_entry = delta.abs().amax().clamp_min(1e-30) if delta.numel() else 1.0
    power = ((kept / largest_entry) * (heavy / largest_entry)).sum(1)
    shared = ((delta / largest_entry) * (heavy / largest_entry)).sum(1)
    return torch.where(power > 0, shared / torch.where(power > 0, power, 1.0), 1.0)
