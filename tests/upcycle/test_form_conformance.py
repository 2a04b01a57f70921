"""Every registered form passes the checks that ship with the package."""

from __future__ import annotations

import pytest

from ders_core.upcycle.forms import FORMS, Form
from ders_core.upcycle.testing import CHECKS, Check

EXAMPLES = [example for form in FORMS.values() for example in form.examples()]


def test_the_forms_of_the_package_are_registered() -> None:
    assert list(FORMS) == ["lowrank", "sparse", "vanilla"]


@pytest.mark.parametrize("form", EXAMPLES, ids=lambda form: form.label)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Check, form: Form) -> None:
    check(form)
