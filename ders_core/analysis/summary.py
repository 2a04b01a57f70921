"""The first look at a checkpoint, as `ders info` and the Checkpoint page show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ders_core.analysis import Verdict, sampled_verdict
from ders_core.checkpoint import Checkpoint
from ders_core.packed.open import open_checkpoint
from ders_core.recipe.numbers import spell_numbers
from ders_core.units import bytes_text


@dataclass(frozen=True)
class Summary:
    """bytes_total: of the weight files; for packed ones those of the original. packed_bytes: of
    packed files on disk. bytes_in_memory: of a packed model's weights that are synthesized, and of
    those that stay packed (see `ders_core.runtime.modes`). bytes_experts: of the routed experts'
    tensors. sure: how certain the layout is, from 0 to 1; because: why, in words. stacks: path of
    each stack of layers -> its layers. shared: the experts besides the routed ones, in words.
    stored: the scheme of weights that are quantized already. left_aside: files beside the weights
    that are no part of the model and do not travel with it; linked_out: links to files elsewhere,
    which do not either. upcycled: None if no weights were read."""

    identity: str
    family: str
    layout: str
    sure: float
    because: str
    stacks: dict[str, str]
    stored: str | None
    layers: int
    moe_layers: int
    experts: int
    top_k: int | None
    shared: str | None
    dtype: str
    bytes_total: int
    packed_bytes: int | None
    bytes_in_memory: tuple[int, int] | None
    bytes_experts: int
    expert_share: float
    left_aside: tuple[str, ...]
    linked_out: tuple[str, ...]
    upcycled: Verdict | None

    @property
    def routing(self) -> str:
        """`, top-2`; empty where the config does not say how many experts a token gets."""
        return f", top-{self.top_k}" if self.top_k else ""

    @property
    def packed(self) -> str | None:
        """The two sizes of a packed checkpoint, in words; None for another."""
        if self.packed_bytes is None:
            return None
        return f"{bytes_text(self.packed_bytes)} on disk, stands for {bytes_text(self.bytes_total)}"

    @property
    def in_memory(self) -> str | None:
        """What a packed model's weights take when it is loaded, in words; None for another."""
        if self.bytes_in_memory is None:
            return None
        whole, held = map(bytes_text, self.bytes_in_memory)
        return f"{held} with experts that stay packed, {whole} with whole ones"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(checkpoint: str | Path | Checkpoint, verdict: Verdict | None = None) -> Summary:
    """Headers, and a few rows of a few experts for the verdict.

    verdict: that of an analysis; no rows are read then."""
    source = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    return _summary(source, verdict or sampled_verdict(source))


def summarize_quickly(checkpoint: str | Path) -> Summary:
    """As `summarize`, but without a verdict for a packed checkpoint, whose experts would have to
    be decoded: that takes seconds, most of them to import torch."""
    source = open_checkpoint(checkpoint)
    return _summary(source, None if source.packed_bytes is not None else sampled_verdict(source))


def _summary(source: Checkpoint, verdict: Verdict | None) -> Summary:
    beside = source.beside
    return Summary(
        identity=source.identity,
        family=source.family,
        layout=source.layout.family,
        sure=source.recognition.sure,
        because=source.recognition.because,
        stacks={name: spell_numbers(layers) for name, layers in source.stacks.items()},
        stored=source.scheme.name if source.scheme else None,
        layers=source.num_layers,
        moe_layers=len(source.moe_layers),
        experts=source.num_experts,
        top_k=source.top_k,
        shared=_shared(source),
        dtype=source.dtype.name,
        bytes_total=source.bytes_total,
        packed_bytes=source.packed_bytes,
        bytes_in_memory=_bytes_in_memory(source),
        bytes_experts=source.bytes_experts,
        expert_share=source.expert_share,
        left_aside=beside.left_aside,
        linked_out=beside.linked_out,
        upcycled=verdict,
    )


def _bytes_in_memory(source: Checkpoint) -> tuple[int, int] | None:
    if source.packed_bytes is None:
        return None  # at once: an original needs no codec, and importing them all takes a while
    from ders_core.runtime.resident import resident_bytes

    return resident_bytes(source)


def _shared(source: Checkpoint) -> str | None:
    """The shared experts' bytes in all layers, and whether the routed experts' base fits them."""
    tensors = {
        info.name: info for layer in source.moe_layers for info in source.shared_expert(layer)
    }
    if not tensors:
        return None
    alike = any(group.with_shared() is not group for group in source.groups())
    size = bytes_text(sum(info.nbytes for info in tensors.values()))
    return size + (", same shape as the experts" if alike else ", another shape than the experts")
