"""What a model is for text, read from its directory before any weight: sizes, dtype, code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from ders_core.checkpoint.quantized import declared
from ders_core.checkpoint.recognition import walk
from ders_core.compute.precision import auto_dtype
from ders_core.files.address import as_local
from ders_core.files.spec import TensorSpec
from ders_core.files.store import TensorStore
from ders_core.hf.classes import named_class, refused
from ders_core.hf.silence import silent
from ders_core.packed.open import is_packed
from ders_core.packed.reader import PackedCheckpoint


@dataclass(frozen=True)
class ModelFacts:
    """vocabulary: how many tokens the model knows. positions: the length of its context. Both are
    None if its config does not say.

    dtype: in which transformers loads it unless told otherwise. values: its weights, counted.
    coded: whether it stores codes, so that transformers decides how it computes.
    """

    path: Path
    vocabulary: int | None
    positions: int | None
    encoder_decoder: bool
    dtype: torch.dtype
    values: int
    coded: bool


def describe(path: str | Path, *, trust_remote_code: bool = False) -> ModelFacts:
    """Read config.json and the tensors' headers of a model, packed or not.

    Nested configs are read for the part that handles text. Raises CheckpointError if the directory
    is not a model that transformers knows, or needs code of its own that is not trusted.
    """
    store = TensorStore.open(as_local(path))
    config = load_config(store, trust_remote_code=trust_remote_code)
    text = _text_config(config)
    if is_packed(store.path):
        packed = PackedCheckpoint(store.path)
        tensors = packed.model_tensors()
        specs = [tensors.spec(name) for name in tensors.names()]
        coded = False
    else:
        specs = list(store.specs.values())
        coded = bool(declared(store.config))
    return ModelFacts(
        path=store.path,
        vocabulary=_number(config, text, "vocab_size"),
        positions=_number(config, text, "max_position_embeddings", "n_positions"),
        encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        dtype=_dtype(config, specs),
        values=sum(math.prod(spec.shape) for spec in specs if spec.dtype.is_float),
        coded=coded,
    )


def shared_dtype(models: Sequence[ModelFacts], device: torch.device) -> torch.dtype | None:
    """The dtype in which `auto` computes models that are compared: one for all of them, so that
    rounding does not count as a difference. None leaves it to transformers: where codes are stored,
    and where nothing is to be changed."""
    if any(model.coded for model in models):
        return None
    stored = models[0].dtype
    for model in models[1:]:
        stored = torch.promote_types(stored, model.dtype)
    chosen = auto_dtype(stored, max(model.values for model in models), device)
    return None if all(model.dtype == chosen for model in models) else chosen


def load_config(store: TensorStore, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """transformers' configuration of a model. Raises CheckpointError."""
    known = named_class(store.config)
    with silent():
        try:
            if known is not None:
                return known.config_class.from_pretrained(store.path, local_files_only=True)
            return AutoConfig.from_pretrained(
                store.path, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except Exception as error:  # transformers fails in many ways on a config
            raise refused(store.path, store.config, error) from error


def _text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that describes the text's decoder."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # several parts handle text
        return config


def _number(config: PreTrainedConfig, text: PreTrainedConfig, *names: str) -> int | None:
    """A positive number of the text's part, or the only one of this name in any part."""
    for name in names:
        value = getattr(text, name, None)
        if type(value) is int and value > 0:
            return value
    numbers = {
        value
        for name, value in walk(config.to_dict())
        if name in names and type(value) is int and value > 0
    }
    return numbers.pop() if len(numbers) == 1 else None


def _dtype(config: PreTrainedConfig, specs: Sequence[TensorSpec]) -> torch.dtype:
    """As transformers chooses it: the config's, else that of the weights."""
    named = getattr(config, "dtype", None)
    dtype = getattr(torch, named, None) if isinstance(named, str) else named
    if isinstance(dtype, torch.dtype):
        return dtype
    stored: Counter[torch.dtype] = Counter()
    for spec in specs:
        if spec.dtype.is_float:
            stored[spec.dtype.torch] += math.prod(spec.shape)
    return stored.most_common(1)[0][0] if stored else torch.float32
