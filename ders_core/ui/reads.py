"""Cached reads: headers, summaries, plans and analysis tables. No tensor work."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from ders_core.analysis import Analysis, Verdict
from ders_core.analysis.summary import Summary, summarize
from ders_core.checkpoint import Checkpoint
from ders_core.errors import CheckpointError, DersError
from ders_core.files.address import is_remote
from ders_core.files.json_object import read_json
from ders_core.files.stamp import directory_version
from ders_core.later import pd
from ders_core.packed.open import open_checkpoint
from ders_core.packed.patch.make import delta_tensors
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline import card
from ders_core.pipeline.plan import Plan, resolve
from ders_core.recipe import Recipe
from ders_core.ui.calculations import first_look, in_memory
from ders_core.ui.calculator import calculate
from ders_core.ui.session import workspace
from ders_core.units import visible
from ders_core.upcycle import DenseModel
from ders_core.upcycle.dense_model import FAMILIES

MOST_CARD = 50_000
"""Characters of a model card that are shown."""

REMOTE_SECONDS = 3600
"""Seconds for which a remote checkpoint is not read again."""


@contextmanager
def _one_sentence(place: str | Path) -> Iterator[None]:
    """Reading a place fails with a DersError, whatever is wrong with it: a page shows the sentence
    and goes on."""
    try:
        yield
    except DersError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be read: {error.strerror or error}; check its rights, or open another"
        ) from error
    except Exception as error:
        traceback.print_exc()
        raise CheckpointError(
            f"{place} cannot be opened: unexpected {type(error).__name__}: {error}; open another"
        ) from error


def _stamp(path: Path) -> str:
    """Changes when a file of a directory changes; for an address, every REMOTE_SECONDS. Empty if
    there is none."""
    if is_remote(path):
        return str(time.time() // REMOTE_SECONDS)
    if not path.is_dir():
        return ""
    return directory_version(path)


@st.cache_resource(show_spinner=False, max_entries=4)
def _checkpoint(path: str, stamp: object) -> Checkpoint:
    return open_checkpoint(path)


def checkpoint(path: str) -> Checkpoint:
    """The checkpoint at an allowed path or address. Raises DersError."""
    with _one_sentence(path):
        allowed = workspace().check_checkpoint(path)
        return _checkpoint(str(allowed), _stamp(allowed))


@st.cache_resource(show_spinner=False, max_entries=4)
def _delta_bytes(path: str, stamp: object) -> int:
    packed = PackedCheckpoint(path)
    return sum(packed.store.tensors[name].nbytes for name in delta_tensors(packed))


def delta_bytes(path: str) -> int:
    """Bytes of a packed checkpoint's deltas. Raises DersError."""
    with _one_sentence(path):
        allowed = workspace().check_allowed(Path(path))
        return _delta_bytes(str(allowed), _stamp(allowed))


@st.cache_data(show_spinner=False, max_entries=16)
def _bytes_in_memory(version: str, _source: Checkpoint) -> tuple[int, int] | None:
    return calculate(in_memory, _source.place, version)


def bytes_in_memory(path: str) -> tuple[int, int] | None:
    """What a packed checkpoint's weights take when it is loaded, whole and with experts that stay
    packed; a calculator reads it. Raises DersError."""
    source = checkpoint(path)
    with _one_sentence(path):
        return _bytes_in_memory(source.store.version, source)


def auto_class(path: str) -> str:
    """transformers' auto class for a packed directory; that of causal LMs if it was removed."""
    try:
        return card.auto_class(read_json(workspace().check_allowed(Path(path)) / "config.json"))
    except DersError:
        return card.auto_class({})


@st.cache_data(show_spinner=False, max_entries=16)
def _model_card(directory: str, changed: int) -> str:
    text = card.read_card(Path(directory))
    if len(text) <= MOST_CARD:
        return text
    return f"{text[:MOST_CARD]}...\n\nThe whole card is the file {card.CARD} of the export."


def model_card(directory: str) -> str:
    """The beginning of an export's model card; "" if there is none any more."""
    try:
        allowed = workspace().check_allowed(Path(directory))
        return _model_card(str(allowed), (allowed / card.CARD).stat().st_mtime_ns)
    except (DersError, OSError):
        return ""


@st.cache_data(show_spinner=False, max_entries=16)
def _summary(version: str, verdict: Verdict | None, _source: Checkpoint) -> Summary:
    return summarize(_source, verdict)


@st.cache_data(show_spinner="Decoding a sample", max_entries=16)
def _packed_summary(version: str, verdict: Verdict | None, _source: Checkpoint) -> Summary:
    return calculate(first_look, _source.place, version, verdict)


def summary(source: Checkpoint, verdict: Verdict | None) -> Summary:
    """The summary of a checkpoint. verdict: of its analysis; without one, a sample of a few rows of
    a few experts is read. Of a packed one, a calculator also reads how streams begin."""
    with _one_sentence(source.path):
        if source.packed_bytes is None:
            return _summary(source.store.version, verdict, source)
        return _packed_summary(source.store.version, verdict, source)


@st.cache_resource(show_spinner=False, max_entries=4)
def _other_tensors(version: str, _source: Checkpoint) -> pd.DataFrame:
    others = _source.other_tensors()
    return pd.DataFrame(
        {
            "name": [visible(info.name) for info in others],
            "dtype": [info.spec.stored[0] for info in others],
            "shape": [" × ".join(map(str, info.spec.stored[1])) for info in others],
            "size": [info.nbytes / 1e6 for info in others],
        }
    )


def other_tensors(source: Checkpoint) -> pd.DataFrame:
    """A row for each tensor that holds no routed expert: name, dtype, shape, size in MB. Callers do
    not change it."""
    return _other_tensors(source.store.version, source)


@st.cache_resource(show_spinner=False, max_entries=64)
def _plan(version: str, recipe_yaml: str, _source: Checkpoint) -> Plan:
    return resolve(Recipe.from_yaml(recipe_yaml), _source)


def plan(source: Checkpoint, recipe: Recipe) -> Plan:
    """Predicted bytes of a recipe; all sessions share the plan. Raises RecipeError if it does not
    fit the checkpoint."""
    with _one_sentence(source.path):
        return _plan(source.store.version, recipe.to_yaml(), source)


@st.cache_resource(show_spinner=False, max_entries=4)
def _analysis(directory: str, stamp: object) -> Analysis:
    return Analysis.load(Path(directory))


def analysis(source: Checkpoint) -> Analysis | None:
    """The finished analysis of a checkpoint as its files are now, if there is one."""
    with _one_sentence(source.path):
        directory = workspace().analysis_dir(source.identity)
        stamp = _stamp(directory)
    try:
        saved = _analysis(str(directory), stamp) if stamp else None
    except DersError:  # damaged, or of another version: it is made again
        return None
    return saved if saved is not None and saved.is_of(source.store) else None


def growing_analysis(source: Checkpoint) -> Analysis | None:
    """The finished layers of a running analysis; None without any."""
    with _one_sentence(source.path):
        directory = workspace().growing_dir(source.identity)
    try:
        stamp = _stamp(directory)
        saved = _analysis(str(directory), stamp) if stamp else None
    except (DersError, FileNotFoundError):  # it is just being replaced by a longer one
        return None
    return saved if saved is not None and saved.is_of(source.store) else None


@st.cache_resource(show_spinner=False, max_entries=4)
def _dense(path: str, stamp: object) -> DenseModel:
    return DenseModel.open(path)


def dense(path: str) -> DenseModel:
    """The dense model at an allowed path. Raises DersError."""
    with _one_sentence(path):
        allowed = workspace().check_allowed(path)
        return _dense(str(allowed), _stamp(allowed))


@st.cache_data(show_spinner=False, ttl=30)
def dense_directories(roots: tuple[str, ...]) -> list[str]:
    """Those of `model_directories` whose config names a family that can be upcycled."""
    dense_models = []
    for path in model_directories(roots):
        try:
            config = read_json(Path(path) / "config.json")
        except DersError:
            continue
        if config.get("model_type") in FAMILIES and not config.get("quantization_config"):
            dense_models.append(path)
    return dense_models


@st.cache_data(show_spinner=False, ttl=30)
def model_directories(roots: tuple[str, ...], depth: int = 3, most: int = 200) -> list[str]:
    """Directories with a config.json and safetensors under the roots, a few levels down.

    Without those whose paths cannot be printed: a browser cannot be told some of them, and others
    look like what they are not. They can be typed.
    """
    models: list[str] = []
    level = [Path(root) for root in roots]
    for _ in range(depth + 1):
        below: list[Path] = []
        for directory in level:
            try:
                entries = [entry for entry in directory.iterdir() if _is_offered(entry.name)]
                is_model = (directory / "config.json").is_file()
            except OSError:
                continue
            if is_model and any(entry.suffix == ".safetensors" for entry in entries):
                models.append(str(directory))
            elif len(entries) < 500:
                below += [entry for entry in entries if _is_directory(entry)]
        level = below
        if len(models) >= most:
            break
    return sorted(set(models))[:most]


def _is_offered(name: str) -> bool:
    return not name.startswith(".") and name.isprintable()


def _is_directory(entry: Path) -> bool:
    """Whether it is one, and no link to one; False for what cannot be looked at."""
    try:
        return entry.is_dir() and not entry.is_symlink()
    except OSError:
        return False
