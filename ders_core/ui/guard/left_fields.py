"""A click on a link to a page waits until the server has taken up the text that was typed before,
in the field that the click leaves, or in one whose text was told just now.

Streamlit tells a field's text in a timer after the field is left, but the page's name at once. A
press that is shorter, such as a tap, or any press in a busy browser, tells the text last, as of the
page that was left: the server goes back to that page, and the click is lost. If the server hears
both before it has begun with either, it forgets the text. A run that begins may be of something
that refreshes itself, while the text waits too: so the click waits until the server rests.
"""

from __future__ import annotations

LONGEST = 5000
"""Milliseconds that a click waits at most, for a server that is busy or gone."""

REST = 250
"""Milliseconds without a run after which the server rests: what waits begins sooner."""

LINKS = ("stTopNavLink", "stTopNavDropdownLink", "stSidebarNavLink", "stPageLink-NavLink")
"""Streamlit's links to pages: of the navigation, in windows of any width, and of `st.page_link`."""

_SELECTOR = ", ".join(f'[data-testid="{link}"]' for link in LINKS)

SCRIPT = f"""{{
const fields = 'textarea, input[type="text"], input[type="number"]';
const state = "data-test-script-state";
let typed = false, told = "", waits = false, link = null, timer = 0, rest = 0;
const goOn = () => {{
    runs.disconnect();
    clearTimeout(timer);
    clearTimeout(rest);
    const followed = link;
    waits = false;
    link = null;
    if (followed) followed.click();
}};
const runs = new MutationObserver((changes) => {{
    clearTimeout(rest);
    if (changes.at(-1).target.getAttribute(state) !== "running") rest = setTimeout(goOn, {REST});
}});
const tells = (field) => {{ typed = false; told = field.value; }};
const waitFor = (field) => {{
    const app = document.querySelector(`[${{state}}]`), before = told;
    if (!typed || !app) return;
    tells(field);
    if (told === before) return;
    waits = true;
    runs.observe(app, {{attributes: true, attributeFilter: [state]}});
    clearTimeout(rest);
    clearTimeout(timer);
    timer = setTimeout(goOn, {LONGEST});
}};
addEventListener("focusin", (event) => {{
    if (event.target.matches(fields)) tells(event.target);
}}, true);
addEventListener("input", (event) => {{ typed = event.target.matches(fields); }}, true);
addEventListener("keydown", (event) => {{
    const sends = event.target.matches("input") || event.ctrlKey || event.metaKey;
    if (event.key === "Enter" && sends) waitFor(event.target);
}}, true);
addEventListener("focusout", (event) => waitFor(event.target), true);
addEventListener("click", (event) => {{
    const clicked = event.target.closest('{_SELECTOR}');
    if (!waits || !clicked || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    link = clicked;
}}, true);
}}"""
"""Enter, in a field of lines together with Ctrl, tells a text without leaving its field. A text is
told only if it is another one than before."""
