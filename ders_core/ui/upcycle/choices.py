"""The choices of the Upcycle page: plain values, one for each widget, and the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.errors import RecipeError, gravest
from ders_core.upcycle import Data, FormRule, UpcycleConfig
from ders_core.upcycle.forms import FORMS, Form

Values = dict[str, Any]

MIXED = "mixed"
LAYERS = {"all": "all", "every-other": "every other", "list": "a list"}
TEXT = Path("text.txt")
"""What a configuration holds while no text was named yet."""

_PLAIN = ("seed", "experts", "top_k", "universal", "base", "noise")
_TRAINING = (
    "steps",
    "batch",
    "accumulation",
    "learning_rate",
    "base_rate",
    "router_rate",
    "schedule",
    "warmup",
    "weight_decay",
    "clip",
    "bf16",
    "gradient_checkpointing",
    "save_every",
    "keep",
    "measure_every",
    "heldout_tokens",
)


def start() -> UpcycleConfig:
    """What the page begins with."""
    config = UpcycleConfig(name="unnamed", data=Data(texts=(TEXT,)))
    return config.model_copy(update={"name": suggested_name(config)})


def form_titles() -> dict[str, str]:
    """Name of each form -> as the page offers it."""
    return {name: form.title for name, form in FORMS.items()}


def suggested_name(config: UpcycleConfig) -> str:
    return config.label[:80]


def values_of(config: UpcycleConfig) -> Values:
    """What the widgets show for a configuration."""
    data, training = config.data, config.training
    forms = {projection: config.form(projection) for projection in PROJECTIONS}
    same = len(set(forms.values())) == 1
    values: Values = {name: getattr(config, name) for name in _PLAIN}
    values |= {name: getattr(training, name) for name in _TRAINING}
    values |= _form_values(forms["up"], "")
    for projection, form in forms.items():
        values |= _form_values(form, f"_{projection}")
    return values | {
        "name": "" if config.name == suggested_name(config) else config.name,
        "layers": config.layers if config.layers in LAYERS else "list",
        "layers_list": "" if config.layers in LAYERS else config.layers,
        "form": values["form"] if same else MIXED,
        "router_init": config.router.init,
        "router_std": config.router.std,
        "router_train": config.router.train,
        "balance": config.router.balance,
        "train": ", ".join(config.train),
        "texts": "\n".join(str(text) for text in data.texts if text != TEXT),
        "heldout": str(data.heldout or ""),
        "window": data.window,
    }


def _form_values(form: Form, suffix: str) -> Values:
    values = {"form": form.name} | usual_strengths() | form.choices()
    return {f"{name}{suffix}": value for name, value in values.items()}


def usual_strengths() -> Values:
    """What the fields of every form begin with."""
    values: Values = {}
    for form in FORMS.values():
        values |= form.usual().choices()
    return values


def config_of(
    values: Mapping[str, Any], before: UpcycleConfig, projections: Sequence[str] = PROJECTIONS
) -> UpcycleConfig:
    """The configuration that the widgets show; what they do not show stays as in `before`.

    projections: those of the model; a missing one follows `up`. Raises RecipeError.
    """
    texts = [line.strip() for line in str(values["texts"] or "").splitlines() if line.strip()]
    fields = before.model_dump(exclude={"forms"})
    fields |= {name: values[name] for name in _PLAIN}
    fields["training"] |= {name: values[name] for name in _TRAINING}
    fields["router"] |= {
        "init": values["router_init"],
        "std": values["router_std"],
        "train": values["router_train"],
        "balance": values["balance"],
    }
    fields["data"] |= {
        "texts": texts or [str(TEXT)],
        "heldout": str(values["heldout"] or "").strip() or None,
        "window": values["window"],
    }
    fields["train"] = [name for name in re.split(r"[,\s]+", values["train"] or "") if name]
    layers = values["layers"]
    fields["layers"] = values["layers_list"] if layers == "list" else layers
    try:
        fields["forms"] = _forms(values, before, projections)
        unnamed = UpcycleConfig.model_validate(fields | {"name": "unnamed"})
        name = str(values["name"] or "").strip() or suggested_name(unnamed)
        return UpcycleConfig.model_validate(fields | {"name": name})
    except ValidationError as error:
        raise RecipeError(_sentence(error)) from error


def _forms(
    values: Mapping[str, Any], before: UpcycleConfig, projections: Sequence[str]
) -> tuple[FormRule, ...]:
    """One rule if all projections have the same form, otherwise one for each form."""
    mixed = values["form"] == MIXED
    chosen: dict[str, Form] = {}
    for projection in PROJECTIONS:
        shown = projection if projection in projections else "up"
        chosen[projection] = form_of(values, before.form(shown), f"_{shown}" if mixed else "")
    if all(before.form(projection) == form for projection, form in chosen.items()):
        return before.forms
    alike: dict[Form, list[str]] = {}
    for projection, form in chosen.items():
        alike.setdefault(form, []).append(projection)
    return tuple(
        FormRule.model_validate({"projections": names, "form": form})
        for form, names in alike.items()
    )


def form_of(values: Mapping[str, Any], before: Form, suffix: str = "") -> Form:
    """The form that a set of widgets shows. Raises pydantic's ValidationError."""
    form = FORMS.find(values[f"form{suffix}"])
    return form.choose({name: values[f"{name}{suffix}"] for name in form.fields}, before)


def _sentence(error: ValidationError) -> str:
    """The gravest fault, and which choice it belongs to."""
    fault = gravest(error)
    names = [part.replace("_", " ") for part in fault.path if isinstance(part, str)]
    return fault.at(*names[-1:]).sentence()
