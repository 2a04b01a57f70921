"""The manifest of a packed checkpoint: all that is needed besides its tensors to synthesize it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ders_core.checkpoint.axes import EXPERT, IN, MATRIX, OUT, PART, Axes
from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.codecs.group import GroupCodec
from ders_core.errors import CheckpointError, sentence_of
from ders_core.files.address import is_file
from ders_core.files.json_object import read_json
from ders_core.files.links import check_within
from ders_core.files.untrusted_json import EVERY_KEY
from ders_core.packed.names import MANIFEST, QUANT_METHOD
from ders_core.recipe import Recipe

ROLLBACK = "ders_rollback"
"""The folder of a rollback in a patched checkpoint."""
FORMAT_VERSION = 4
READABLE = (1, 2, 3, 4)
BASE_MODEL = "base_model"
"""The entry of `quantization_config` that holds the original's name on the hub."""


class PackedSource(BaseModel):
    """Where one expert's weight or bias was stored: a tensor, its axes, and which part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    axes: str = str(MATRIX)
    """See `ders_core.checkpoint.axes`."""
    experts: int = Field(default=1, ge=1, lt=1 << 32)
    """How many experts the tensor holds; `expert` is which of them this is."""
    expert: int = Field(default=0, ge=0)
    parts: int = Field(default=1, ge=1, le=3)
    """How many projections the tensor holds; `part` is which of them this is."""
    part: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        """A name alone is a tensor that is one expert's matrix."""
        return {"tensor": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check(self) -> PackedSource:
        Axes.parse(self.axes)
        if self.expert >= self.experts or self.part >= self.parts:
            raise ValueError(
                f"{self.tensor!r} has {self.experts} experts and {self.parts} parts, so it has no "
                f"expert {self.expert}, part {self.part}"
            )
        return self

    @model_serializer(mode="wrap")
    def _shorten(self, handler: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        changed = {
            key: value
            for key, value in fields.items()
            if value != type(self).model_fields[key].default
        }
        return self.tensor if list(changed) == ["tensor"] else changed

    @classmethod
    def of(cls, matrix: Matrix) -> PackedSource:
        """The place of a matrix of the source checkpoint."""
        slot = matrix.slot
        return cls(
            tensor=matrix.info.name,
            axes=str(slot.axes),
            experts=slot.sizes.get(EXPERT, 1),
            expert=slot.expert,
            parts=slot.sizes.get(PART, 1),
            part=slot.part,
        )

    def slot(self, shape: tuple[int, int]) -> Slot:
        """The same place again, for a matrix `[out, in]`, or a bias `[out, 1]`."""
        sizes = {EXPERT: self.experts, PART: self.parts, OUT: shape[0], IN: shape[1]}
        axes = Axes.parse(self.axes)
        present = {axis: size for axis, size in sizes.items() if axis in axes.order}
        return Slot(axes, present, self.expert, self.part)


class PackedGroup(BaseModel):
    """One packed group: where its parts are, how to read them, and where they came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    projection: str
    prefix: str
    """The parts are the tensors `<prefix>.<part>`; the base is `<prefix>.base`."""
    codec: dict[str, Any] | tuple[dict[str, Any], ...]
    """With the codec `keep` there is no base, and `<prefix>.weight` holds the weights. Several
    codecs have the parts `<prefix>.<number>.<part>`."""
    uses: tuple[int, ...] | None = None
    """With several codecs, the number of each expert's codec."""
    lengths: dict[str, tuple[int, ...]] = {}
    """Parts whose length depends on the data: the length for each expert that has the part."""
    shape: tuple[int, int, int]
    """(experts, out, in)"""
    dtype: str
    experts: tuple[PackedSource, ...]
    """Where each expert's weight was stored."""
    biases: tuple[PackedSource, ...] = ()
    """Where each expert's bias was stored; `<prefix>.bias` `[experts, out]` holds the values."""
    stored: str | None = None
    """The scheme of codes in which the source holds the weights; its scales are carried over."""
    bases: tuple[int, ...] | None = None
    """With several bases, `<prefix>.base` is `[bases, out, in]`; this is the number of each
    expert's base."""

    def group_codec(self) -> GroupCodec:
        """The experts' codecs. Raises CodecError if the manifest names an unknown one."""
        return GroupCodec.load(self.codec, self.uses, self.shape[0])


class Encoded(BaseModel):
    """The weights that a packed group was encoded from, and how far it is from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    """Of the source's weights: see `ders_core.checkpoint.digest.WeightsDigest`."""
    rel_error_delta: float
    """‖Ŵ−W‖/‖Δ‖ over all experts, rounded to six digits."""
    rel_error_weight: float
    """‖Ŵ−W‖/‖W‖, rounded likewise."""

    @classmethod
    def of(cls, sha256: str, rel_error_delta: float, rel_error_weight: float) -> Encoded:
        """Errors as they are measured: what is rounded does not depend on the machine's sums."""
        return cls(
            sha256=sha256,
            rel_error_delta=float(f"{rel_error_delta:.6g}"),
            rel_error_weight=float(f"{rel_error_weight:.6g}"),
        )


class Source(BaseModel):
    """The checkpoint that was packed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    bytes_total: int = Field(gt=0)
    files: dict[str, tuple[str, ...]]
    """File name -> tensor names in their order on disk."""
    metadata: dict[str, dict[str, str] | None]
    """File name -> the metadata of its header; None where the header says null."""
    index: dict[str, Any] = {}
    """The metadata of the index, where there were several shards."""
    config: str | None = None
    """The text of config.json."""


class Manifest(BaseModel):
    """What `ders_manifest.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    layout: str
    source: Source
    recipe: dict[str, Any]
    groups: tuple[PackedGroup, ...]
    checksums: dict[str, str]
    """Tensor name -> hex SHA-256 of its bytes."""
    encoded: dict[str, Encoded] = {}
    """Prefix of a group -> what it was encoded from. Empty in versions 1 and 2, and for a source
    that was on no disk."""

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises CheckpointError if it is missing, malformed or of an unknown version."""
        if not is_file(directory / MANIFEST) and is_file(directory / "config.json"):
            raise CheckpointError(
                f"{directory} is not packed: it has no {MANIFEST}; give what `ders compress` or "
                "`ders upcycle` wrote"
            )
        data = read_json(directory / MANIFEST, once=EVERY_KEY)
        version = data.get("format_version")
        if version not in READABLE:
            check_within(directory / MANIFEST, directory)
            raise CheckpointError(
                f"{directory} was packed in format version {repr(version)[:20]}; this program "
                f"reads versions {READABLE[0]} to {READABLE[-1]}, so install the version of "
                "ders-studio that wrote it"
            )
        try:
            manifest = cls.model_validate(_upgraded(data) if version == 1 else data)
        except ValidationError as error:
            raise CheckpointError(f"{directory / MANIFEST}: {sentence_of(error)}") from error
        try:
            Recipe.model_validate(manifest.recipe)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise CheckpointError(
                f"{directory / MANIFEST}: the recipe cannot be read ({problem}); install the "
                "package that it names a base or a codec of, or copy the directory again"
            ) from error
        for group in manifest.groups:
            count = group.shape[0]
            if (
                group.projection not in PROJECTIONS
                or min(group.shape) < 1
                or len(group.experts) != count
                or len(group.biases) not in (0, count)
                or (group.bases is not None and not _numbers_bases(group.bases, count))
            ):
                raise CheckpointError(
                    f"{directory / MANIFEST}: layer {group.layer}, {group.projection} contradicts "
                    "itself; copy the directory again"
                )
        for name in manifest.source.files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{directory / MANIFEST} names the file {name!r}; refused")
        return manifest


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A manifest of version 1 in terms of version 2: all positions had forms of fixed length."""
    for group in data.get("groups") or ():
        codec = group.get("codec") if isinstance(group, dict) else None
        if isinstance(codec, dict) and codec.get("method") == "magnitude":
            codec["positions"] = "fixed"
    return data


def _numbers_bases(bases: tuple[int, ...], experts: int) -> bool:
    """Whether every expert has a base, and every base an expert."""
    return len(bases) == experts and set(bases) == set(range(max(bases) + 1))


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it travels: other files by their names alone, not by paths of this machine."""
    return recipe.public().model_dump(mode="json")


def described(format_version: int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says under `quantization_config` of how a checkpoint was packed, besides the
    original's own. recipe: as it travels."""
    return {"quant_method": QUANT_METHOD, "format_version": format_version, **recipe}
