"""Which jobs of a store, and in which order, as SQL that the store's indexes answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Order = Literal["newest", "oldest", "name", "KL", "size"]
ORDERS: tuple[Order, ...] = get_args(Order)

PAGE = 25
"""Jobs that a page shows at a time."""


def _value(column: str, path: str) -> str:
    """A value in a column's JSON."""
    return f"CASE WHEN json_valid({column}) THEN json_extract({column}, '$.{path}') END"


CHECKPOINT = _value("spec", "checkpoint")
NAME = _value("spec", "name")
SORTED: dict[Order, str] = {
    "newest": "id DESC",
    "oldest": "id",
    "name": "title COLLATE NOCASE, id DESC",
    "KL": "kl NULLS LAST, id DESC",
    "size": "size NULLS LAST, id DESC",
}
"""By KL and size the smallest first, and last the jobs without."""


@dataclass(frozen=True)
class Which:
    """The jobs that meet every condition. kinds, states: None for all. name: a part of the title
    or of a tag, in small or capital letters where they are of ASCII; "" for all. checkpoint: the
    parameter of that name; None for all."""

    kinds: tuple[str, ...] | None = None
    states: tuple[str, ...] | None = None
    name: str = ""
    checkpoint: str | None = None

    def condition(self) -> tuple[str, dict[str, Any]]:
        """What follows WHERE, and the values of its parameters."""
        words: list[str] = ["1"]
        values: dict[str, Any] = {}
        for column, among in (("kind", self.kinds), ("state", self.states)):
            if among is not None:
                named = {f"{column}{number}": value for number, value in enumerate(among)}
                words.append(f"{column} IN ({', '.join(f':{name}' for name in named)})")
                values |= named
        if self.name:
            words.append("(title LIKE :name ESCAPE '\\' OR tags LIKE :name ESCAPE '\\')")
            values["name"] = f"%{_literal(self.name)}%"
        if self.checkpoint is not None:
            words.append(f"{CHECKPOINT} = :checkpoint")
            values["checkpoint"] = self.checkpoint
        return " AND ".join(words), values


def _literal(text: str) -> str:
    """A text whose signs stand for themselves in LIKE."""
    for sign in ("\\", "%", "_"):
        text = text.replace(sign, f"\\{sign}")
    return text
