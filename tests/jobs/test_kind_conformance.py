"""Every registered kind of job holds what `ders_core.jobs.testing` asks for."""

from __future__ import annotations

import pytest
from support.stored_results import PARAMETERS, RESULTS

from ders_core.jobs.kind import KINDS
from ders_core.jobs.testing import KindTests


def test_every_kind_is_covered() -> None:
    assert list(KINDS) == sorted(PARAMETERS) == sorted(RESULTS)


@pytest.fixture(params=sorted(PARAMETERS), scope="class")
def _kind(request: pytest.FixtureRequest) -> None:
    name = request.param
    request.cls.kind = KINDS[name]()
    request.cls.parameters = PARAMETERS[name]
    request.cls.results = RESULTS[name]


@pytest.mark.usefixtures("_kind")
class TestKinds(KindTests):
    """The same tests over every kind."""
