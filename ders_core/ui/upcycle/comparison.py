"""What the forms of upcycling would take, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ders_core.ui.upcycle.choices import DROP_RATE, MIXED, RANK, form_of
from ders_core.units import count_text, share_text
from ders_core.upcycle import DenseModel, FormRule, UpcycleConfig, predict

VANILLA = "vanilla"


def variants(config: UpcycleConfig, values: Mapping[str, Any]) -> dict[str, UpcycleConfig]:
    """Label -> the same configuration with vanilla, SM and LM of the chosen strengths; and the
    chosen one last, if it is none of these."""
    found: dict[str, UpcycleConfig] = {}
    strengths = {
        name: own if (own := values[name]) is not None else start  # an emptied field says nothing
        for name, start in (("rank", RANK), ("drop_rate", DROP_RATE))
    }
    for kind in ("vanilla", "sparse", "lowrank"):
        form = form_of({**values, **strengths, "form": kind}, config.form("up"))
        rule = FormRule.model_validate({"form": form.model_dump()})
        own = config.model_copy(update={"forms": (rule,)})
        found[own.label] = own
    if values["form"] == MIXED:
        found.setdefault(config.label, config)
    return found


def table(dense: DenseModel, choices: Mapping[str, UpcycleConfig]) -> pd.DataFrame:
    """form, added values, bytes on disk, bytes in memory while it is trained (their parts are
    weights, gradients, optimizer); and of the first three the share of vanilla's.

    Raises RecipeError if a configuration does not fit the model.
    """
    rows = []
    for label, config in choices.items():
        found = predict(dense, config)
        parts = (found.parameter_bytes, found.gradient_bytes, found.optimizer_bytes)
        rows.append((label, found.added, found.packed_bytes, sum(parts), *parts))
    columns = ["form", "added", "disk", "memory", "weights", "gradients", "optimizer"]
    made = pd.DataFrame(rows, columns=columns)
    vanilla = made[made["form"] == VANILLA].iloc[0]
    for name in ("added", "disk", "memory"):
        made[f"{name}_share"] = made[name] / vanilla[name]
    return made


def sentence(made: pd.DataFrame, config: UpcycleConfig) -> str:
    """What the chosen form adds, in one sentence."""
    chosen = made[made["form"] == config.label].iloc[0]
    if config.label != VANILLA:
        return (
            f"**{config.label}** adds {count_text(chosen['added'])} parameters, "
            f"{share_text(chosen['added_share'])} of what vanilla adds."
        )
    lightest = made.sort_values("added").iloc[0]
    return (
        f"**vanilla** adds {count_text(chosen['added'])} parameters; {lightest['form']} would add "
        f"{count_text(lightest['added'])}, {share_text(lightest['added_share'])} of that."
    )


def scaled(made: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """The table as it is shown, with the units of its counts and its bytes; shares in percent."""
    largest = float(made[["disk", "memory"]].to_numpy().max())
    count, count_unit = (1e9, "B") if float(made["added"].max()) >= 1e9 else (1e6, "M")
    size, size_unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    shown = made.copy()
    shown["added"] = made["added"] / count
    for name in ("disk", "memory", "weights", "gradients", "optimizer"):
        shown[name] = made[name] / size
    for name in ("added_share", "disk_share", "memory_share"):
        shown[name] = 100 * made[name]
    return shown, count_unit, size_unit
