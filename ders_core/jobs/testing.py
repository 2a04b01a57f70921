"""What every kind of job must hold. A distribution with a kind of its own inherits these tests:

from ders_core.jobs.testing import KindTests

class TestMyKind(KindTests):
    kind = MyKind()
    parameters = {"path": "/somewhere"}
    results = ({"count": 3},)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ders_core.errors import JobError
from ders_core.jobs.kind import KINDS, Kind

HEAVY = ("torch", "transformers", "dask", "distributed", "pandas", "streamlit")
"""Packages that a kind's file must import inside `run` only."""


class KindTests:
    """kind: the one to test. parameters: with every required field. results: stored results as
    JSON, the newest first; each must stay readable for as long as stores may hold it."""

    kind: Kind[Any, Any]
    parameters: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]

    def test_the_kind_is_found_by_its_name(self) -> None:
        assert KINDS[self.kind.name] is type(self.kind)

    def test_steps_are_named_once_each(self) -> None:
        steps = self.kind.steps
        assert steps
        assert all(steps)
        assert len(set(steps)) == len(steps)

    def test_parameters_survive_json(self) -> None:
        spec = self.kind.parse(self.parameters)
        text = json.dumps(spec.model_dump(mode="json"))
        assert self.kind.parse(json.loads(text)) == spec

    def test_the_title_is_one_line(self) -> None:
        title = self.kind.title(self.kind.parse(self.parameters))
        assert title.strip() == title != ""
        assert title.isprintable()

    def test_an_unknown_parameter_is_refused_in_one_sentence(self) -> None:
        sentence = _refusal(self.kind, {**self.parameters, "no_such_parameter": 1})
        assert repr(self.kind.name) in sentence
        assert "'no_such_parameter'" in sentence
        assert "\n" not in sentence

    def test_each_required_parameter_is_named_when_it_is_missing(self) -> None:
        for name, field in self.kind.spec.model_fields.items():
            if field.is_required():
                rest = {key: value for key, value in self.parameters.items() if key != name}
                assert repr(name) in _refusal(self.kind, rest)

    def test_results_survive_json(self) -> None:
        assert self.results
        for stored in self.results:
            result = self.kind.result.model_validate(stored)
            written = json.loads(json.dumps(result.to_json()))
            assert self.kind.result.model_validate(written) == result
        newest = self.kind.result.model_validate(self.results[0])
        assert json.loads(json.dumps(newest.to_json())) == self.results[0]

    def test_results_load_without_fields_that_have_a_default(self) -> None:
        for name, field in self.kind.result.model_fields.items():
            if not field.is_required():
                older = {key: value for key, value in self.results[0].items() if key != name}
                result = self.kind.result.model_validate(older)
                assert getattr(result, name) == field.get_default(call_default_factory=True)

    def test_results_of_a_later_version_load(self) -> None:
        for stored in self.results:
            later = {**stored, "no_such_key": {"deep": [1]}}
            assert self.kind.result.model_validate(later) == self.kind.result.model_validate(stored)

    def test_pages_import_the_file_without_heavy_packages(self) -> None:
        code = (
            f"import sys, {type(self.kind).__module__}\n"
            f"print(*sorted({set(HEAVY)} & sys.modules.keys()))"
        )
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        assert child.stdout.split() == []


def _refusal(kind: Kind[Any, Any], parameters: Mapping[str, Any]) -> str:
    """The sentence with which the kind refuses parameters; "" if it takes them."""
    try:
        kind.parse(parameters)
    except JobError as error:
        return str(error)
    return ""
