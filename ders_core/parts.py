"""The tensors that one packed group takes, known before they exist."""

from __future__ import annotations

import torch

from ders_core.checkpoint import TensorSpec
from ders_core.codecs import DeltaCodec, Keep


def packed_parts(
    codec: DeltaCodec,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    bases: int | None = None,
    biases: bool = False,
) -> dict[str, TensorSpec]:
    """Part -> dtype and shape of a group of `shape` (experts, out, in) stored as `dtype`.

    Each part of the codec is stacked over the experts. bases: how many there are, None for one that
    is not stacked; the codec `keep` has none. Biases stay as they are, `[experts, out]`.
    """
    experts, out, width = shape
    parts = {
        part: TensorSpec(spec.dtype, (experts, *spec.shape))
        for part, spec in codec.parts((out, width), dtype).items()
    }
    if not isinstance(codec, Keep):
        base = (out, width) if bases is None else (bases, out, width)
        parts = {"base": TensorSpec(dtype, base), **parts}
    if biases:
        parts["bias"] = TensorSpec(dtype, (experts, out))
    return parts
