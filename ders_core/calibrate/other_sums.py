"""Sums of what errors in one matrix that is no expert's cost, and of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ders_core.calibrate.input_sums import InputSums
from ders_core.calibrate.others import LocatedTensor
from ders_core.calibrate.trouble import Trouble
from ders_core.pipeline.moments import WEIGHTED
from ders_core.pipeline.others import (
    COHERENCE,
    COLUMNS,
    MOMENTS,
    ROW_MOMENTS,
    ROWS,
    TOKEN_ROWS,
)

TOKENS = 1024
"""Tokens that are multiplied with all of a window's at once."""

InputKey = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""Address, version, shape and strides of what entered a product."""


@dataclass
class OtherSums:
    """Of a tensor `[n, m]`, as it lies in the checkpoint, or of several in one.

    rows: `[n]` and columns: `[m]`: the marginals of Σ_t x_tj² g_ti², float64, on the model's
    device; x and g change places where inputs run along the rows. inputs: Σ x xᵀ by the axis along
    which the inputs run; None: another tensor has the same, or they are not wanted. weighted: the
    same of inputs along the columns, each weighted by ‖g_t‖²; of all tensors with the same inputs
    together. None: not wanted. together:
    Σ ‖Σ_t g_t x_tᵀ‖² over products, apart: Σ_t ‖g_t x_tᵀ‖². lookups: how many rows were looked up.
    trouble: why it cannot be measured.
    """

    tensor: LocatedTensor
    rows: torch.Tensor
    columns: torch.Tensor
    max_width: int
    inputs: dict[int, InputSums] | None = field(default_factory=dict)
    weighted: InputSums | None = None
    entered: list[tuple[int, torch.Tensor, InputKey]] = field(default_factory=list)
    """Axis, values and key of the inputs of this window's products."""
    together: float = 0.0
    apart: float = 0.0
    products: int = 0
    lookups: int = 0
    trouble: Trouble | None = None
    is_entered: bool = False

    @classmethod
    def empty(cls, tensor: LocatedTensor, max_width: int) -> OtherSums:
        device = tensor.pieces[0].weight.device
        rows, columns = (
            torch.zeros(size, dtype=torch.float64, device=device) for size in tensor.shape
        )
        weighted = InputSums.empty(tensor.shape[1], max_width, device)
        return cls(tensor, rows, columns, max_width, weighted=weighted)

    def enter(self, part: int, rows: slice, x: torch.Tensor, source: torch.Tensor) -> None:
        self.is_entered = True
        if self.trouble or (self.tensor.stacked == 1 and (part > 1 or rows.start)):
            return  # other pieces, and other rows of it, have the same inputs
        if not torch.is_grad_enabled():
            return  # a block that is computed once more, with other experts
        key = source.data_ptr(), source._version, tuple(x.shape), x.stride()
        self.entered.append((0 if part == 1 else 1, x, key))

    def add(
        self, part: int, rows: slice, window: int, x: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """part: 2·p of the p-th piece; 1 of the whole transpose."""
        piece, is_turned = divmod(part, 2)
        after, before = (self.columns, self.rows) if is_turned else (self.rows, self.columns)
        lines = range(*self.tensor.pieces[piece].rows.indices(len(self.rows)))
        if is_turned:
            lines = range(len(self.columns))
        some = lines[rows]
        x_squared, squared = x.float().square(), gradient.float().square()
        after[some.start : some.stop : some.step] += x_squared.sum(1) @ squared
        before += squared.sum(1) @ x_squared
        if self.weighted is not None and not is_turned:
            self.weighted.add(x, squared.sum(1))
        self.products += 1
        self.apart += float(squared.sum(1) @ x_squared.sum(1))
        for of_inputs, of_gradients in _pairs(x.float(), gradient.float()):
            self.together += float((of_inputs * of_gradients).sum(dtype=torch.float64))

    def look_up(self, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add the gradients `[n, m]` after lookups of these rows `[n]`."""
        squared = gradient.float().square()
        self.rows.index_add_(0, rows, squared.sum(1).double())
        self.columns += squared.sum(0)
        self.lookups += len(rows)

    def refuse(self, trouble: Trouble, part: int) -> None:
        self.trouble = self.trouble or trouble

    def add_inputs(self) -> None:
        """Add the inputs that entered since the last call, and forget them."""
        if self.inputs is not None:
            for axis, x, _ in self.entered:
                if axis not in self.inputs:
                    self.inputs[axis] = InputSums.empty(x.shape[1], self.max_width, x.device)
                self.inputs[axis].add(x)
        self.entered.clear()

    def finished(self, needs_lookups: bool) -> Trouble | None:
        """Why it was not measured, if it was not. needs_lookups: the model reads tokens by it."""
        if self.trouble:
            return self.trouble
        if needs_lookups and not self.lookups:
            return Trouble.NO_LOOKUP
        if not self.products and not self.lookups:
            return Trouble.NO_GRADIENT if self.is_entered else Trouble.NEVER
        if not bool(torch.isfinite(self.rows).all() & torch.isfinite(self.columns).all()):
            return Trouble.INFINITE
        return None if bool(self.rows.any()) else Trouble.NO_COST

    def marginals(self, tokens: int, columns: str, rows: str) -> dict[str, torch.Tensor]:
        """By these names, float32, on the CPU. tokens: of all windows."""
        sums = {columns: self.columns, rows: self.rows}
        return {kind: (summed / tokens).float().cpu() for kind, summed in sums.items()}

    def tensors(self, tokens: int, of_tokens: bool) -> dict[str, torch.Tensor]:
        """By their kinds in a calibration file, float32, on the CPU. tokens: of all windows.
        of_tokens: whether rows are a vocabulary's tokens."""
        measured = self.marginals(tokens, COLUMNS, TOKEN_ROWS if of_tokens else ROWS)
        if self.apart:
            measured[COHERENCE] = torch.tensor([max(self.together, 0.0) / self.apart])
        if self.inputs and len(self.inputs) == 1:
            ((axis, inputs),) = self.inputs.items()
            measured[MOMENTS if axis else ROW_MOMENTS] = inputs.mean()
            if axis and self.weighted is not None and self.weighted.count:
                measured[WEIGHTED] = self.weighted.mean()
        return measured


def _pairs(x: torch.Tensor, gradient: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The products of every two tokens' inputs, and of their gradients: `[n, tokens]` at a time."""
    for some_x, some_gradients in zip(x.split(TOKENS), gradient.split(TOKENS), strict=True):
        yield some_x @ x.T, some_gradients @ gradient.T


def share_inputs(sums: Mapping[str, OtherSums]) -> dict[str, str]:
    """Which tensors had the same inputs as one before in the products that `entered`: name -> the
    name of that one. Such as q, k and v."""
    first: dict[tuple[tuple[int, InputKey], ...], str] = {}
    shared: dict[str, str] = {}
    for name, each in sums.items():
        calls = tuple((axis, key) for axis, _, key in each.entered)
        if calls:
            one = first.setdefault(calls, name)
            if one != name:
                shared[name] = one
    return shared
