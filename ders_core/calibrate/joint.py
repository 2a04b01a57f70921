"""What an error costs that several experts share, such as that of their base.

A token's experts all have it, so their gradients after it are added up before they are squared:
Σ_t (Σ_e g_tei x_tej)², and not Σ_t Σ_e g_tei² x_tej². Which rows of the experts' inputs are one
token is told by their values: those of gate and up are rows of the same hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ders_core.calibrate.placement import Key
from ders_core.calibrate.row_marks import EMPTY, row_marks
from ders_core.pipeline.bases import BASE_COLUMNS, BASE_ROWS, PAIRS
from ders_core.pipeline.calibration import MID, SIDES

VALUES = 1 << 24
"""Inputs and gradients that are multiplied at once, padded to as many experts for each token."""

PADDING = EMPTY
"""The number of a row that is no token: a slot that none filled."""


@dataclass(frozen=True)
class _Part:
    """One expert's tokens. tokens: their numbers. x: `[n, in]`. gradient: `[n, rows]`."""

    expert: int
    tokens: list[int]
    x: torch.Tensor
    gradient: torch.Tensor


@dataclass
class Joint:
    """Sums over tokens t of one group: of their experts' gradients G_te = g_te x_teᵀ.

    columns: Σ_t Σ_i (Σ_e G_te)_ij² `[in]` and rows: Σ_t Σ_j (Σ_e G_te)_ij² `[out]`, over the routed
    experts. pairs: Σ_t ⟨G_te, G_te'⟩ `[experts, experts]`, the always-on expert too. All float64.
    routed: how many experts are. is_known, shared_is_known: whether tokens could be told, of the
    routed experts and of the always-on one.
    """

    columns: torch.Tensor
    rows: torch.Tensor
    pairs: torch.Tensor
    routed: int
    is_known: bool = True
    shared_is_known: bool = True

    @classmethod
    def empty(cls, experts: int, routed: int, weight: torch.Tensor) -> Joint:
        """weight: `[out, in]`, of one expert."""

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=weight.device)

        out, width = weight.shape
        return cls(zeros(width), zeros(out), zeros(experts, experts), routed)

    def add(self, rows: slice, parts: list[_Part]) -> None:
        """Add all experts' tokens of some rows of their weights."""
        parts = [part for part in parts if part.tokens]
        if not parts:
            return
        device = self.rows.device
        tokens = torch.tensor([token for part in parts for token in part.tokens])
        experts = torch.cat([torch.full((len(part.tokens),), part.expert) for part in parts])
        kept = (tokens != PADDING).nonzero()[:, 0]
        order = kept[tokens[kept].argsort(stable=True)]
        counts = tokens[order].unique_consecutive(return_counts=True)[1]
        if not len(counts):
            return
        x = torch.cat([part.x for part in parts])[order.to(device)].float()
        gradient = torch.cat([part.gradient for part in parts])[order.to(device)].float()
        most = int(counts.max())
        count = max(VALUES // (most * (x.shape[1] + gradient.shape[1])), 1)
        begin = 0
        for some in counts.split(count):
            end = begin + int(some.sum())
            piece = slice(begin, end)
            self._add(rows, some, experts[order[piece]].to(device), x[piece], gradient[piece])
            begin = end

    def _add(
        self,
        rows: slice,
        counts: torch.Tensor,
        experts: torch.Tensor,
        x: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        """Rows of x and gradient are tokens one after another, `counts` experts of each."""
        most, number = int(counts.max()), len(counts)
        token = torch.arange(number).repeat_interleave(counts)
        slot = torch.arange(len(token)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        at = (token * most + slot).to(x.device)

        def padded(values: torch.Tensor) -> torch.Tensor:
            filled = values.new_zeros(number * most, values.shape[1])
            return filled.index_copy_(0, at, values).view(number, most, -1)

        inputs, gradients = padded(x), padded(gradient)
        of_slot = experts.new_zeros(number * most).index_copy_(0, at, experts).view(number, most)
        of_inputs, of_gradients = inputs @ inputs.mT, gradients @ gradients.mT
        products = of_inputs * of_gradients
        place = of_slot[:, :, None] * len(self.pairs) + of_slot[:, None]
        self.pairs.view(-1).index_add_(0, place.flatten(), products.flatten().double())
        is_routed = of_slot < self.routed
        both = is_routed[:, :, None] & is_routed[:, None]
        self.rows[rows] += ((of_inputs * both) @ gradients * gradients).sum((0, 1))
        self.columns += ((of_gradients * both) @ inputs * inputs).sum((0, 1))

    def tensors(self, tokens: int) -> dict[str, torch.Tensor]:
        """By their kinds in a calibration file, float32, on the CPU; none if they are not known.
        tokens: of all windows."""
        if not self.is_known:
            return {}
        count = len(self.pairs) if self.shared_is_known else self.routed
        pairs = self.pairs[:count, :count]
        sums = {BASE_COLUMNS: self.columns, BASE_ROWS: self.rows, PAIRS: pairs}
        return {kind: (summed / tokens).float().cpu() for kind, summed in sums.items()}


@dataclass
class _Numbers:
    """The numbers of one layer's tokens: rows of equal values are one token; the n-th of them that
    an expert is given is the n-th that another is given."""

    known: dict[tuple[int, int], int] = field(default_factory=dict)
    routed: set[int] = field(default_factory=set)
    """Tokens that a routed expert was given."""
    seen: dict[tuple[str, int, int, int], int] = field(default_factory=dict)
    """Projection, expert, first row and mark -> how many there were."""

    def number(self, projection: str, expert: int, row: int, marks: list[int]) -> list[int]:
        numbers = []
        for mark in marks:
            if mark == PADDING:
                numbers.append(PADDING)
                continue
            place = projection, expert, row, mark
            count = self.seen[place] = self.seen.get(place, 0) + 1
            numbers.append(self.known.setdefault((mark, count), len(self.known)))
        return numbers


@dataclass
class JointTokens:
    """Of one window: which tokens enter which expert, and their gradients until all of a group have
    come. joints: of each group, all windows' sums."""

    joints: Mapping[Key, Joint]
    numbers: dict[int, _Numbers] = field(default_factory=dict)
    last: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Layer, expert -> the numbers of the tokens that entered it."""
    due: dict[tuple[Key, int, int], int] = field(default_factory=dict)
    parts: dict[tuple[Key, int, int], list[_Part]] = field(default_factory=dict)

    def entered(self, key: Key, part: int, rows: slice, x: torch.Tensor) -> list[int] | None:
        """The numbers of the tokens x `[n, in]`."""
        if key not in self.joints or isinstance(key, str):
            return None
        layer, projection = key
        if SIDES[projection] == MID:
            tokens = self.last.get((layer, part), [])
        else:
            numbers = self.numbers.setdefault(layer, _Numbers())
            tokens = numbers.number(projection, part, rows.start, row_marks(x).tolist())
            self.last[layer, part] = tokens
            if part < self.joints[key].routed:
                numbers.routed.update(tokens)
        place = key, rows.start, rows.stop
        self.due[place] = self.due.get(place, 0) + 1
        return tokens

    def add(
        self,
        key: Key,
        part: int,
        rows: slice,
        tokens: list[int] | None,
        x: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        """A gradient has come back to inputs that `entered`; the last one of a group's completes
        it."""
        if tokens is None:
            return
        place = key, rows.start, rows.stop
        if len(tokens) == len(x):
            self.parts.setdefault(place, []).append(_Part(part, tokens, x, gradient))
        else:
            self.joints[key].is_known = False
        self.due[place] -= 1
        if not self.due[place]:
            self.joints[key].add(rows, self.parts.pop(place, []))

    def finish(self, tokens: int) -> None:
        """Complete the groups to some of whose inputs no gradient came back. tokens: how many the
        model has read; where more unlike ones were seen, each expert's are its own."""
        for (key, start, stop), parts in self.parts.items():
            self.joints[key].add(slice(start, stop), parts)
        self.parts.clear()
        for key, joint in self.joints.items():
            numbers = self.numbers.get(int(key[0]))
            if numbers is not None:
                joint.is_known &= len(numbers.routed - {PADDING}) <= tokens
                joint.shared_is_known &= len(numbers.known) <= tokens
