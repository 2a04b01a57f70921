"""Pages of the studio in Streamlit's own tester."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest


def on(app: AppTest, page: str) -> AppTest:
    app.switch_page(f"pages/{page}.py").run()
    assert not app.exception
    return app


def words(app: AppTest) -> str:
    """All text of the page."""
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.title)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def opened(app: AppTest, path: Path) -> AppTest:
    app.run()
    app.session_state["open_path"] = str(path)  # typed, whether or not it is in the list
    app.run()
    app.button(key="open").click().run()
    assert not app.exception
    return app
