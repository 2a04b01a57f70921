"""Which two models are asked: those of a finished run, or two directories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.address import is_address
from ders_core.files.side_files import TOKENIZER_FILES
from ders_core.jobs.workspace import place_label
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.finished_jobs import finished_jobs, job_label, of_other_versions
from ders_core.ui.job_pages import job_page
from ders_core.ui.plain import plain

KINDS = ("run", "repair")
"""The kinds of job that compress an original."""

DIRECTORIES = 0
"""Stands for no job: two directories are named."""


@dataclass(frozen=True)
class Pair:
    """Paths as typed or as a job has them. name: of the compressed model."""

    packed: str
    original: str
    name: str = ""


def choose_pair() -> Pair:
    """The widgets that choose it."""
    page = job_page("asked", KINDS, ["done"], ("newest", "oldest", "name", "size"))
    jobs = finished_jobs(page, kept.value("ask_run", DIRECTORIES))
    chosen = DIRECTORIES
    if jobs:
        labels = {job_id: job_label(*each) for job_id, each in jobs.items()}
        labels[DIRECTORIES] = "two directories …"
        chosen = kept.field(
            st.selectbox,
            "Compressed model",
            key="ask_run",
            start=next(iter(jobs)),
            options=list(labels),
            format_func=labels.__getitem__,
            help="A finished run or repair, with the original that it was made of; or any packed "
            "checkpoint.",
        )
    if chosen != DIRECTORIES:
        job, result = jobs[chosen]
        original = job.spec.get("original") or job.spec["checkpoint"]
        st.caption(plain(f"Its original: {place_label(original)}"))
        return Pair(result.packed, original, job.title)
    if not page.total:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown("**No run has finished yet.** Start one, or name two directories.")
            st.page_link("pages/runs.py", label="Start a run", icon=":material/play_arrow:")
    elif page.jobs and not jobs:
        st.info(of_other_versions(page, "asked"))
    return _directories()


def _directories() -> Pair:
    """Two paths; what is open is filled in where it fits."""
    source = frame.opened_or_none()
    path = "" if source is None else str(source.path)
    is_packed = source is not None and source.packed_bytes is not None
    left, right = st.columns(2)
    packed = kept.field(
        left.text_input,
        "Packed checkpoint",
        key="ask_packed",
        start=path if is_packed else "",
        placeholder="a directory",
    )
    original = kept.field(
        right.text_input,
        "Its original",
        key="ask_original",
        start="" if is_packed else path,
        placeholder="a directory",
    )
    return Pair(packed.strip(), original.strip())


def checked(pair: Pair) -> Pair:
    """The same with paths that a job may read. Raises DersError in one sentence if there is none,
    it is no checkpoint on this machine, or has no tokenizer."""
    paths = []
    for role, place in (("packed checkpoint", pair.packed), ("original", pair.original)):
        if not place:
            raise DersError(f"name the {role}: a directory")
        if is_address(place):
            raise DersError(f"the {role} {place} is not on this machine; download it to ask it")
        path = session.workspace().check_allowed(place)
        reads.checkpoint(str(path))
        if not has_tokenizer(path):
            raise DersError(
                f"{path} has no tokenizer, so it cannot be asked; copy the original's tokenizer "
                "files next to its weights"
            )
        paths.append(str(path))
    packed, original = paths
    return Pair(packed, original, pair.name or place_label(packed))


def has_tokenizer(path: Path) -> bool:
    """Whether anything in a model's directory may be its tokenizer."""
    files = [file.name for file in path.iterdir() if file.is_file()]
    return any(name in TOKENIZER_FILES or "token" in name for name in files)
