"""The manifest of a packed checkpoint: everything that is needed to synthesize it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.checkpoint.store import read_json
from ders_core.errors import CheckpointError
from ders_core.recipe import DenseBase, Recipe

MANIFEST = "ders_manifest.json"
FORMAT_VERSION = 1
QUANT_METHOD = "ders"


class PackedGroup(BaseModel):
    """One decomposed group: where its parts are, and how to read them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    projection: str
    prefix: str
    """The parts are the tensors `<prefix>.<part>`; the base is `<prefix>.base`."""
    codec: dict[str, Any]
    shape: tuple[int, int, int]
    """(experts, out, in)"""
    dtype: str
    experts: tuple[str, ...]
    """The original names of the experts' weights."""


class Source(BaseModel):
    """The checkpoint that was packed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    bytes_total: int
    files: dict[str, tuple[str, ...]]
    """File name -> tensor names in the order in which they lay on disk."""
    metadata: dict[str, dict[str, str]]


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

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises CheckpointError if it is missing, malformed or of an unknown version."""
        data = read_json(directory / MANIFEST)
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{directory} was packed in format version {version}; this program reads version "
                f"{FORMAT_VERSION}, so install the version of ders-studio that wrote it"
            )
        try:
            manifest = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"{directory / MANIFEST}: {where}: {first['msg']}") from error
        try:
            Recipe.model_validate(manifest.recipe)
        except ValidationError as error:
            raise CheckpointError(
                f"{directory / MANIFEST}: the recipe is malformed; copy the directory again"
            ) from error
        for group in manifest.groups:
            if group.projection not in PROJECTIONS or len(group.experts) != group.shape[0]:
                raise CheckpointError(
                    f"{directory / MANIFEST}: the group {group.prefix!r} contradicts itself; "
                    "copy the directory again"
                )
        for name in manifest.source.files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{directory / MANIFEST} names the file {name!r}; refused")
        return manifest


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it travels: a dense parent by its name alone, not by a path of this machine."""
    if isinstance(recipe.base, DenseBase):
        named = DenseBase(dense=Path(recipe.base.dense.name))
        recipe = recipe.model_copy(update={"base": named})
    return recipe.model_dump(mode="json")
