"""The fields of a codec as recipes and manifests have them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel


def omit_defaults(
    model: BaseModel, fields: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """The fields of a model without those of these names that have their default."""
    usual = type(model).model_fields
    return {
        name: value
        for name, value in fields.items()
        if name not in names or value != usual[name].default
    }
