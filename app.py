"""DeRS Studio: the frame of every page; and the server of these pages, with its guard.

`streamlit run` imports this file to find `app`, and runs it again for each visitor.
"""

import os

import streamlit as st

from ders_core.ui.guard.arriving import SIDEBAR

ICON = (  # a drawing of our own: Streamlit lets browsers fetch `:material/...:` from Google
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#2f8fbd">'
    '<path d="M12 2 22 8 12 14 2 8z"/>'
    '<path d="M4 11.5 12 16.3 20 11.5 22 12.8 12 18.8 2 12.8z" opacity=".75"/>'
    '<path d="M4 15.8 12 20.6 20 15.8 22 17 12 23 2 17z" opacity=".5"/></svg>'
)


def draw() -> None:
    """What a visitor sees."""
    st.set_page_config(
        page_title="DeRS Studio",
        page_icon=ICON,
        layout="wide",
        initial_sidebar_state=SIDEBAR,
    )
    with st.skeleton(height=360):  # the first visitor waits for our modules to be imported
        from ders_core.ui import frame
        from ders_core.ui.ahead import page_was_drawn
    page = frame.navigation()
    frame.sidebar()
    try:
        frame.show(page)
    finally:
        page_was_drawn()


def fault(error: Exception) -> bool:
    """How an error that nobody expected is shown."""
    from ders_core.ui import frame

    return frame.show_fault(error)


if __name__ == "__main__":
    draw()
else:
    from ders_core.jobs import default_workspace
    from ders_core.ui.ahead import import_ahead
    from ders_core.ui.demo import expect_demo, is_expected, take_over_demo
    from ders_core.ui.guard.start import protection
    from ders_core.ui.own_components import search_no_packages

    def make_ahead() -> None:
        """The demo, where a visitor is likely to ask for it."""
        workspace = default_workspace()
        if is_expected(workspace, os.environ):
            expect_demo(workspace)

    take_over_demo(default_workspace())
    search_no_packages()
    import_ahead(make_ahead)
    app = st.App(__file__, middleware=protection(), on_script_error=fault)
