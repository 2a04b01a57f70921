"""The choices of the Upcycle page as plain values, one a widget, and as the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.errors import RecipeError, gravest
from ders_core.upcycle import (
    Data,
    FormRule,
    LowRankForm,
    Renewal,
    SparseForm,
    UpcycleConfig,
    Vanilla,
)
from ders_core.upcycle.forms import Form

Values = dict[str, Any]

FORMS = {"lowrank": "low rank (LM)", "sparse": "sparse (SM)", "vanilla": "vanilla"}
MIXED = "mixed"
LAYERS = {"all": "all", "every-other": "every other", "list": "a list"}
RANK, DROP_RATE = 4, 0.99
"""Strengths to begin with: the paper's own (DeRS, table 6)."""

TEXT = Path("text.txt")
"""What stands in a configuration while no text was named yet."""

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
    """What is chosen before anybody chose."""
    return UpcycleConfig(name=f"LM {RANK}", data=Data(texts=(TEXT,)))


def suggested_name(config: UpcycleConfig) -> str:
    return config.label[:80]


def values_of(config: UpcycleConfig) -> Values:
    """What the widgets show for a configuration."""
    data, training = config.data, config.training
    forms = {projection: config.form(projection) for projection in PROJECTIONS}
    same = len(set(map(repr, forms.values()))) == 1
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
    sparse = isinstance(form, SparseForm)
    return {
        f"form{suffix}": form.model_dump()["form"],
        f"rank{suffix}": form.rank if isinstance(form, LowRankForm) else RANK,
        f"drop_rate{suffix}": form.drop_rate if isinstance(form, SparseForm) else DROP_RATE,
        f"learned{suffix}": bool(sparse and form.model_dump()["renew"]),
    }


def config_of(
    values: Mapping[str, Any], before: UpcycleConfig, projections: Sequence[str] = PROJECTIONS
) -> UpcycleConfig:
    """The configuration of what the widgets show; what they do not show stays as it was before.

    projections: that the model has; one that it lacks follows `up`. Raises RecipeError.
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
        made = UpcycleConfig.model_validate(fields | {"name": "unnamed"})
        name = str(values["name"] or "").strip() or suggested_name(made)
        return UpcycleConfig.model_validate(fields | {"name": name})
    except ValidationError as error:
        raise RecipeError(_sentence(error)) from error


def _forms(
    values: Mapping[str, Any], before: UpcycleConfig, projections: Sequence[str]
) -> tuple[FormRule, ...]:
    """One rule for all where they are alike, else one for the projections of each form."""
    mixed = values["form"] == MIXED
    chosen: dict[str, Form] = {}
    for projection in PROJECTIONS:
        shown = projection if projection in projections else "up"
        chosen[projection] = form_of(values, before.form(shown), f"_{shown}" if mixed else "")
    if all(before.form(projection) == form for projection, form in chosen.items()):
        return before.forms
    alike: dict[str, tuple[Form, list[Any]]] = {}
    for projection, form in chosen.items():
        alike.setdefault(repr(form), (form, []))[1].append(projection)
    return tuple(
        FormRule.model_validate({"projections": names, "form": form.model_dump()})
        for form, names in alike.values()
    )


def form_of(values: Mapping[str, Any], before: Form, suffix: str = "") -> Form:
    """The form that one set of widgets shows. Raises ValidationError."""
    kind = values[f"form{suffix}"]
    if kind == "vanilla":
        return Vanilla()
    if kind == "lowrank":
        return LowRankForm(rank=values[f"rank{suffix}"])
    renew = before.renew if isinstance(before, SparseForm) else None
    return SparseForm(
        drop_rate=values[f"drop_rate{suffix}"],
        renew=(renew or Renewal()) if values[f"learned{suffix}"] else None,
    )


def _sentence(error: ValidationError) -> str:
    """The gravest fault, and which choice it belongs to."""
    fault = gravest(error)
    names = [part.replace("_", " ") for part in fault.path if isinstance(part, str)]
    return fault.at(*names[-1:]).sentence()
