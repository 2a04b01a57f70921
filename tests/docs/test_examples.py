"""Every example in the README and in docs/ does what the page says: Python, shell and YAML.

The shell examples start from a demo (`ders demo demo`), which `tests/demo` unpacks; here a tiny
model of the same layout stands in its place. `ders app` is started by the browser's tests.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from support.shell import ders

from ders_core.checkpoint.layouts import Layout
from ders_core.codecs import CODECS
from ders_core.codecs.testing import check_codec, examples_of
from ders_core.decompose.base import BASES
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.kind import KINDS, Result
from ders_core.jobs.worker import run_worker
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe
from ders_core.ui.recipe_table import menu
from ders_core.upcycle import UpcycleConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = (
    "ders demo",
    "ders app",
    "ders worker",
    "ders pilot",
    "ders push",
    "ders repair",
    "ders tune",
    "ders compress demo/moe packed --recipe tuned.yaml",
)
"""Commands that other tests run, and one that needs what such a command writes."""


def blocks(page: Path, language: str) -> list[str]:
    return [
        text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language
    ]


def run_python(page: Path) -> dict[str, object]:
    """All Python of a page in one namespace, which is returned."""
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    return names


def pages_with(language: str) -> list[object]:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


@pytest.fixture
def demo(
    tmp_path: Path,
    mixtral_dir: Path,
    dense_parent_dir: Path,
    tiny_text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An empty folder with what `ders demo demo` leaves in it."""
    shutil.copytree(mixtral_dir, tmp_path / "demo" / "moe")
    shutil.copytree(dense_parent_dir, tmp_path / "demo" / "dense")
    for name in ("calibration.txt", "heldout.txt"):
        (tmp_path / "demo" / name).write_text(4 * tiny_text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line: str) -> str:
    """One line of a shell, which must succeed; what it prints."""
    process = ders(*shlex.split(line, comments=True)[1:])
    assert process.returncode == 0, f"{line}\n{process.stderr}"
    return process.stdout


@pytest.mark.parametrize("page", pages_with("sh"))
def test_shell_examples_run(page: Path, demo: Path) -> None:
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            if line.startswith("ders ") and not line.startswith(ELSEWHERE):
                run_line(line)
        for place in demo.iterdir():  # the next block starts anew
            if place.name != "demo":
                shutil.rmtree(place) if place.is_dir() else place.unlink()


@pytest.mark.parametrize("page", pages_with("sh"))
def test_every_command_of_a_shell_example_is_one(page: Path) -> None:
    for line in "\n".join(blocks(page, "sh")).splitlines():
        if line.startswith("ders "):
            assert "Usage" in run_line(" ".join(line.split()[:2]) + " --help")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name in ("README.md", "format.md")], ids=str
)
def test_python_examples_run(page: Path, demo: Path) -> None:
    if page.name != "README.md":  # the README packs by itself
        run_line("ders compress demo/moe packed --recipe quantized-2bit")
    run_python(page)


def test_the_format_page_reads_what_the_package_reads(demo: Path) -> None:
    import torch
    from safetensors.torch import load_file

    run_line("ders compress demo/moe packed --recipe quantized-2bit")
    run_line("ders synthesize packed restored")
    synthesized = run_python(ROOT / "docs" / "format.md")["synthesized"]
    assert callable(synthesized)
    restored = load_file(Path("restored") / "model.safetensors")
    for layer in range(2):
        for projection, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            for expert in range(4):
                key = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
                assert torch.equal(synthesized("packed", layer, projection, expert), restored[key])


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_examples_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        keys = yaml.safe_load(block).keys()
        if "rules" in keys:
            Recipe.from_yaml(block)
        elif "forms" in keys:
            UpcycleConfig.from_yaml(block)
        else:
            Layout.model_validate(yaml.safe_load(block))


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_names_every_package() -> None:
    """The tree has a line for each folder of the library, and the page stays short."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for package in (ROOT / "ders_core").iterdir():
        if (package / "__init__.py").is_file():
            assert f" {package.name}/ " in text, package.name


def test_the_page_of_additions_adds_things(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its codec, base and kind of job work where users meet them; the codec passes its suite."""
    monkeypatch.setenv("DERS_ROOTS", str(demo))
    try:
        names = run_python(ROOT / "docs" / "extending.md")
        for codec in examples_of(CODECS.find("rowmean")):
            check_codec(codec)
        recipe = Recipe.from_yaml("name: toy\nbase: midrange\nrules: [{codec: rowmean}]\n")
        plan = resolve(recipe, open_checkpoint("demo/moe"))
        assert compress("demo/moe", "packed", recipe).bytes_after == plan.bytes_after
        assert verify("packed", "demo/moe").ok
        synthesize("packed", "restored")
        assert "row means" in menu()
        store = JobStore(Workspace(demo / "workspace").store_path)
        store.submit("count", {"checkpoint": "demo/moe"}, "Count")
        run_worker(Workspace(demo / "workspace"), stop_when_idle=True)
        result_class = names["CountResult"]
        assert isinstance(result_class, type)
        assert issubclass(result_class, Result)
        result = result_class.of(store.list(kind="count")[0])
        assert result is not None
        assert result.to_json() == {"tensors": len(open_checkpoint("demo/moe").tensors)}
    finally:
        for registry, name in ((CODECS, "rowmean"), (BASES, "midrange"), (KINDS, "count")):
            if name in registry:
                registry.unregister(name)


def test_the_map_names_files_that_exist() -> None:
    """Paths of the library in backticks, and every package has its row."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[\w]+/)+(?:\w+\.(?:py|yaml))?)`", text):
        assert (ROOT / "ders_core" / name).exists() or (ROOT / name).exists(), name
    for package in (ROOT / "ders_core").iterdir():
        if (package / "__init__.py").is_file():
            assert f"`{package.name}/`" in text, package.name
    words = re.findall(r"^\| ([a-z, ]+) \|", text[text.index("## Words") :], re.MULTILINE)
    assert len(words) <= 31  # a glossary that is read: thirty words and the head of the table
