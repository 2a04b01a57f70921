"""Open a checkpoint, of any form, at any place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ders_core.checkpoint import Checkpoint
from ders_core.files.address import as_local, is_file
from ders_core.files.few_collections import few_collections
from ders_core.files.json_object import read_json
from ders_core.files.store import Store, TensorStore
from ders_core.packed.names import MANIFEST, QUANT_METHOD


def open_checkpoint(place: str | Path) -> Checkpoint:
    """The MoE checkpoint in a directory or at an address, original or packed. Reads headers only.

    A packed one is opened as its original, whose experts are synthesized when they are read; it
    must be local. Raises CheckpointError if the directory is not a checkpoint, is damaged, or holds
    nothing that looks like experts.
    """
    with few_collections():
        store: Store = TensorStore.open(place)
        if _names_our_method(store.config):
            from ders_core.packed.original import OriginalStore
            from ders_core.packed.reader import PackedCheckpoint

            store = OriginalStore(PackedCheckpoint(place))
        return Checkpoint(store)


def is_packed(path: str | Path) -> bool:
    """Whether a local directory is a packed checkpoint, complete or not."""
    directory = as_local(path)
    if is_file(directory / MANIFEST):
        return True
    config = directory / "config.json"
    return is_file(config) and _names_our_method(read_json(config))


def _names_our_method(config: Mapping[str, Any]) -> bool:
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD
