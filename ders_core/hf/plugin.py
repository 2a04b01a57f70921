"""A packed checkpoint in transformers: `from_pretrained` of any class gives an ordinary model.

The experts' weights are synthesized while transformers fills the model, under the original's names,
and rounded once, to the dtype that is asked for; the conversions of transformers put them where the
model wants them, and where these only gather experts, threads fill the parameter itself
(`ders_core.hf.gathered`). So there is no second full copy, and packed checkpoints of every family
load.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeGuard

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.quantizers import (
    HfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.hub import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from ders_core.compute.buffers import memory_is_reused
from ders_core.errors import DersError
from ders_core.files.dtype import Dtype
from ders_core.files.inputs import unchanged_inputs
from ders_core.files.model_files import IMPORT_FIRST, NAMED
from ders_core.hf.gathered import gathering
from ders_core.hf.lazy import LazyTensor
from ders_core.hf.resave import HeldForm, PackedSave
from ders_core.packed.model_tensors import ModelTensors
from ders_core.packed.names import MANIFEST, QUANT_METHOD
from ders_core.packed.reader import PackedCheckpoint
from ders_core.runtime.attach import attach
from ders_core.runtime.cache import WeightCache
from ders_core.runtime.modes import Mode

WITHOUT_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
"""If set, transformers asks for each tensor when it needs it, not for many beforehand."""

_environment = threading.RLock()


class DersConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed checkpoint's config.json: the recipe."""

    def __init__(self, **recipe: Any) -> None:
        recipe.pop("quant_method", None)
        self.quant_method = QUANT_METHOD
        self.dequantize = True  # transformers then leaves an ordinary model behind
        self.recipe = recipe

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        config = cls(**config_dict)
        return (config, kwargs) if return_unused_kwargs else config


class DersQuantizer(HfQuantizer):
    """Changes no module: the weights arrive synthesized (see `install`), or `attach` did."""

    finish: Callable[[], None] | None = None
    """What is left to do when the model is loaded: transformers clears buffers before."""

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> Any:
        finish, self.finish = self.finish, None
        if finish is not None:
            finish()
        return model

    def update_attn_implementation(self, config: Any) -> Any:
        """transformers calls this with the config before it looks for the weight files: they are
        to be found in their usual places, and not under the name that is there for programs
        without this package."""
        if getattr(config, NAMED, None) == IMPORT_FIRST:
            delattr(config, NAMED)
        return config

    def is_serializable(self) -> bool:
        return bool(self.quantization_config.dequantize)

    @property
    def is_trainable(self) -> bool:
        return True


def install() -> None:
    """Register the format with transformers; a second call changes nothing.

    transformers lets a quantizer replace modules and rename tensors, but not provide the tensors of
    a checkpoint. So the one step that reads them is wrapped: for our format it gets its tensors
    from a `PackedCheckpoint`, and then runs as for any checkpoint.
    """
    if QUANT_METHOD in AUTO_QUANTIZER_MAPPING:
        return
    register_quantization_config(QUANT_METHOD)(DersConfig)
    register_quantizer(QUANT_METHOD)(DersQuantizer)
    PreTrainedModel._load_pretrained_model = staticmethod(
        _reading_packed(PreTrainedModel._load_pretrained_model)
    )


def _reading_packed(load: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(load)
    def wrapped(
        model: PreTrainedModel,
        state_dict: dict[str, Any] | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if state_dict is not None or not _are_ours(checkpoint_files, load_config):
            return load(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
        packed = PackedCheckpoint(_directory(checkpoint_files, load_config))
        tensors = packed.model_tensors(_coded_dtype(load_config))
        taken = _attached(model, packed, tensors, load_config)
        lazy = {
            parameter: LazyTensor(tensors, name)
            for name, parameter in tensors.names().items()
            if name not in taken
        }
        in_shares = is_deepspeed_zero3_enabled()
        plain = replace(
            load_config,
            # with a quantizer, 5.17 keeps silent about shapes that do not fit; under ZeRO-3 it must
            # stay, because a model that came with one is not built in the shares that ZeRO-3 fills
            hf_quantizer=load_config.hf_quantizer if in_shares else None,
            sharded_metadata={"weight_map": _offloadable(packed)},
        )
        with _without_threads(), unchanged_inputs(), memory_is_reused():
            packed.store.hold()
            if in_shares:
                return load(model, lazy, checkpoint_files, plain, *args, **kwargs)
            with gathering(model, load_config.weight_mapping or []) as conversions:
                gathered = replace(plain, weight_mapping=conversions)
                return load(model, lazy, checkpoint_files, gathered, *args, **kwargs)

    return wrapped


def _attached(
    model: PreTrainedModel, packed: PackedCheckpoint, tensors: ModelTensors, load_config: Any
) -> frozenset[str]:
    """Let the model hold the experts as it is asked to; the names of tensors that it does not take.
    A model whose experts stay packed keeps its quantizer, and is saved as `PackedSave` says.
    Raises DersError where that cannot be."""
    wanted = _MODE.get()
    if wanted.mode == "synthesized":
        return frozenset()
    devices = set((load_config.device_map or {"": torch.device("cpu")}).values())
    if len(devices) != 1 or is_deepspeed_zero3_enabled():
        raise DersError(f"experts are held {wanted.mode} on one device; give device_map one")
    attachment = attach(model, packed)
    quantizer = load_config.hf_quantizer
    quantizer.quantization_config.dequantize = False
    cache = WeightCache(wanted.cache_bytes) if wanted.mode == "cached" else None
    (device,) = devices
    dtype = load_config.dtype if isinstance(load_config.dtype, torch.dtype) else model.dtype

    def finish() -> None:
        attachment.hold(device, dtype, cache)
        form = HeldForm.of(model, packed, tensors, attachment.taken)
        model.save_pretrained = PackedSave(model, form)

    quantizer.finish = finish
    return attachment.taken


def _are_ours(checkpoint_files: list[str] | None, load_config: Any) -> TypeGuard[list[str]]:
    """Whether these are the files of a packed checkpoint.

    An adapter's files are not, although they are loaded with the settings of the model to which it
    is added.
    """
    return (
        isinstance(load_config.hf_quantizer, DersQuantizer)
        and checkpoint_files is not None
        and len(checkpoint_files) > 0
        and not Path(checkpoint_files[0]).name.startswith("adapter_model.")
    )


@dataclass(frozen=True)
class ExpertsMode:
    """How models that are loaded hold the experts. cache_bytes: of weights that are kept, with
    `cached`."""

    mode: Mode = "synthesized"
    cache_bytes: int = 0


SYNTHESIZED = ExpertsMode()

_MODE: ContextVar[ExpertsMode] = ContextVar("experts_mode", default=SYNTHESIZED)


@contextmanager
def experts_held(mode: Mode, cache_bytes: int = 0) -> Iterator[None]:
    """Within it, `from_pretrained` gives models that hold a packed checkpoint's experts so."""
    token = _MODE.set(ExpertsMode(mode, cache_bytes))
    try:
        yield
    finally:
        _MODE.reset(token)


_AS_STORED: ContextVar[bool] = ContextVar("as_stored", default=False)


@contextmanager
def as_stored() -> Iterator[None]:
    """Within it, weights are rounded to the checkpoint's dtype before they get the model's: they
    are what `PackedCheckpoint` gives back, value by value."""
    token = _AS_STORED.set(True)
    try:
        yield
    finally:
        _AS_STORED.reset(token)


def _coded_dtype(load_config: Any) -> Dtype | None:
    """The dtype in which coded weights are synthesized: the model's, so that what base and delta
    add up to is not rounded to the checkpoint's dtype before; None for the checkpoint's."""
    dtype = load_config.dtype
    if _AS_STORED.get() or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return None
    return Dtype.of(dtype)


def _offloadable(packed: PackedCheckpoint) -> dict[str, str]:
    """Name -> file of the tensors that a file holds exactly as the model wants them.

    transformers leaves these where they are when the model's weights are to stay on disk, and
    writes the others anew.
    """
    tensors = packed.model_tensors()
    return {
        name: packed.store.tensors[name].file.name
        for name, parameter in tensors.names().items()
        if parameter == name
        and name in packed.store.tensors
        and tensors.spec(name) == packed.original.spec(name)
    }


def _directory(checkpoint_files: list[str], load_config: Any) -> Path:
    """The packed checkpoint's directory, which a model that is saved later finds from any other
    one; for one on the hub, the manifest is fetched into it."""
    directory = Path(checkpoint_files[0]).parent.absolute()
    source = load_config.pretrained_model_name_or_path
    if not (directory / MANIFEST).is_file() and not os.path.isdir(source):
        cached_file(source, MANIFEST, **(load_config.download_kwargs or {}))
    return directory


@contextmanager
def _without_threads() -> Iterator[None]:
    """Turn transformers' loading threads off within the block."""
    with _environment:
        before = os.environ.get(WITHOUT_THREADS)
        os.environ[WITHOUT_THREADS] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[WITHOUT_THREADS]
            else:
                os.environ[WITHOUT_THREADS] = before
