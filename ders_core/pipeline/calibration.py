"""The calibration file: second moments of the experts' inputs, how often each is chosen, and if
gradients were measured, how much an error in each weight costs.

One safetensors file. Its metadata names the checkpoint that was measured. For each MoE layer it
holds `<layer>.in.moments` (of the block's input, which gate and up share), `<layer>.mid.moments`
(of the activation, which down takes), both float32, and `<layer>.routed` int64. With
gradients it holds the tensors of `ders_core.pipeline.sensitivity`, of `tipping` and, since version
2, of `bases`; and if other tensors were measured, those of `others`. Since version 3
`<layer>.in.weighted` and `<layer>.mid.weighted` come with gradients: the moments with each input
weighted by ‖g‖², where g is the gradient after the weight that it enters; of gate and up together.
`<layer>.in.each` and `<layer>.mid.each` are the same of each routed expert: `[experts, in, in]`, or
diagonals `[experts, in]`; zeros of one that no token chose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from ders_core.pipeline import bases, sensitivity, tipping
from ders_core.pipeline.moments import EACH, WEIGHTED, check_shapes, read_moments
from ders_core.pipeline.others import OtherNotes, OtherTensors, is_other
from ders_core.pipeline.others import fits as fits_other
from ders_core.pipeline.seen_text import SeenText
from ders_core.pipeline.text_names import parse_text_names, text_names_field

FORMAT = "ders-calibration"
VERSIONS = ("1", "2", "3")
"""A file of version 1 knows nothing of bases and other tensors, one of version 2 nothing of
weighted moments; otherwise they are alike."""
IN, MID = "in", "mid"
SIDES = {projection: MID if projection == "down" else IN for projection in PROJECTIONS}
"""On which side of the activation a projection's input is."""

_NAME = re.compile(
    rf"(0|[1-9]\d{{0,8}})\.((in|mid)\.(moments|{WEIGHTED}|{EACH})|routed|{sensitivity.NAMES})"
)


@dataclass(frozen=True)
class Calibration:
    """A calibration file, opened by its header; tensors are read and checked when they are used.

    checkpoint: `Checkpoint.identity` of the model that was measured. tokens: how many it read.
    content, version: `Store.content` and `Store.version` of its files. dtype: in which the model
    was computed. The three are "" in files of before there were these. texts: the names of the
    texts that it read, without their directories, which may be cut and may not be all. seen: their
    tokens as digests; unknown in files of before there were these. others: what it knows of tensors
    that hold no routed expert.
    """

    path: Path
    checkpoint: str
    tokens: int
    tensors: Mapping[str, FileTensor]
    content: str = ""
    version: str = ""
    dtype: str = ""
    texts: tuple[str, ...] = ()
    seen: SeenText = field(default_factory=SeenText)
    notes: OtherNotes = field(default_factory=OtherNotes)

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
        if version not in VERSIONS:
            known = " and ".join(map(repr, VERSIONS))
            raise CheckpointError(
                f"{file} has version {version[:20]!r} of the calibration format, and only {known} "
                "are known here; run ders calibrate again, or update DeRS Studio"
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
        calibration = cls(
            file,
            checkpoint,
            int(tokens),
            tensors,
            content=metadata.get("content", ""),
            version=metadata.get("files", ""),
            dtype=metadata.get("dtype", ""),
            texts=parse_text_names(metadata.get("texts")),
            seen=SeenText.parse(metadata.get("seen")),
            notes=OtherNotes.parse(file, metadata.get("others")),
        )
        calibration.others.check_together()
        return calibration

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
        return read_moments(self.path, info)

    def is_full(self, layer: int, projection: str) -> bool:
        """Whether it knows the moments of all pairs of inputs."""
        info = self.tensors.get(f"{layer}.{SIDES[projection]}.moments")
        return info is not None and len(info.shape) == 2

    def weighted_moments(self, layer: int, projection: str) -> torch.Tensor | None:
        """As `moments`, but each input weighted by the squared gradient after it: the mean over all
        routed experts of E[‖g‖² x xᵀ]; None if they were not measured."""
        info = self.tensors.get(f"{layer}.{SIDES[projection]}.{WEIGHTED}")
        return None if info is None else read_moments(self.path, info)

    def expert_moments(self, layer: int, projection: str) -> torch.Tensor | None:
        """As `weighted_moments`, of each routed expert: `[experts, in, in]`, or diagonals
        `[experts, in]`; None if they were not measured. Raises CheckpointError if the values cannot
        be such."""
        info = self.tensors.get(f"{layer}.{SIDES[projection]}.{EACH}")
        return None if info is None else read_moments(self.path, info)

    @property
    def has_weighted(self) -> bool:
        """Whether it knows moments of inputs weighted by gradients."""
        return any(name.endswith(f".{WEIGHTED}") for name in self.tensors)

    @property
    def has_each(self) -> bool:
        """Whether it knows them of each expert."""
        return any(name.endswith(f".{EACH}") for name in self.tensors)

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
    def has_bases(self) -> bool:
        """Whether it knows what errors cost that all experts of a layer share, of every layer."""
        ending = f".{sensitivity.ROWS}"
        of_experts = [
            name.removesuffix(ending)
            for name in self.tensors
            if name.endswith(ending) and not is_other(name)
        ]
        return bool(of_experts) and all(f"{e}.{bases.PAIRS}" in self.tensors for e in of_experts)

    def base_curvature(
        self, group: ExpertGroup, members: Sequence[int] | None = None
    ) -> Curvature | None:
        """How much an error in the base costs that some experts of a group share: columns `[in]`,
        rows `[out]`. members: their numbers in the group; None for all.

        It is that of the sum of the experts' gradients for each token. Where that was not measured
        it is the sum of the experts' curvatures, which is too low where a token's experts agree:
        half, on a model just upcycled that gives each token two experts. None if gradients were not
        measured. Raises CheckpointError if the values cannot be such.
        """
        curvatures = self.curvatures(group)
        if curvatures is None:
            return None
        members = list(range(len(curvatures))) if members is None else sorted(set(members))
        measured = bases.read_base_curvature(
            self.path, self.tensors, group, curvatures, members, self.tokens
        )
        return measured or Curvature.sum([curvatures[member] for member in members])

    def base_router_curvature(
        self, group: ExpertGroup, members: Sequence[int] | None = None
    ) -> Curvature | None:
        """As `base_curvature`, but of how far errors move later choices; None where that was not
        measured. It is the sum of the experts' `router_curvatures`, as many times larger as the
        base's curvature is than the sum of theirs: an estimate."""
        routers, curvatures = self.router_curvatures(group), self.curvatures(group)
        base = self.base_curvature(group, members)
        if routers is None or curvatures is None or base is None:
            return None
        some = range(len(routers)) if members is None else sorted(set(members))
        summed = Curvature.sum([routers[member] for member in some])
        alone = sum(curvatures[member].total for member in some)
        ratio = base.total / alone if alone else 1.0
        return Curvature(ratio * summed.columns, ratio * summed.rows)

    @property
    def others(self) -> OtherTensors:
        """What it knows of tensors that hold no routed expert, by their names."""
        return OtherTensors(self.path, self.tensors, self.notes, self.tokens)

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

    def inputs(self, layer: int) -> int:
        """How many different inputs a layer's moments know: a token that several experts get is
        one. Raises CheckpointError as `routed` does."""
        return min(self.tokens, int(self.routed(layer).sum()))

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
            counts = self.tensors.get(f"{group.layer}.routed")
            if counts is not None and counts.shape[0] != experts:
                raise CheckpointError(
                    f"{self.path}: {counts.name!r} is of size {counts.shape[0]}, the checkpoint's "
                    f"layer needs {experts}; the file is damaged, so run ders calibrate again"
                )
            side = f"{group.layer}.{SIDES[group.projection]}"
            check_shapes(self.path, self.tensors, side, experts, width)
            sensitivity.check_shapes(self.path, self.tensors, group)
        self.others.check_shapes({name: each.shape for name, each in checkpoint.tensors.items()})

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
    others: OtherNotes | None = None,
    seen: SeenText | None = None,
) -> None:
    """Write a calibration file. tensors: by their names in the file, on the CPU. The other
    parameters are as of `Calibration`; others: None if they were not measured. Raises OSError."""
    kinds = {name.rpartition(".")[2] for name in tensors}
    is_second = others is not None or not kinds.isdisjoint(bases.OF_BASES)
    specs = file_order({name: TensorSpec.like(tensor) for name, tensor in tensors.items()})
    metadata = {
        "format": FORMAT,
        "version": VERSIONS[2 if WEIGHTED in kinds else is_second],
        "checkpoint": checkpoint,
        "tokens": str(tokens),
        **({"content": content, "files": version} if content else {}),
        **({"dtype": dtype} if dtype else {}),
        **({"texts": text_names_field(texts)} if texts else {}),
        **({"seen": seen.text()} if seen else {}),
        **({"others": others.text()} if others else {}),
    }
    write_file(path, specs, lambda name: tensor_bytes(tensors[name]), metadata)


def _check_form(file: Path, name: str, info: FileTensor) -> None:
    """Raise CheckpointError unless a calibration file may hold such a tensor."""
    named = bool(_NAME.fullmatch(name))
    if is_other(name):
        named = fits = fits_other(info)
    elif sensitivity.is_sensitivity(name):
        fits = sensitivity.fits(info)
    else:
        counts, each = name.endswith(".routed"), name.endswith(f".{EACH}")
        dtype, dims = (Dtype.I64, (1,)) if counts else (Dtype.F32, (2, 3) if each else (1, 2))
        square = len(set(info.shape[each:])) == 1 and min(info.shape) > 0
        fits = info.dtype is dtype and len(info.shape) in dims and square
    if not named or not fits:
        raise CheckpointError(
            f"{file}: tensor {name[:80]!r} does not belong in a calibration; the file is damaged, "
            "so run ders calibrate again"
        )
