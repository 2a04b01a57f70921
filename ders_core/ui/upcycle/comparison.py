"""The sizes of an upcycled model with each form, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ders_core.later import pd
from ders_core.ui.plain import strong
from ders_core.ui.upcycle.choices import MIXED, form_of, usual_strengths
from ders_core.units import count_text, share_text
from ders_core.upcycle import DenseModel, FormRule, UpcycleConfig, Vanilla, predict
from ders_core.upcycle.forms import FORMS

VANILLA = Vanilla().label
"""What the shares in the table are of."""


def variants(config: UpcycleConfig, values: Mapping[str, Any]) -> dict[str, UpcycleConfig]:
    """Label -> the same configuration with each form at the chosen strength, vanilla first; and the
    chosen one last, if it is not one of these."""
    configs: dict[str, UpcycleConfig] = {}
    strengths = {  # of an emptied field, what it began with
        name: usual if values.get(name) is None else values[name]
        for name, usual in usual_strengths().items()
    }
    names = sorted(FORMS, reverse=True)
    for name in sorted(names, key=lambda name: name != Vanilla.name):
        form = form_of({**strengths, "form": name}, config.form("up"))
        variant = config.model_copy(update={"forms": (FormRule(form=form),)})
        configs[variant.label] = variant
    if values["form"] == MIXED:
        configs.setdefault(config.label, config)
    return configs


def comparison_table(dense: DenseModel, choices: Mapping[str, UpcycleConfig]) -> pd.DataFrame:
    """form, added values, bytes on disk, bytes in memory while it is trained (the sum of weights,
    gradients, optimizer); and of the first three the share of vanilla's.

    Raises RecipeError if a configuration does not fit the model.
    """
    rows = []
    for label, config in choices.items():
        sizes = predict(dense, config)
        memory = (sizes.parameter_bytes, sizes.gradient_bytes, sizes.optimizer_bytes)
        rows.append((label, sizes.added, sizes.packed_bytes, sum(memory), *memory))
    columns = ["form", "added", "disk", "memory", "weights", "gradients", "optimizer"]
    table = pd.DataFrame(rows, columns=columns)
    vanilla = table[table["form"] == VANILLA].iloc[0]
    for name in ("added", "disk", "memory"):
        table[f"{name}_share"] = table[name] / vanilla[name]
    return table


def sentence(table: pd.DataFrame, config: UpcycleConfig) -> str:
    """What the chosen form adds, in one sentence."""
    chosen = table[table["form"] == config.label].iloc[0]
    if config.label != VANILLA:
        return (
            f"{strong(config.label)} adds {count_text(chosen['added'])} parameters, "
            f"{share_text(chosen['added_share'])} of what vanilla adds."
        )
    lightest = table.sort_values("added").iloc[0]
    return (
        f"**vanilla** adds {count_text(chosen['added'])} parameters; {lightest['form']} would add "
        f"{count_text(lightest['added'])}, {share_text(lightest['added_share'])} of that."
    )


def scaled(table: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """The table as the page shows it, with the units of its counts and bytes; shares in percent."""
    largest = float(table[["disk", "memory"]].to_numpy().max())
    count, count_unit = (1e9, "B") if float(table["added"].max()) >= 1e9 else (1e6, "M")
    size, size_unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    shown = table.copy()
    shown["added"] = table["added"] / count
    for name in ("disk", "memory", "weights", "gradients", "optimizer"):
        shown[name] = table[name] / size
    for name in ("added_share", "disk_share", "memory_share"):
        shown[name] = 100 * table[name]
    return shown, count_unit, size_unit
