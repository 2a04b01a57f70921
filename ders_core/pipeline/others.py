"""What a calibration file knows of tensors that hold no routed expert: attention, dense FFNs,
always-on experts, embeddings, the output layer.

For a matrix `[n, m]` with the name NAME in the checkpoint's original layout, n and m as it lies
there (a tensor `[matrices, n, m]` is a matrix of all their rows), float32, with T the calibration's
tokens:

- `other.NAME.columns` `[m]` and `other.NAME.rows` `[n]`: the marginals of its curvature, as those
  of an expert's weight. Of a product with inputs x_t and gradients g_t after it
  Σ_t x_tj² g_ti² / T; of lookups of row i with gradients g_t after them Σ_t g_tj² / T. Where a
  tensor is used in several ways, as a tied embedding, they are added up.
- `other.NAME.coherence` `[1]`: Σ_w ‖Σ_t g_t x_tᵀ‖² / Σ_t ‖g_t x_tᵀ‖², with the inner sum over the
  tokens of a window w. It is 1 where what an error does at one token hangs together with nothing
  that it does at others; errors of values, which attention averages over tokens, add up. Absent
  where there are only lookups.
- `other.NAME.router_columns` and `.router_rows`: the marginals of the squared gradients of routers'
  margins, as those of experts (`ders_core.pipeline.tipping`); absent where choices are not seen.
- `other.NAME.token_rows` in the place of `rows`, where each row is a token of the vocabulary.
- `other.NAME.moments` `[m, m]`, or the diagonal `[m]`: E[x xᵀ] of the inputs of its products. Of a
  matrix `[in, out]`, whose inputs run along the rows, `other.NAME.row_moments` `[n, n]` or `[n]`.
  Absent where there is no product, and where it is another tensor's whose inputs are the same.
- `other.NAME.weighted` `[m, m]` or `[m]`, since version 3: as `moments`, with each input weighted
  by ‖g_t‖² of all tensors whose inputs are the same.

The metadata `others` is a JSON object. Its `left_out` says of each matrix that was not measured why
not; `inputs` names, for a tensor without moments of its own, the one that has the same inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ders_core.codecs.curvature import Curvature
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.tensor import FileTensor
from ders_core.files.untrusted_json import JsonFault, parse_json
from ders_core.later import torch
from ders_core.pipeline.moments import WEIGHTED, read_moments
from ders_core.pipeline.tipping import OF_GROUPS, ROUTER_COLUMNS, ROUTER_ROWS

PREFIX = "other."
COLUMNS, ROWS, TOKEN_ROWS = "columns", "rows", "token_rows"
MOMENTS, ROW_MOMENTS, COHERENCE = "moments", "row_moments", "coherence"
_VECTOR, _SQUARE = (1,), (1, 2)
_DIMS = dict.fromkeys((COLUMNS, ROWS, TOKEN_ROWS, COHERENCE, *OF_GROUPS), _VECTOR) | dict.fromkeys(
    (MOMENTS, ROW_MOMENTS, WEIGHTED), _SQUARE
)

_AXES = {COLUMNS: 1, MOMENTS: 1, WEIGHTED: 1, ROWS: 0, TOKEN_ROWS: 0, ROW_MOMENTS: 0}
_AXES |= {ROUTER_COLUMNS: 1, ROUTER_ROWS: 0}
"""Along which axis of the tensor each kind runs."""

_CLOSE = 1e-3
"""By how much the sums of columns and rows may differ: far above float32's rounding."""

_DAMAGED = "the file is damaged, so run ders calibrate --others again"


def is_other(name: str) -> bool:
    """Whether a calibration's tensor of this name tells of another tensor."""
    return name.startswith(PREFIX)


def fits(info: FileTensor) -> bool:
    """Whether such a tensor has a name, dtype and shape that one may have."""
    subject, _, kind = info.name.removeprefix(PREFIX).rpartition(".")
    square = len(set(info.shape)) == 1 and info.shape[0] > 0
    known = info.dtype is Dtype.F32 and len(info.shape) in _DIMS.get(kind, ())
    return bool(subject) and known and square


@dataclass(frozen=True)
class OtherNotes:
    """left_out: name -> why it was not measured. inputs: name -> the tensor with the same inputs,
    which has the moments."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """As the file's metadata has it."""
        return json.dumps({"left_out": dict(self.left_out), "inputs": dict(self.inputs)})

    @classmethod
    def parse(cls, file: Path, text: str | None) -> OtherNotes:
        """Raises CheckpointError if they are not such."""
        if text is None:
            return cls()
        try:
            values: Any = parse_json(text)
        except JsonFault:
            values = None
        values = values if isinstance(values, dict) else {}
        notes = [values.get(kind) for kind in ("left_out", "inputs")]
        for each in notes:
            pairs = each.items() if isinstance(each, dict) else [(None, None)]
            if not all(isinstance(word, str) for pair in pairs for word in pair):
                raise CheckpointError(
                    f"{file}: the metadata 'others' must be an object with left_out and inputs, "
                    f"objects of texts; {_DAMAGED}"
                )
        return cls(*notes)


@dataclass(frozen=True)
class OtherTensors:
    """What one file holds of others. tensors: all of the file's. tokens: the calibration's."""

    file: Path
    tensors: Mapping[str, FileTensor]
    notes: OtherNotes
    tokens: int

    @property
    def names(self) -> list[str]:
        """Of the tensors that were measured, as in the checkpoint's original layout."""
        ending = f".{COLUMNS}"
        return sorted(
            name.removeprefix(PREFIX).removesuffix(ending)
            for name in self.tensors
            if is_other(name) and name.endswith(ending)
        )

    def check_together(self) -> None:
        """Raise CheckpointError unless each has both marginals, and moments of one kind at most."""
        for subject, held in self._subjects().items():
            rows = [kind for kind in (ROWS, TOKEN_ROWS) if kind in held]
            routers = len(held.keys() & set(OF_GROUPS))
            both = {MOMENTS, ROW_MOMENTS} <= held.keys()
            if COLUMNS not in held or len(rows) != 1 or both or routers == 1:
                raise CheckpointError(
                    f"{self.file}: of {subject!r} there must be {COLUMNS}, either {ROWS} or "
                    f"{TOKEN_ROWS}, no more than one of {MOMENTS} and {ROW_MOMENTS}, and both of "
                    f"{' and '.join(OF_GROUPS)} or none; there are {', '.join(held)}; {_DAMAGED}"
                )

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError unless all have the sizes of the checkpoint's tensors. shapes: of
        all of these."""
        for subject, held in self._subjects().items():
            shape = shapes.get(subject, ())
            size = math.prod(shape[:-1]), *shape[-1:]
            if len(shape) not in (2, 3) or any(
                info.shape[0] != (size[_AXES[kind]] if kind in _AXES else 1)
                for kind, info in held.items()
            ):
                sizes = ", ".join(f"{kind} {list(info.shape)}" for kind, info in held.items())
                raise CheckpointError(
                    f"{self.file}: {subject!r} has the shape {list(shape)} in the checkpoint, "
                    f"which does not fit {sizes}; {_DAMAGED}"
                )

    def _subjects(self) -> dict[str, dict[str, FileTensor]]:
        """Name -> what is known of it, by its kind."""
        subjects: dict[str, dict[str, FileTensor]] = {}
        for name, info in self.tensors.items():
            if is_other(name):
                subject, _, kind = name.removeprefix(PREFIX).rpartition(".")
                subjects.setdefault(subject, {})[kind] = info
        return subjects

    def curvature(self, name: str) -> Curvature | None:
        """Of the tensor `[n, m]` as it lies in the original layout: columns `[m]`, rows `[n]`; None
        if it was not measured.

        Nothing costs nothing: all has met one more token, in which all was alike. Of a vocabulary,
        no row costs less than the average row: calibration meets a small part of the tokens, and
        what it did not meet it does not know. All are multiplied by the coherence, where it is more
        than 1. Raises CheckpointError if the values cannot be
        marginals.
        """
        marginals = self._cost_marginals(name)
        if marginals is None:
            return None
        columns, rows = marginals
        if f"{PREFIX}{name}.{TOKEN_ROWS}" in self.tensors:
            floor = rows.clamp(min=float(rows.mean()))
            columns, rows = columns * (floor.sum() / rows.sum().clamp(min=1e-300)), floor
        return self._with_coherence(name, columns, rows)

    def curvature_as_measured(self, name: str) -> Curvature | None:
        """As `curvature`, but rows of a vocabulary cost what they cost the text that was read: what
        errors of a head cost text like it, whose rare tokens were given their small chances there
        too. Codecs had better go by the other one, since other text may need these tokens."""
        marginals = self._cost_marginals(name)
        return None if marginals is None else self._with_coherence(name, *marginals)

    def _cost_marginals(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of columns and rows, float64; None if they were not measured."""
        columns = self.tensors.get(f"{PREFIX}{name}.{COLUMNS}")
        if columns is None:
            return None
        of_tokens = self.tensors.get(f"{PREFIX}{name}.{TOKEN_ROWS}")
        return self._marginals(columns, of_tokens or self.tensors[f"{PREFIX}{name}.{ROWS}"])

    def _with_coherence(self, name: str, columns: torch.Tensor, rows: torch.Tensor) -> Curvature:
        factor = self._coherence(name)
        return Curvature((factor * columns).float(), (factor * rows).float())

    def router_curvature(self, name: str) -> Curvature | None:
        """As `curvature`, but of how far errors move later choices of experts, as
        `Calibration.router_curvatures`; None where that was not measured. It counts for all routers
        behind the tensor: `tipping_cost` takes its noise by a layer before theirs, of attention in
        layer l by l − 1. Raises CheckpointError if the values cannot be marginals."""
        infos = [self.tensors.get(f"{PREFIX}{name}.{kind}") for kind in OF_GROUPS]
        if infos[0] is None or infos[1] is None:
            return None
        columns, rows = self._marginals(infos[0], infos[1])
        return Curvature(columns.float(), rows.float())

    def _marginals(
        self, columns_info: FileTensor, rows_info: FileTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of columns and rows, float64, with one more token in which all was alike."""
        columns, rows = (info.read().double() for info in (columns_info, rows_info))
        values = torch.cat([columns, rows])
        known = bool((torch.isfinite(values) & (values >= 0)).all())
        if not known or not torch.allclose(columns.sum(), rows.sum(), _CLOSE, 0):
            raise CheckpointError(
                f"{self.file}: {columns_info.name!r} and {rows_info.name!r} hold no marginals of "
                f"one matrix (they are finite, not negative, and have one sum); {_DAMAGED}"
            )
        count = self.tokens
        more = [(count * each + each.mean()) / (count + 1) for each in (columns, rows)]
        return more[0], more[1]

    def _coherence(self, name: str) -> float:
        """1 or more. Raises CheckpointError if it is no such number."""
        info = self.tensors.get(f"{PREFIX}{name}.{COHERENCE}")
        value = 1.0 if info is None else float(info.read())
        if not 0 <= value < math.inf:
            raise CheckpointError(
                f"{self.file}: the coherence of {name!r} must be a number from 0 on, and is "
                f"{value}; {_DAMAGED}"
            )
        return max(value, 1.0)

    def moments(self, name: str) -> tuple[torch.Tensor, int] | None:
        """E[x xᵀ] of the inputs x of products with a tensor, `[in, in]` float32, symmetric, or its
        diagonal `[in]`; and the axis of the tensor along which inputs run: 1, or 0 where it is
        `[in, out]`. None if they were not measured. Raises CheckpointError if the values cannot be
        such a matrix."""
        of_inputs = self.notes.inputs.get(name, name)
        for kind, axis in ((MOMENTS, 1), (ROW_MOMENTS, 0)):
            info = self.tensors.get(f"{PREFIX}{of_inputs}.{kind}")
            if info is not None:
                return read_moments(self.file, info), axis
        return None

    def weighted_moments(self, name: str) -> torch.Tensor | None:
        """As `moments` along the columns, each input weighted by the squared gradient after it;
        None if they were not measured."""
        info = self.tensors.get(f"{PREFIX}{self.notes.inputs.get(name, name)}.{WEIGHTED}")
        return None if info is None else read_moments(self.file, info)
