"""Everything that touches transformers: loading a model from any of our directories."""

from __future__ import annotations

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

from ders_core.checkpoint import TensorStore
from ders_core.device import resolve_device
from ders_core.errors import CheckpointError
from ders_core.packed import PackedCheckpoint, is_packed


@dataclass(frozen=True)
class _Lazy:
    """A tensor that is synthesized when transformers takes it: `lazy[...]`."""

    checkpoint: PackedCheckpoint
    name: str

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.checkpoint.read(self.name)[index]

    def get_shape(self) -> list[int]:
        return list(self.checkpoint.spec(self.name).shape)


def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal LM from an original, dense or packed directory, in evaluation mode.

    Packed experts are synthesized tensor by tensor while transformers fills the model, so there is
    no second full copy and no temporary directory. dtype: by default the checkpoint's.
    Raises CheckpointError if the directory is damaged, or its tensors are not those of the model
    that its config describes.
    """
    where = resolve_device(device)
    store = TensorStore.open(path)
    with _silent():
        try:
            if is_packed(store.path):
                model, found = _load_packed(store.path, dtype, trust_remote_code)
            else:
                model, found = AutoModelForCausalLM.from_pretrained(
                    store.path,
                    dtype=dtype or "auto",
                    trust_remote_code=trust_remote_code,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except (ValueError, OSError, ImportError, KeyError) as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(
                f"{store.path}: transformers {transformers.__version__} cannot load this model: "
                f"{first[0] if first else type(error).__name__}"
            ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            name = sorted(str(key) for key in found[kind])[0]
            raise CheckpointError(
                f"{store.path}: {len(found[kind])} {kind.replace('_', ' ')}, the first {name!r}; "
                "config.json and the weights are not of one model"
            )
    return model.to(where).eval()


def _load_packed(
    path: Path, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    packed = PackedCheckpoint(path)
    config = AutoConfig.from_pretrained(
        path, trust_remote_code=trust_remote_code, local_files_only=True
    )
    del config.quantization_config  # the weights arrive synthesized
    with torch.device("meta"):
        family = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    model, found = family.from_pretrained(
        None,
        config=config,
        state_dict={name: _Lazy(packed, name) for name in packed.names()},
        dtype=dtype or config.dtype or torch.float32,
        output_loading_info=True,
    )
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model, found


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises CheckpointError if there is none that can be read."""
    directory = Path(path).expanduser()
    with _silent():
        try:
            return AutoTokenizer.from_pretrained(
                directory, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (ValueError, OSError, ImportError, KeyError) as error:
            raise CheckpointError(
                f"{directory} has no tokenizer that transformers can read; copy the original's "
                "tokenizer files beside the weights"
            ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """No bars and no advice from transformers while we load; what matters is raised."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
