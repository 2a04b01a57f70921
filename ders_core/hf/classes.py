"""transformers' class for a config.json, and why there is none that can be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from ders_core.errors import CheckpointError

LONGEST = 300
"""Characters of transformers' own words that are quoted."""


def named_class(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """transformers' model class if the config names one that is for it."""
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
        described = getattr(getattr(model_class, "config_class", None), "model_type", None)
        if described == config.get("model_type") and not config.get("auto_map"):
            return model_class
    return None


def refused(path: Path, config: Mapping[str, Any], error: Exception) -> CheckpointError:
    """What to raise for an error of transformers while it reads a model's files."""
    if "trust_remote_code" in str(error):
        return untrusted(path, config)
    return CheckpointError(
        f"{path}: transformers {transformers.__version__} cannot load this model: {words(error)}"
    )


def untrusted(path: Path, config: Mapping[str, Any]) -> CheckpointError:
    """What to raise for a model whose code is not to be run."""
    mapped = config.get("auto_map")
    classes = list(mapped.values()) if isinstance(mapped, Mapping) else []
    names = [value[0] if isinstance(value, list) and value else value for value in classes]
    modules = sorted({name.partition(".")[0] + ".py" for name in names if isinstance(name, str)})
    listed = f" ({', '.join(modules)})" if modules else ""
    return CheckpointError(
        f"{path} comes with code of its own{listed}, which runs on this machine with your rights "
        "when the model is loaded; read it, and if you trust it allow it with --trust-remote-code "
        "(in the app with 'Run the model's own code', from Python with trust_remote_code=True)"
    )


def words(error: BaseException) -> str:
    """An error's first paragraph on one line."""
    paragraphs = str(error).strip().split("\n\n")
    text = " ".join(paragraphs[0].split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
