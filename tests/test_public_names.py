"""The public names: what they are, that each is documented, and that none is imported early."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ders_core

PUBLIC = {
    *("Analysis", "analyze", "Summary", "summarize"),
    *("Checkpoint", "ExpertGroup", "open_checkpoint"),
    *("Codec", "make_codec", "Recipe", "Rule", "load_recipe", "presets"),
    *("Extent", "Forecast", "forecast"),
    *("Plan", "resolve", "Report", "compress", "synthesize", "Verification", "verify", "export"),
    *("apply_patch", "rollback", "push"),
    *("DersError", "CheckpointError", "CodecError", "RecipeError", "OutputError"),
    *("EvaluationError", "JobError", "Cancelled"),
}
"""A name that is added or taken away here is a change for users: it belongs in the CHANGELOG."""


def test_these_names_are_public() -> None:
    assert set(ders_core.__all__) == PUBLIC
    assert list(ders_core.__all__) == sorted(ders_core.__all__)
    assert set(dir(ders_core)) >= PUBLIC


def test_each_is_documented_and_found_where_the_type_checker_finds_it() -> None:
    text = Path(ders_core.__file__).read_text(encoding="utf-8")
    promised = {
        alias.name: node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ders_core.")
        for alias in node.names
        if node.module != "ders_core.later"
    }
    assert promised.keys() == PUBLIC
    for name, module in promised.items():
        value = getattr(ders_core, name)
        assert value is getattr(sys.modules[str(module)], name)
        assert (value.__doc__ or "").strip(), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ders_core, "decompress")


def test_importing_the_package_or_its_names_imports_nothing_heavy() -> None:
    code = """
import sys, ders_core
print([name for name in ("torch", "numpy", "pydantic") if name in sys.modules])
from ders_core import *
heavy = ("torch", "numba", "scipy", "pandas", "dask", "transformers")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
