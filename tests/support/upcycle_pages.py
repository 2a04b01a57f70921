"""The Upcycle page in a test: opened, with a dense model, and what it says."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest


def page(app: AppTest) -> AppTest:
    app.run()
    app.switch_page("pages/upcycle.py").run()
    assert not app.exception
    return app


def opened(app: AppTest, dense: Path) -> AppTest:
    page(app)
    app.session_state["up_path"] = str(dense)
    app.run()
    app.button(key="up_open").click().run()
    assert not app.exception
    return app
