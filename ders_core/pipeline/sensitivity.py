"""What gradients add to a calibration file: how much an error in each weight costs, and how much
shrunken deltas cost.

For each projection of a layer, float32:

- `<layer>.<projection>.columns` `[experts, in]` and `.rows` `[experts, out]`: the marginals of
  Σ_t x_tj² g_ti² / T, where x_t enters an expert's weight, g_t is the gradient of log p (labels
  drawn from the model) after it, and T is the calibration's tokens, each of which predicts one
  label. The always-on expert is one more, the last, if it is an expert of the extended group.
- `<layer>.<projection>.shrinkage` `[windows, experts]`: Σ_t g_t·(Δ_k x_t) over each window, with
  Δ_k = W_k − the mean of the layer's routed experts. For J with one such column for each thing that
  is shrunken, deltas multiplied by a cost ½ (1−a)ᵀ JᵀJ (1−a) / T nats a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ders_core.checkpoint import PROJECTIONS, ExpertGroup
from ders_core.codecs.curvature import Curvature
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import FileTensor
from ders_core.later import torch
from ders_core.pipeline import bases, tipping
from ders_core.pipeline.others import is_other

COLUMNS, ROWS, SHRINKAGE = "columns", "rows", "shrinkage"
KINDS = (COLUMNS, ROWS, SHRINKAGE)
NAMES = (
    rf"({'|'.join(PROJECTIONS)})\.({'|'.join(KINDS + tipping.OF_GROUPS + bases.OF_BASES)})"
    rf"|({'|'.join(tipping.OF_LAYERS)})"
)
"""A regular expression of the tensors' names, behind `<layer>.`."""

_ALL = KINDS + tipping.OF_GROUPS + tipping.OF_LAYERS + bases.OF_BASES
_VECTORS = (*tipping.OF_LAYERS, bases.BASE_COLUMNS, bases.BASE_ROWS)

BORROWED = 32
"""Tokens of its group's average that each expert's marginals are blended with. An expert that met
few tokens knows little of itself."""

_CLOSE = 1e-3
"""By how much the sums of columns and rows may differ: far above float32's rounding."""

_DAMAGED = "the file is damaged, so run ders calibrate --gradients again"


def is_sensitivity(name: str) -> bool:
    """Whether a tensor of this name is one that gradients give of experts."""
    return name.rpartition(".")[2] in _ALL and not is_other(name)


def fits(info: FileTensor) -> bool:
    """Whether a tensor of gradients has the dtype and dimensions of one."""
    dims = 1 if info.name.rpartition(".")[2] in _VECTORS else 2
    return info.dtype is Dtype.F32 and len(info.shape) == dims and min(info.shape) > 0


def check_together(file: Path, tensors: Mapping[str, FileTensor]) -> None:
    """Raise CheckpointError unless every projection has all three tensors, of as many experts, and
    all have as many windows; and what is known of routers is known of all. tensors: of a
    calibration, each of which `fits`."""
    windows: int | None = None
    prefixes = {
        prefix
        for name in filter(is_sensitivity, tensors)
        for prefix, _, kind in [name.rpartition(".")]
        if kind not in tipping.OF_LAYERS
    }
    for prefix in sorted(prefixes):
        three = [tensors.get(f"{prefix}.{kind}") for kind in KINDS]
        columns, rows, shrinkage = three
        if columns is None or rows is None or shrinkage is None:
            raise CheckpointError(
                f"{file}: {prefix!r} needs {', '.join(KINDS)} and has only some; {_DAMAGED}"
            )
        experts = shrinkage.shape[1]
        windows = shrinkage.shape[0] if windows is None else windows
        same = columns.shape[0] == rows.shape[0] and columns.shape[0] - experts in (0, 1)
        if not same or shrinkage.shape[0] != windows:
            shapes = ", ".join(str(list(info.shape)) for info in (columns, rows, shrinkage))
            raise CheckpointError(
                f"{file}: columns, rows and shrinkage of {prefix!r} do not fit each other or those "
                f"of other layers: their shapes are {shapes}; {_DAMAGED}"
            )
        bases.check_together(file, tensors, prefix)
    _check_routers(file, tensors, prefixes)


def _check_routers(file: Path, tensors: Mapping[str, FileTensor], prefixes: set[str]) -> None:
    """Raise CheckpointError unless all tensors of tipped choices are there, or none."""
    layers = {prefix.partition(".")[0] for prefix in prefixes} | {
        name.partition(".")[0] for name in tensors if name.endswith(tipping.OF_LAYERS)
    }
    needed = [f"{prefix}.{kind}" for prefix in sorted(prefixes) for kind in tipping.OF_GROUPS]
    needed += [f"{layer}.{kind}" for layer in sorted(layers) for kind in tipping.OF_LAYERS]
    missing = [name for name in needed if name not in tensors]
    if missing and len(missing) < len(needed):
        raise CheckpointError(
            f"{file}: {missing[0]!r} is missing, and others of the routers' choices are there; "
            f"{_DAMAGED}"
        )
    lengths = {
        tensors[name].shape[0] for name in needed if name in tensors and name.count(".") == 1
    }
    if len(lengths) > 1:
        raise CheckpointError(
            f"{file}: {tipping.MARGINS} and {tipping.SWAPS} are of {min(lengths)} to "
            f"{max(lengths)} tokens, and must be of as many; {_DAMAGED}"
        )


def check_shapes(file: Path, tensors: Mapping[str, FileTensor], group: ExpertGroup) -> None:
    """Raise CheckpointError unless the tensors of gradients have the sizes of a group's weights.
    group: without the always-on expert."""
    experts, out, width = group.shape
    counts = (experts, len(group.with_shared().experts))
    needed: dict[str, list[tuple[int, ...]]] = {
        COLUMNS: [(count, width) for count in counts],
        ROWS: [(count, out) for count in counts],
    }
    needed[tipping.ROUTER_COLUMNS], needed[tipping.ROUTER_ROWS] = needed[COLUMNS], needed[ROWS]
    needed |= bases.shapes(group)
    for kind in KINDS + tipping.OF_GROUPS + bases.OF_BASES:
        info = tensors.get(f"{group.layer}.{group.projection}.{kind}")
        if info is None:
            continue
        shapes = needed.get(kind, [(info.shape[0], experts)])
        if info.shape not in shapes:
            raise CheckpointError(
                f"{file}: {info.name!r} is of shape {list(info.shape)}, the checkpoint's layer "
                f"needs {list(shapes[0])}; {_DAMAGED}"
            )


def read_curvatures(
    file: Path,
    tensors: Mapping[str, FileTensor],
    group: ExpertGroup,
    routed: torch.Tensor,
    kinds: tuple[str, str] = (COLUMNS, ROWS),
) -> tuple[Curvature, ...] | None:
    """One for each expert of the group; None if they were not measured, or not the always-on
    expert's although it is in the group.

    routed: int64, how many tokens chose each routed expert. kinds: the names of the marginals.
    Raises CheckpointError if the values cannot be marginals.
    """
    experts = group.shape[0]
    names = (f"{group.layer}.{group.projection}.{kind}" for kind in kinds)
    infos = [tensors[name] for name in names if name in tensors]
    if not infos or infos[0].shape[0] < experts:
        return None
    columns, rows = (info.read()[:experts].double() for info in infos)
    finite = all(bool(torch.isfinite(marginals).all()) for marginals in (columns, rows))
    negative = any(bool((marginals < 0).any()) for marginals in (columns, rows))
    if not finite or negative or not torch.allclose(columns.sum(1), rows.sum(1), _CLOSE, 0):
        raise CheckpointError(
            f"{file}: {infos[0].name!r} and {infos[1].name!r} hold no marginals of one matrix "
            f"(they are finite, not negative, and have one sum for each expert); {_DAMAGED}"
        )
    blended = (_blended(marginals, routed.double()) for marginals in (columns, rows))
    return tuple(Curvature(*pair) for pair in zip(*blended, strict=True))


def read_tipping(file: Path, tensors: Mapping[str, FileTensor]) -> tuple[tipping.Tipping, ...]:
    """Of each layer, in order. Raises CheckpointError if margins or costs are negative or not
    finite."""
    layers = (int(name.partition(".")[0]) for name in tensors if name.endswith(tipping.SWAPS))
    found = []
    for layer in sorted(layers):
        values = [tensors[f"{layer}.{kind}"].read() for kind in tipping.OF_LAYERS]
        if not all(bool((each >= 0).all() & torch.isfinite(each).all()) for each in values):
            raise CheckpointError(
                f"{file}: {tipping.MARGINS} and {tipping.SWAPS} of layer {layer} must be finite "
                f"and not negative; {_DAMAGED}"
            )
        found.append(tipping.Tipping(layer, *values))
    return tuple(found)


def read_shrinkage(info: FileTensor, file: Path) -> torch.Tensor:
    """Raises CheckpointError if values are not finite."""
    shrinkage = info.read()
    if not bool(torch.isfinite(shrinkage).all()):
        raise CheckpointError(f"{file}: {info.name!r} has values that are not finite; {_DAMAGED}")
    return shrinkage


def _blended(marginals: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
    """Each expert's marginals `[experts, n]` float32, as if each routed one had seen `BORROWED`
    more tokens of the group's average.

    The mean of a token is drawn to the average; as many tokens come as came, and one where none
    did. The average itself has seen one more token, in which every input and output was alike: so
    no entry costs nothing.
    """
    own, others = marginals.split([len(routed), len(marginals) - len(routed)])
    pooled, met = own.sum(0), routed.sum()
    average = (pooled + pooled.mean() / met) / (met + 1)
    share = routed.clamp(min=1) / (routed + BORROWED)
    return torch.cat([share[:, None] * (own + BORROWED * average), others]).float()
