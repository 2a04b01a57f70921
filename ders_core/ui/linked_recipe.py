"""The current recipe in a page's address, by its name: a preset, or one of the workspace."""

from __future__ import annotations

import streamlit as st

from ders_core.ui import kept, session
from ders_core.ui.recipe_files import named_recipe

ADDRESS = "recipe"
"""The parameter of a page's address that holds the name."""

_FOLLOWED = "studio_recipe_followed"


def follow_named_recipe() -> None:
    """In a new session, use the recipe that the address names, for this session alone; then let the
    address name the current one, unless it was changed since it had its name."""
    if _FOLLOWED not in st.session_state:
        st.session_state[_FOLLOWED] = True
        linked = named_recipe(st.query_params.get(ADDRESS, ""))
        if linked is not None:
            session.follow_recipe(linked)
    recipe = session.recipe()
    is_named = named_recipe(recipe.name) == recipe
    kept.show_in_address(ADDRESS, recipe.name if is_named else None)
