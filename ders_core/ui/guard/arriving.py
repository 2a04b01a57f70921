"""What a page shows does not move while it arrives.

Streamlit draws a grey bar, 40 px high and 16 px wide, in place of each kind of element whose code
the browser does not have yet. Until the server has named a first element it draws no sidebar, and a
narrow page. What comes later pushes the rest aside. So sidebar and page have their places from the
start, and a new part of a page is shown once the browser has the code of all that stands in it and
above it.
"""

from __future__ import annotations

LONGEST = 8000
"""Milliseconds that something waits at most for code."""

QUIET = 60
"""Milliseconds for which a part of a page must hold no bar: its elements come one by one."""

GROWING = 400
"""The same of the last part, while the server may still add to it: if that is busy, its elements
come late."""

BAR = 40
"""Pixels: the height of Streamlit's bar where an element has no place of its own. What has one,
such as a plot, is not waited for: it moves nothing when it comes."""

SIDEBAR = 250
"""Pixels: the width of the sidebar, unless a visitor has changed or closed it."""

NARROW = 768
"""Pixels. In a window of that width the sidebar lies above the page, and is closed at first."""

STYLE = f"""<style>
@media (min-width: {NARROW + 1}px) {{
  [data-testid="stAppViewContainer"]:not(:has(> [data-testid="stSidebar"])) {{
    padding-left: var(--sidebar, {SIDEBAR}px);
  }}
}}
[data-testid="stMainBlockContainer"] {{ max-width: none !important; }}
[data-waits], [data-waits] * {{ visibility: hidden !important; }}
</style>"""
"""Of pages that arrive."""

SCRIPT = f"""{{
const root = document.documentElement;
const closed = localStorage.getItem("stSidebarCollapsed-") === "true";
const width = closed ? 0 : parseInt(localStorage.getItem("sidebarWidth"));
if (closed || width) root.style.setProperty("--sidebar", `${{width}}px`);
const part = (name) => `[data-testid="${{name}}"]`;
const bar = part("stSkeleton"), element = part("stElementContainer");
const blocks = `:is(${{part("stMainBlockContainer")}}, ${{part("stBottomBlockContainer")}}) > `
    + `${{part("stVerticalBlock")}} > *`;
const timers = new WeakMap(), shown = new WeakSet();
const show = (block) => {{
    block.removeAttribute("data-waits");
    shown.add(block);
}};
const within = (block, milliseconds, name) => {{
    const own = timers.get(block) ?? {{}};
    timers.set(block, own);
    own[name] ??= setTimeout(show, milliseconds, block);
}};
const forget = (block, name) => {{
    const own = timers.get(block);
    clearTimeout(own[name]);
    own[name] = null;
}};
const state = "data-test-script-state";
const mayGrow = (block) => !block.nextElementSibling && block.closest(`[${{state}}="running"]`);
const lacks = (block) => [...block.querySelectorAll(bar)]
    .some((found) => found.closest(element).clientHeight <= {BAR});
const look = () => {{
    let lacking = false;
    for (const block of document.querySelectorAll(blocks)) {{
        if (shown.has(block)) continue;
        lacking ||= lacks(block);
        if (!lacking && block.matches(element)) show(block);
        else {{
            block.setAttribute("data-waits", "");
            within(block, {LONGEST}, "last");
            if (lacking) ["growing", "quiet"].forEach((name) => forget(block, name));
            else if (mayGrow(block)) within(block, {GROWING}, "growing");
            else within(block, {QUIET}, "quiet");
        }}
    }}
}};
new MutationObserver(look)
    .observe(root, {{childList: true, subtree: true, attributeFilter: [state]}});
}}"""
"""What was shown once is never hidden again."""
