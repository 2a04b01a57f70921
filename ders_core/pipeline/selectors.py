"""Whether what a recipe's rules select is in a checkpoint: what nothing has is a mistake."""

from __future__ import annotations

from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.errors import RecipeError
from ders_core.recipe import Recipe
from ders_core.recipe.numbers import parse_numbers, spell_numbers
from ders_core.recipe.rule import GroupRule


def check_layers(recipe: Recipe, checkpoint: Checkpoint) -> None:
    known = set(checkpoint.moe_layers)
    rules: list[tuple[str, GroupRule]] = [
        (f"rule {number}", rule) for number, rule in enumerate(recipe.rules, 1)
    ]
    rules += [
        (f"base_codec, rule {number},", rule) for number, rule in enumerate(recipe.base_codec, 1)
    ]
    for name, rule in rules:
        for layers in parse_numbers(rule.layers) or []:
            unknown = next((layer for layer in layers if layer not in known), None)
            if unknown is not None:
                raise RecipeError(
                    f"{name} names layer {unknown}, but the MoE layers of "
                    f"{checkpoint.path.name} are {spell_numbers(known)}"
                )


def check_experts(recipe: Recipe, groups: list[ExpertGroup]) -> None:
    most = max((group.shape[0] for group in groups), default=0)
    for number, rule in enumerate(recipe.rules, 1):
        for experts in parse_numbers(rule.experts) or []:
            if experts.stop > most:
                raise RecipeError(
                    f"rule {number} names expert {experts.stop - 1}, but the experts are "
                    f"0-{most - 1}"
                )


def check_others(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Names and layers are those of this checkpoint: what no tensor has is a mistake."""
    for number, rule in enumerate(recipe.others, 1):
        is_particular = bool(rule.names) or rule.layers != "all"
        if is_particular and not any(rule.selects(other) for other in checkpoint.others.values()):
            about = rule.names[0] if rule.names else f"layers {rule.layers}"
            raise RecipeError(
                f"others, rule {number} is about {about!r}, but {checkpoint.path.name} has no such "
                "tensor outside the experts that a codec could take"
            )
