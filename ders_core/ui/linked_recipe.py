"""The current recipe in a page's address: a preset or a saved one by its name, others as text."""

from __future__ import annotations

import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache

import streamlit as st

from ders_core.errors import DersError, RecipeError
from ders_core.recipe import Recipe
from ders_core.ui import kept, session
from ders_core.ui.plain import show_error
from ders_core.ui.recipe_files import named_recipe, read_recipe

ADDRESS = "recipe"
"""The parameter of a page's address that holds the name."""

TEXT_ADDRESS = "recipe-text"
"""The parameter that holds the whole of a recipe that was changed and not saved, compressed."""

LONGEST = 6000
"""Characters of it: servers and proxies refuse addresses of more than 8 kB."""

MOST_LINKED = 1 << 15
"""Characters of the text that it stands for: one of a thousand equal rules has few when compressed,
and takes all sessions' time to read."""

TOO_LONG = "too long for the page's address: save it, and a copied link names it"

_FOLLOWED = "studio_recipe_followed"
_REFUSED = "studio_recipe_refused"
"""Why the recipe of a link was not taken, and the recipe that was current then."""


def follow_linked_recipe() -> None:
    """In a new session, use the recipe that the address holds, for this session alone; then let the
    address hold the current one."""
    if _FOLLOWED not in st.session_state:
        st.session_state[_FOLLOWED] = True
        try:
            linked = _linked()
        except DersError as error:
            st.session_state[_REFUSED] = str(error), session.recipe()
        else:
            if linked is not None:
                session.follow_recipe(linked)
    recipe = session.recipe()
    is_named = _is_named(recipe)
    kept.show_in_address(ADDRESS, recipe.name if is_named else None)
    kept.show_in_address(TEXT_ADDRESS, None if is_named else packed_text(recipe.to_yaml()))


def show_refused_link() -> None:
    """Say why the recipe of a link was not taken, until another recipe is current."""
    if _REFUSED not in st.session_state:
        return
    problem, recipe = st.session_state[_REFUSED]
    if recipe == session.recipe():
        show_error(problem, "The recipe of the link was not taken: ")
    else:
        del st.session_state[_REFUSED]


def fits_address(recipe: Recipe) -> bool:
    """Whether a copied link has this recipe, saved or not."""
    return _is_named(recipe) or packed_text(recipe.to_yaml()) is not None


def _is_named(recipe: Recipe) -> bool:
    """Whether its name alone stands for the recipe."""
    try:
        return named_recipe(recipe.name) == recipe
    except RecipeError:  # of a file that cannot be used
        return False


def _linked() -> Recipe | None:
    """What the address holds; None if it holds no recipe that is known. Raises as `read_recipe`,
    and as `named_recipe`."""
    packed = st.query_params.get(TEXT_ADDRESS)
    if packed is None:
        return named_recipe(st.query_params.get(ADDRESS, ""))
    return read_recipe(unpacked_text(packed), MOST_LINKED)


@lru_cache(maxsize=64)
def packed_text(text: str) -> str | None:
    """A text as a parameter of an address; None if either is too long."""
    if len(text) > MOST_LINKED:
        return None
    packed = urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    return packed if len(packed) <= LONGEST else None


def unpacked_text(packed: str) -> str:
    """The text of `packed_text`. Raises RecipeError of anything else, and of more than
    MOST_LINKED characters; no more than these are ever in memory."""
    reader = zlib.decompressobj()
    try:
        if len(packed) > LONGEST:
            raise ValueError(f"it has more than {LONGEST} characters")
        content = urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        text = reader.decompress(content, MOST_LINKED).decode()
    except (ValueError, zlib.error) as error:
        raise RecipeError(f"the link is damaged ({error}); copy it again, whole") from error
    if not reader.eof:
        raise RecipeError(
            f"the link is cut, or its recipe has more than {MOST_LINKED} characters; copy it "
            "again, whole"
        )
    return text
