"""The calibration file: second moments of the experts' inputs, how often each is chosen, and if
gradients were measured, how much an error in each weight costs.

One safetensors file. Its metadata names the checkpoint that was measured. For each MoE layer it
holds `<layer>.in.moments` (of the block's input, which gate and up share), `<layer>.mid.moments`
(of the activation, which down takes), both float32, and `<layer>.routed` int64. With
gradients it holds the tensors of `ders_core.pipeline.sensitivity`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ders_core.checkpoint import PROJECTIONS, Checkpoint, ExpertGroup
from ders_core.codecs.curvature import Curvature
from ders_core.compute.progress import Advance, uncounted
from ders_core.errors import CheckpointError
from ders_core.files.address import is_remote
from ders_core.files.dtype import Dtype
from ders_core.files.header import read_header
from ders_core.files.inputs import hold_files
from ders_core.files.missing import local_path
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import FileTensor
from ders_core.files.writer import file_order, tensor_bytes, write_file
from ders_core.later import torch
from ders_core.pipeline import sensitivity, tipping
from ders_core.pipeline.text_names import parse_text_names, text_names_field

FORMAT = "ders-calibration"
VERSION = "1"
IN, MID = "in", "mid"
SIDES = {projection: MID if projection == "down" else IN for projection in PROJECTIONS}
"""On which side of the activation a projection's input is."""

_NAME = re.compile(rf"(0|[1-9]\d{{0,8}})\.(in\.moments|mid\.moments|routed|{sensitivity.NAMES})")


@dataclass(frozen=True)
class Calibration:
    """A calibration file, opened by its header; tensors are read and checked when they are used.

    checkpoint: `Checkpoint.identity` of the model that was measured. tokens: how many it read.
    content, version: `Store.content` and `Store.version` of its files. dtype: in which the model
    was computed. The three are "" in files of before there were these. texts: the names of the
    texts that it read, without their directories, which may be cut and may not be all.
    """

    path: Path
    checkpoint: str
    tokens: int
    tensors: Mapping[str, FileTensor]
    content: str = ""
    version: str = ""
    dtype: str = ""
    texts: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> Calibration:
        """Raises CheckpointError if it is missing, or is not a calibration of this version."""
        file = local_path(path)
        if not file.is_file():
            raise CheckpointError(f"{file} is not a file; make one with ders calibrate")
        try:
            hold_files([file])
            tensors, metadata = read_header(file)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
        metadata = metadata or {}
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{file} is not a calibration file; make one with ders calibrate")
        version = metadata.get("version", "")
        if version != VERSION:
            raise CheckpointError(
                f"{file} has version {version[:20]!r} of the calibration format, and only "
                f"{VERSION!r} is known here; run ders calibrate again, or update DeRS Studio"
            )
        checkpoint, tokens = metadata.get("checkpoint", ""), metadata.get("tokens", "")
        if not re.fullmatch(r"[0-9a-f]{64}", checkpoint) or not re.fullmatch(
            r"[1-9][0-9]{0,17}", tokens
        ):
            raise CheckpointError(
                f"{file} does not say what was measured; run ders calibrate again"
            )
        for name, info in tensors.items():
            _check_form(file, name, info)
        sensitivity.check_together(file, tensors)
        return cls(
            file,
            checkpoint,
            int(tokens),
            tensors,
            content=metadata.get("content", ""),
            version=metadata.get("files", ""),
            dtype=metadata.get("dtype", ""),
            texts=parse_text_names(metadata.get("texts")),
        )

    @property
    def layers(self) -> list[int]:
        """The layers that were measured."""
        return sorted(
            int(name.partition(".")[0]) for name in self.tensors if name.endswith("routed")
        )

    def moments(self, layer: int, projection: str) -> torch.Tensor | None:
        """E[x xᵀ] of the projection's inputs x; None if they were not measured.

        `[in, in]` float32, symmetric, or its diagonal `[in]` where the layer is too wide. The mean
        is over all pairs of a token and an expert that it was routed to.
        Raises CheckpointError if the values cannot be such a matrix.
        """
        info = self.tensors.get(f"{layer}.{SIDES[projection]}.moments")
        if info is None:
            return None
        moments = info.read()
        square = moments.dim() == 2
        diagonal = moments.diagonal() if square else moments
        symmetric = not square or torch.equal(moments, moments.T)
        finite = bool(torch.isfinite(moments).all())
        if not finite or not symmetric or bool((diagonal < 0).any()):
            raise CheckpointError(
                f"{self.path}: {info.name!r} holds no second moments (they are finite, symmetric, "
                "and not negative); the file is damaged, so run ders calibrate again"
            )
        return moments

    @property
    def has_gradients(self) -> bool:
        """Whether it knows how much errors of weights cost."""
        return any(sensitivity.is_sensitivity(name) for name in self.tensors)

    def curvatures(self, group: ExpertGroup) -> tuple[Curvature, ...] | None:
        """How much an error in each weight costs: one for each expert of the group; None if
        gradients were not measured, or not the always-on expert's although it is in the group.

        Each routed expert's marginals are blended with the group's, as if it had seen
        `sensitivity.BORROWED` more tokens of the group's average. Raises CheckpointError if the
        values cannot be marginals.
        """
        if f"{group.layer}.routed" not in self.tensors:
            return None
        routed = self.routed(group.layer)
        return sensitivity.read_curvatures(self.path, self.tensors, group, routed)

    @property
    def has_routers(self) -> bool:
        """Whether it knows what tipped choices of experts cost."""
        return any(name.endswith(f".{tipping.SWAPS}") for name in self.tensors)

    def router_curvatures(self, group: ExpertGroup) -> tuple[Curvature, ...] | None:
        """As `curvatures`, but of how far errors move later choices, see `tipping`; None where that
        was not measured."""
        if not self.has_routers:
            return None
        return sensitivity.read_curvatures(
            self.path,
            self.tensors,
            group,
            self.routed(group.layer),
            (tipping.ROUTER_COLUMNS, tipping.ROUTER_ROWS),
        )

    def tipping(self) -> tuple[tipping.Tipping, ...] | None:
        """The choices of each layer; None if they were not measured. Raises CheckpointError if the
        values cannot be such."""
        if not self.has_routers:
            return None
        return sensitivity.read_tipping(self.path, self.tensors)

    def shrinkage(self, layer: int, projection: str) -> torch.Tensor | None:
        """∂ log p / ∂a of each window, for each routed expert's delta from the mean multiplied by
        a: `[windows, experts]` float32; None if gradients were not measured.

        For J with one column for each thing that is shrunken by (1 − a), summed over the experts
        that it shrinks: ½ (1−a)ᵀ JᵀJ (1−a) / `tokens` nats a token. Raises CheckpointError if
        values are not finite.
        """
        info = self.tensors.get(f"{layer}.{projection}.{sensitivity.SHRINKAGE}")
        return None if info is None else sensitivity.read_shrinkage(info, self.path)

    def routed(self, layer: int) -> torch.Tensor:
        """int64 `[experts]`: how many tokens chose each expert.

        Raises CheckpointError if the layer was not measured, or the counts cannot be.
        """
        info = self.tensors.get(f"{layer}.routed")
        if info is None:
            raise CheckpointError(
                f"{self.path} knows nothing of layer {layer}; it holds the layers "
                f"{', '.join(map(str, self.layers))}"
            )
        counts = info.read()
        wrong = bool((counts < 0).any()) or bool((counts > self.tokens).any())
        if wrong or not bool(counts.any()):
            raise CheckpointError(
                f"{self.path}: {info.name!r} holds no counts of {self.tokens} tokens; the file is "
                "damaged, so run ders calibrate again"
            )
        return counts

    def tokens_per_expert(self, group: ExpertGroup) -> list[int]:
        """How many tokens each expert of a group saw, `[K]`; a shared one sees all.
        Raises CheckpointError as `routed` does."""
        routed = [int(count) for count in self.routed(group.layer)]
        return routed + [self.tokens] * (group.shape[0] - len(routed))

    def use(self, layer: int) -> torch.Tensor:
        """float64 `[experts]`: each expert's share of the layer's choices; sums to 1."""
        routed = self.routed(layer).double()
        return routed / routed.sum()

    def check(self, checkpoint: Checkpoint, step: Advance = uncounted) -> None:
        """Raise CheckpointError unless this was measured on `checkpoint`, and its sizes fit.

        If a file of the checkpoint was written, copied or moved since, all of them are read and
        hashed, once for each version of a file. Of a checkpoint at an address, and with a
        calibration of before there were hashes, the sample of `Checkpoint.identity` decides alone.
        step: called with the bytes of each tensor read then.
        """
        if checkpoint.identity != self.checkpoint or not self._has_content_of(checkpoint, step):
            raise CheckpointError(
                f"{self.path} was measured on another checkpoint than {checkpoint.path}, or on "
                "other weights of it; run ders calibrate on this one"
            )
        for group in checkpoint.groups():
            experts, _, width = group.shape
            names = {f"{group.layer}.{SIDES[group.projection]}.moments": width}
            names[f"{group.layer}.routed"] = experts
            for name, size in names.items():
                info = self.tensors.get(name)
                if info is not None and info.shape[0] != size:
                    raise CheckpointError(
                        f"{self.path}: {name!r} is of size {info.shape[0]}, the checkpoint's "
                        f"layer needs {size}; the file is damaged, so run ders calibrate again"
                    )
            sensitivity.check_shapes(self.path, self.tensors, group)

    def _has_content_of(self, checkpoint: Checkpoint, step: Advance) -> bool:
        store = checkpoint.store
        is_known = bool(self.content) and not is_remote(checkpoint.path)
        if not is_known or store.version == self.version:
            return True
        return store.content(step) == self.content


def write_calibration(
    path: Path,
    checkpoint: str,
    tokens: int,
    tensors: Mapping[str, torch.Tensor],
    content: str = "",
    version: str = "",
    dtype: str = "",
    texts: Sequence[str] = (),
) -> None:
    """Write a calibration file. tensors: by their names in the file, on the CPU. The other
    parameters are as of `Calibration`. Raises OSError."""
    specs = file_order({name: TensorSpec.like(tensor) for name, tensor in tensors.items()})
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "checkpoint": checkpoint,
        "tokens": str(tokens),
        **({"content": content, "files": version} if content else {}),
        **({"dtype": dtype} if dtype else {}),
        **({"texts": text_names_field(texts)} if texts else {}),
    }
    write_file(path, specs, lambda name: tensor_bytes(tensors[name]), metadata)


def _check_form(file: Path, name: str, info: FileTensor) -> None:
    """Raise CheckpointError unless a calibration file may hold such a tensor."""
    if sensitivity.is_sensitivity(name):
        fits = sensitivity.fits(info)
    else:
        counts = name.endswith(".routed")
        dtype, dims = (Dtype.I64, (1,)) if counts else (Dtype.F32, (1, 2))
        square = len(set(info.shape)) == 1 and info.shape[0] > 0
        fits = info.dtype is dtype and len(info.shape) in dims and square
    if not _NAME.fullmatch(name) or not fits:
        raise CheckpointError(
            f"{file}: tensor {name[:80]!r} does not belong in a calibration; the file is damaged, "
            "so run ders calibrate again"
        )
