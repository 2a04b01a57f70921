"""The original of a packed checkpoint as it is written again: in its own dtype, or in another."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ders_core.errors import CheckpointError, OutputError
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.files.writer import file_bytes, file_order, json_text, tensor_bytes
from ders_core.later import torch
from ders_core.packed.assembler import Assembler
from ders_core.packed.part_reads import ReadRows
from ders_core.packed.reader import PackedCheckpoint

DTYPES: Mapping[str, Dtype | None] = {
    "auto": None,
    **{dtype.value: dtype for dtype in (Dtype.F32, Dtype.BF16, Dtype.F16)},
}
"""The words for a dtype of what is written; None: each tensor in that of the original."""

HALF = (Dtype.BF16, Dtype.F16)

DTYPE_KEYS = ("dtype", "torch_dtype")
"""Where a config.json says a model's dtype."""

PIECE = 1 << 20
"""Values that are converted at once."""


@dataclass(frozen=True)
class OriginalForm:
    """The files of `source`'s original. dtype: of its weights; None: as they were.

    With a dtype, tensors of 16 bits are written in it, and all that have the dtype of most of the
    model; what is wider than the model (float32 beside bfloat16) and what is no float stays.
    """

    source: PackedCheckpoint
    dtype: Dtype | None = None

    @classmethod
    def of(cls, source: PackedCheckpoint, word: str) -> OriginalForm:
        """By a word of `DTYPES`. Raises OutputError for another one, CheckpointError if the
        original stores codes, which have no other dtype."""
        if word not in DTYPES:
            raise OutputError(f"unknown dtype {word!r}; choose one of {', '.join(DTYPES)}")
        dtype, scheme = DTYPES[word], source.original.scheme
        if dtype is not None and scheme is not None:
            raise CheckpointError(
                f"the original of {source.path} stores {scheme.name} codes, which are not written "
                f"in {word}; leave the dtype out, or load it by transformers with dtype={word}"
            )
        return cls(source, dtype)

    @property
    def assembler(self) -> Assembler:
        """What makes the pieces of coded tensors."""
        return self.source.original.assembler.in_dtype(self.dtype)

    @cached_property
    def files(self) -> dict[str, dict[str, TensorSpec]]:
        """The weight files, and the tensors in each, in order."""
        files = self.source.manifest.source.files.items()
        named = {file: {name: self.spec(name) for name in names} for file, names in files}
        if self.dtype is None:
            return named
        return {file: file_order(specs) for file, specs in named.items()}

    @property
    def weight_bytes(self) -> int:
        """Of all weight files."""
        return sum(map(file_bytes, self.files.values()))

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of a tensor as it is written."""
        spec = self.source.original.spec(name)
        if self.dtype is None or spec.dtype not in (*HALF, self._usual):
            return spec
        return TensorSpec(self.dtype, spec.shape)

    @cached_property
    def _usual(self) -> Dtype | None:
        """The dtype of most of the model's floats."""
        values: Counter[Dtype] = Counter()
        for name in self.source.original.names():
            spec = self.source.original.spec(name)
            if spec.dtype.is_float:
                values[spec.dtype] += spec.elements
        return values.most_common(1)[0][0] if values else None

    def is_copied(self, name: str) -> bool:
        """Whether a tensor that is not coded is written as it is."""
        return self.spec(name).dtype is self.source.original.readers[name].dtype

    def carried(self, name: str, read: ReadRows) -> Iterator[bytes | memoryview]:
        """The bytes of a tensor that is not coded. read: reads those that change their dtype.
        Raises OutputError for a value that the dtype does not reach."""
        tensor, wanted = self.source.store.tensors[name], self.spec(name).dtype
        if self.is_copied(name):
            yield from tensor.raw()
            return
        count = tensor.spec.elements
        flat = tensor._replace(spec=TensorSpec(tensor.dtype, (count,)))
        for first in range(0, count, PIECE):
            values = read(flat, slice(first, first + PIECE))
            written = values.to(wanted.torch)
            self.check(name, written, values)
            yield from tensor_bytes(written)

    def check(self, name: str, written: torch.Tensor, before: torch.Tensor | None = None) -> None:
        """Raise OutputError if a value is beyond the dtype. before: the values in another dtype;
        None: all are finite."""
        if self.dtype is None:
            return
        finite = torch.isfinite(written)
        if before is not None:
            finite |= ~torch.isfinite(before)
        if not bool(finite.all()):
            raise OutputError(
                f"{name!r} holds values beyond {self.dtype.value}; choose float32 or bfloat16"
            )

    @property
    def config_text(self) -> str:
        """Of config.json."""
        if self.dtype is None:
            return self.source.config_text
        config = copy.deepcopy(self.source.config)
        if not _set_dtype(config, self.dtype.value):
            config["dtype"] = self.dtype.value
        return json_text(config)


def _set_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Change every mention of the weights' dtype; whether there is one."""
    known, changed = {each.value for each in Dtype if each.is_float}, False
    for key, value in config.items():
        if key in DTYPE_KEYS and value in known:
            config[key], changed = dtype, True
        elif isinstance(value, dict):
            changed |= _set_dtype(value, dtype)
    return changed
