"""What is imported before anybody asks for it."""

from __future__ import annotations

import pytest

from ders_core.ui import ahead


def test_the_rest_is_imported_though_the_demo_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported = []
    monkeypatch.setattr(ahead, "_of_first_page", lambda: imported.append("first"))
    monkeypatch.setattr(ahead, "_of_other_pages", lambda: imported.append("others"))
    monkeypatch.setattr(ahead, "VISITOR", 0)

    def then() -> None:
        raise PermissionError("the workspace")

    with pytest.raises(PermissionError, match="the workspace"):
        ahead._import(then)
    assert imported == ["first", "others"]
