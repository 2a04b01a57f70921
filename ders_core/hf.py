"""Everything that touches transformers: loading a model from any of our directories."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ders_core.checkpoint import Checkpoint, TensorStore, recognise
from ders_core.device import device_label, resolve_device
from ders_core.errors import CheckpointError, DersError
from ders_core.packed import PackedCheckpoint, is_packed

WITHOUT_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
"""Set, transformers asks for a tensor when it needs it, and not as many as it can beforehand."""

_loading = threading.RLock()
"""Held while a model loads: how loud transformers is, is one setting of the whole process."""


@dataclass(frozen=True)
class _Lazy:
    """A tensor that is synthesized when transformers takes it: `lazy[...]`."""

    checkpoint: PackedCheckpoint
    name: str

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.checkpoint.read(self.name)[index]

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.spec(self.name).dtype

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point


def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal LM from an original, dense or packed directory, in evaluation mode.

    Packed experts are synthesized while transformers fills the model, one parameter of it at a
    time (a layer's experts of one projection), so there is no second full copy and no temporary
    directory. dtype: by default the checkpoint's. Threads that load wait for each other.
    Raises CheckpointError if the directory is damaged, or its tensors are not those of the model
    that its config describes; DersError if the device is absent or too small.
    """
    where = resolve_device(device)
    store = TensorStore.open(path)
    load = _load_packed if is_packed(store.path) else _load_plain
    with _silent():
        try:
            model, found = load(store.path, where, dtype, trust_remote_code)
        except DersError:
            raise
        except torch.OutOfMemoryError as error:
            raise DersError(
                f"{store.path} does not fit into the memory of {device_label(where)}; choose cpu"
            ) from error
        except Exception as error:  # whatever transformers makes of a config or a tensor
            raise CheckpointError(f"{store.path}: {_cause(store, error)}") from error
    _check_keys(store.path, found)
    return model.eval()


def _load_plain(
    path: Path, where: torch.device, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype or "auto",
        device_map={"": where},
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # they are reported, and `_check_keys` raises
        output_loading_info=True,
    )


def _load_packed(
    path: Path, where: torch.device, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    packed = PackedCheckpoint(path)
    config = AutoConfig.from_pretrained(
        path, trust_remote_code=trust_remote_code, local_files_only=True
    )
    config.__dict__.pop("quantization_config", None)  # the weights arrive synthesized
    with torch.device("meta"):
        family = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    with _environment(WITHOUT_THREADS, "1"):
        model, found = family.from_pretrained(
            None,
            config=config,
            state_dict={name: _Lazy(packed, name) for name in packed.names()},
            dtype=dtype or "auto",
            device_map={"": where},
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model.config.name_or_path = model.name_or_path = str(path)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model, found


def _check_keys(path: Path, found: dict[str, Any]) -> None:
    """Raise CheckpointError unless every tensor found its place and every place its tensor."""
    for kind, told in (
        ("missing_keys", "missing from the weights"),
        ("unexpected_keys", "not part of the model"),
        ("mismatched_keys", "of another shape than the model's"),
    ):
        names = sorted(key if isinstance(key, str) else key[0] for key in found[kind])
        if names:
            more = f" and {len(names) - 1} more are" if names[1:] else " is"
            raise CheckpointError(
                f"{path}: {names[0]!r}{more} {told}; config.json and the weights are not of one "
                "model, so copy the directory again"
            )


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises CheckpointError if there is none that can be read."""
    directory = Path(path).expanduser()
    with _silent():
        try:
            return AutoTokenizer.from_pretrained(
                directory, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except Exception as error:  # whatever transformers makes of what lies there
            raise CheckpointError(
                f"{directory} has no tokenizer that transformers can read; copy the original's "
                "tokenizer files beside the weights"
            ) from error


def _cause(store: TensorStore, error: Exception) -> str:
    """Why loading failed, in one sentence: ours if the experts are incomplete, else the error's."""
    if not is_packed(store.path) and recognise(store.path, store.config, store.tensors) is not None:
        try:
            Checkpoint(store.path)
        except CheckpointError as told:
            return str(told)
    text = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    return f"transformers {transformers.__version__} cannot load this model: {text}"


@contextmanager
def _silent() -> Iterator[None]:
    """No bars and no advice from transformers while we load; what matters is raised."""
    logging = transformers.logging
    with _loading:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        if bars:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable set for a while; the caller holds `_loading`."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
