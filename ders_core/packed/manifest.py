"""The manifest of a packed checkpoint: all that is needed besides its tensors to synthesize it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from ders_core.errors import CheckpointError, sentence_of
from ders_core.files.address import is_file
from ders_core.files.json_object import read_json
from ders_core.files.links import check_within
from ders_core.files.untrusted_json import EVERY_KEY
from ders_core.packed.names import MANIFEST, QUANT_METHOD
from ders_core.packed.stacks import PackedGroup, PackedStack, PackedTensor
from ders_core.recipe import Recipe

ROLLBACK = "ders_rollback"
"""The folder of a rollback in a patched checkpoint."""
FORMAT_VERSION = 5
READABLE = (1, 2, 3, 4, 5)
ENCODED_SINCE = 3
"""The first version that knows the weights that were encoded."""
DRAWN_IN_BLOCKS_SINCE = 5
"""The first version in which `sparse` draws entries in blocks, unless it says otherwise."""
BASE_MODEL = "base_model"
"""The entry of `quantization_config` that holds the original's name on the hub."""


class Encoded(BaseModel):
    """The weights that a packed group was encoded from, and how far it is from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    """Of the source's weights: see `ders_core.checkpoint.digest.WeightsDigest`."""
    rel_error_delta: float = Field(ge=0, allow_inf_nan=False)
    """‖Ŵ−W‖/‖Δ‖ over all experts, rounded to six digits."""
    rel_error_weight: float = Field(ge=0, allow_inf_nan=False)
    """‖Ŵ−W‖/‖W‖, rounded likewise."""

    @classmethod
    def of(cls, sha256: str, rel_error_delta: float, rel_error_weight: float) -> Encoded:
        """Errors as they are measured: what is rounded does not depend on the machine's sums."""
        return cls(
            sha256=sha256,
            rel_error_delta=float(f"{rel_error_delta:.6g}"),
            rel_error_weight=float(f"{rel_error_weight:.6g}"),
        )


class Repair(BaseModel):
    """One training of small parts after the packing, by KL to the original."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trained: dict[str, int]
    """What was trained, such as `scales` -> how many values."""
    steps: int
    texts: tuple[str, ...]
    """Names of what was trained on, without the folders above."""
    heldout: tuple[str, ...] = ()
    """Names of what was measured with; empty: parts of the texts that were held out."""
    tokens: int
    """Read in all steps together."""
    heldout_tokens: int
    kl_before: float
    """Nats a token on what was held out, rounded to six digits."""
    kl_after: float
    replaced: dict[str, str] = {}
    """Carried tensor that was trained -> hex SHA-256 of its bytes before."""


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
    others: tuple[PackedTensor, ...] = ()
    """The coded tensors outside the experts."""
    checksums: dict[str, str]
    """Tensor name -> hex SHA-256 of its bytes."""
    encoded: dict[str, Encoded] = {}
    """Prefix of a group or another tensor -> what it was encoded from. Empty in versions 1 and 2,
    and for a source that was on no disk. After a repair, how far it is now."""
    repairs: tuple[Repair, ...] = Field(default=(), exclude_if=lambda repairs: not repairs)
    """In their order."""

    @property
    def original_checksums(self) -> dict[str, str]:
        """Name -> hex SHA-256 of the bytes that the original has, of carried tensors."""
        before = dict(self.checksums)
        for repair in reversed(self.repairs):
            before |= repair.replaced
        return before

    @property
    def may_lack_original(self) -> bool:
        """Whether what was packed may have been on no disk: nothing is said of its weights."""
        return bool(self.stacks) and not self.encoded and self.format_version >= ENCODED_SINCE

    @property
    def stacks(self) -> tuple[PackedStack, ...]:
        """All that is coded."""
        return (*self.groups, *self.others)

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
            manifest = cls.model_validate(_upgraded(data, version))
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
        for stack in manifest.stacks:
            if not stack.is_consistent:
                raise CheckpointError(
                    f"{directory / MANIFEST}: {stack.title} contradicts itself; copy the directory "
                    "again"
                )
        titles = Counter(stack.title for stack in manifest.stacks)
        for title in (title for title, count in titles.items() if count > 1):
            raise CheckpointError(
                f"{directory / MANIFEST} has {title} more than once; copy the directory again"
            )
        for name in manifest.source.files:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{directory / MANIFEST} names the file {name!r}; refused")
        return manifest


def _upgraded(data: dict[str, Any], version: int) -> dict[str, Any]:
    """A manifest in terms of the latest version: in version 1 all positions had forms of fixed
    length, and before version 5 entries were drawn over the whole of a matrix."""
    for codec in _sparse_codecs([data.get("groups"), data.get("others")]):
        if version == 1 and codec.get("method") == "magnitude":
            codec["positions"] = "fixed"
        is_random = codec.get("pattern") is None and codec.get("method", "random") == "random"
        if version < DRAWN_IN_BLOCKS_SINCE and is_random:
            codec["draws"] = "matrix"
    return data


def _sparse_codecs(entry: Any) -> Iterator[dict[str, Any]]:
    """The `sparse` codecs anywhere in an entry: of experts, of bases, stages of chains."""
    if isinstance(entry, dict):
        if entry.get("codec") == "sparse":
            yield entry
        for value in entry.values():
            yield from _sparse_codecs(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _sparse_codecs(value)


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it travels: other files by their names alone, not by paths of this machine."""
    return recipe.public().model_dump(mode="json")


def described(format_version: int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says under `quantization_config` of how a checkpoint was packed, besides the
    original's own. recipe: as it travels."""
    return {"quant_method": QUANT_METHOD, "format_version": format_version, **recipe}
