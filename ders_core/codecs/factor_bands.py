"""Factors of a low rank in a few bits: the directions in bands, each with bits of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext, Parts
from ders_core.codecs.part_names import prefixed, within
from ders_core.codecs.quantized import Quantized
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, Routes
from ders_core.codecs.tunable import Tunable
from ders_core.compute import kernels
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import np, torch

SIDES = ("left", "right")

MOST_PAIRS = 8
"""Of one expert: of more, torch's products with decoded factors are quicker than loops."""


@dataclass(frozen=True)
class FactorBands:
    """Both factors as `[rank, out]` and `[rank, in]`, a direction a row. The first `leading` ones
    have leading_bits, the others bits."""

    rank: int
    leading: int
    leading_bits: int
    bits: int

    def _bands(self) -> Iterator[tuple[str, Quantized, range]]:
        """(name of the parts, what quantizes them, directions that they hold), in order."""
        split = min(self.leading, self.rank)
        bands = [
            ("leading", self.leading_bits, range(split)),
            ("trailing", self.bits, range(split, self.rank)),
        ]
        for name, bits, directions in bands:
            if len(directions):
                grid = "normal" if bits <= 4 else "uniform"
                yield name, Quantized(bits=bits, grid=grid), directions

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        """Of the factors of a matrix `[out, in]`."""
        parts: dict[str, TensorSpec] = {}
        for name, coder, directions in self._bands():
            for side, length in zip(SIDES, shape, strict=True):
                factor = coder.parts((len(directions), length), dtype)
                parts |= prefixed(f"{side}.{name}", factor)
        return parts

    def encode(self, side: str, rows: torch.Tensor, context: EncodeContext) -> Parts:
        """rows: `[rank, length]`."""
        parts: Parts = {}
        for name, coder, directions in self._bands():
            band = rows[directions.start : directions.stop].contiguous()
            parts |= prefixed(f"{side}.{name}", coder.encode(band, context))
        return parts

    def decode(
        self, side: str, parts: Mapping[str, torch.Tensor], length: int, context: EncodeContext
    ) -> torch.Tensor:
        """`[rank, length]` float32."""
        rows = [
            coder.decode(within(f"{side}.{name}", parts), (len(directions), length), context)
            for name, coder, directions in self._bands()
        ]
        return torch.cat(rows) if rows else torch.zeros(0, length)

    def tunable(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> Tunable:
        """The scales of both factors, of a rank above 0."""
        bands = {
            f"{side}.{name}": coder.tunable(
                within(f"{side}.{name}", parts), (len(directions), length), context
            )
            for name, coder, directions in self._bands()
            for side, length in zip(SIDES, shape, strict=True)
        }

        def multiplied(rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
            left, right = (
                torch.cat([part for name, part in rows.items() if name.startswith(f"{side}.")])
                for side in SIDES
            )
            return left.T @ right

        return Tunable.joined(bands, multiplied)

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        """None without directions, or where loops cannot work on the parts."""
        if not self.rank or not min(coded.shape) or not kernels.takes(*coded.parts.values()):
            return None
        rights = []
        for name, coder, directions in self._bands():
            parts, shape = within(f"right.{name}", coded.parts), (len(directions), coded.shape[1])
            products = coder.routed(CodedExperts(parts, shape, coded.contexts))
            assert products is not None, "codes have products where there are any"
            rights.append((directions.start, products))
        return RoutedFactorCodes(self, coded, rights)


@dataclass(frozen=True)
class RoutedFactorCodes(RoutedDeltas):
    """Δ̂ = Lᵀ R. rights: of each band of R, its first direction and its products. A band of L is
    decoded for each product with it: its rows are few."""

    bands: FactorBands
    coded: CodedExperts
    rights: Sequence[tuple[int, RoutedDeltas]]

    @property
    def most_pairs(self) -> int:
        return MOST_PAIRS

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        pairs, out = np.arange(len(routes.inputs)), self.coded.shape[0]
        inner = np.zeros((len(pairs), self.bands.rank), np.float32)
        for first, products in self.rights:
            products.add(x, inner, first, Routes(routes.inputs, routes.experts, pairs))
        for expert, of_expert, outputs in Routes(pairs, routes.experts, routes.outputs).by_expert():
            parts = {name: part[expert] for name, part in self.coded.parts.items()}
            left = self.bands.decode("left", parts, out, self.coded.contexts[expert]).numpy()
            np.add.at(y[:, column : column + out], outputs, inner[of_expert] @ left)
