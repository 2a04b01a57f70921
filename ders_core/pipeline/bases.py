"""What gradients add to a calibration file about errors that experts share: what an error in their
base costs.

A token's experts all have the error E of their base, so it costs ½ E[(Σ_e g_e·E x_e)²], and its
curvature is that of the sum of the experts' gradients: more than the sum of their curvatures where
they point the same way. For each projection of a layer, float32, with G_te = g_te x_teᵀ of token t
in expert e, and T the calibration's tokens:

- `<layer>.<projection>.base_columns` `[in]` and `.base_rows` `[out]`: the marginals of
  Σ_t (Σ_e G_te)_ij² / T, over the routed experts.
- `<layer>.<projection>.base_pairs` `[experts, experts]`: Σ_t ⟨G_te, G_te'⟩ / T. What a set of
  experts' base costs in all is the sum of their rows and columns. The always-on expert is one more,
  the last, if it is an expert of the extended group and its tokens could be told.

All three are absent where the experts' inputs do not tell which of them are the same token's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs.curvature import Curvature
from ders_core.errors import CheckpointError
from ders_core.files.tensor import FileTensor
from ders_core.later import torch

BASE_COLUMNS, BASE_ROWS, PAIRS = "base_columns", "base_rows", "base_pairs"
OF_BASES = (BASE_COLUMNS, BASE_ROWS, PAIRS)

_CLOSE = 1e-3
"""By how much sums that must be one may differ: far above float32's rounding."""

_DAMAGED = "the file is damaged, so run ders calibrate --gradients again"


def check_together(file: Path, tensors: Mapping[str, FileTensor], prefix: str) -> None:
    """Raise CheckpointError unless a projection has all three tensors or none. prefix: of their
    names, without the last point."""
    three = [tensors.get(f"{prefix}.{kind}") for kind in OF_BASES]
    if any(three) and not all(three):
        raise CheckpointError(
            f"{file}: {prefix!r} needs {', '.join(OF_BASES)} and has only some; {_DAMAGED}"
        )


def shapes(group: ExpertGroup) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that each kind may have. group: without the always-on expert."""
    experts, out, width = group.shape
    counts = {experts, len(group.with_shared().experts)}
    return {
        BASE_COLUMNS: [(width,)],
        BASE_ROWS: [(out,)],
        PAIRS: [(count, count) for count in sorted(counts)],
    }


def read_base_curvature(
    file: Path,
    tensors: Mapping[str, FileTensor],
    group: ExpertGroup,
    curvatures: Sequence[Curvature],
    members: Sequence[int],
    tokens: int,
) -> Curvature | None:
    """What an error in the base that `members` of the group share costs; None if it was not
    measured, or not the always-on expert's part although it is one of them.

    All routed experts' is measured. That of others has the marginals of the sum of `curvatures`, of
    each expert of the group, and as large a sum as was measured. Raises CheckpointError if the
    values cannot be such.
    """
    infos = [tensors.get(f"{group.layer}.{group.projection}.{kind}") for kind in OF_BASES]
    columns, rows, pairs = (info.read().double() if info else None for info in infos)
    if columns is None or rows is None or pairs is None or max(members) >= len(pairs):
        return None
    routed = tensors[f"{group.layer}.routed"].shape[0]
    whole, part = float(pairs[:routed, :routed].sum()), pairs[members][:, members]
    total, alone = float(part.sum()), float(part.trace())
    finite = all(bool(torch.isfinite(each).all()) for each in (columns, rows, pairs))
    positive = all(bool((each >= 0).all()) for each in (columns, rows, pairs.diagonal()))
    sums = torch.stack([columns.sum(), rows.sum(), torch.tensor(whole).double()])
    least = -_CLOSE * alone
    if not finite or not positive or total < least or not _one_number(sums):
        raise CheckpointError(
            f"{file}: {', '.join(OF_BASES)} of layer {group.layer}, {group.projection} must be "
            "finite, not negative, and have one sum (of pairs, those of routed experts); "
            f"{_DAMAGED}"
        )
    if sorted(members) == list(range(routed)):
        return Curvature(*(_met_once_more(each, tokens) for each in (columns, rows)))
    summed = Curvature.sum([curvatures[member] for member in members])
    ratio = max(total, 0.0) / alone if alone else 1.0
    return Curvature(ratio * summed.columns, ratio * summed.rows)


def _one_number(sums: torch.Tensor) -> bool:
    return bool(sums.max() - sums.min() <= _CLOSE * sums.max())


def _met_once_more(marginals: torch.Tensor, tokens: int) -> torch.Tensor:
    """With one more token, in which every input and output was alike: so no entry costs nothing."""
    return ((tokens * marginals + marginals.mean()) / (tokens + 1)).float()
