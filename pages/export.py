"""Export: take a finished run home, packed, in its original layout, or as a patch."""

import re
import shlex
from pathlib import Path

import streamlit as st

from ders_core.errors import DersError
from ders_core.jobs import Job
from ders_core.jobs.kinds.export import ExportResult
from ders_core.jobs.results import PackedResult, packed_result
from ders_core.ui import frame, reads, session
from ders_core.ui.job_progress import job_panel, submit
from ders_core.units import bytes_text, share_text

FORMS = {
    "packed": (
        "Packed DeRS checkpoint",
        "Small. Loaded by transformers with ders_core, which synthesizes the weights on the way.",
        "from ders_core.hf import load_model\n\nmodel = load_model({path!r})",
        "python",
    ),
    "dense": (
        "Original layout",
        "As large as the original. Loaded by anything that loads the original.",
        'from transformers import {auto}\n\nmodel = {auto}.from_pretrained({path!r}, dtype="auto")',
        "python",
    ),
    "patch": (
        "Patch",
        "They travel alone, are applied to a base that is held elsewhere, refused on any other, "
        "and rolled back.",
        "ders apply {base} {path} OUT\nders rollback OUT BASE_AGAIN",
        "bash",
    ),
}
SUFFIXES = {"packed": "ders", "dense": "synthesized", "patch": "patch"}


def finished_runs() -> list[Job]:
    """Whatever has a packed checkpoint to give, the newest first."""
    return [job for job in session.job_store().list(states=["done"]) if packed_result(job)]


def free_path(name: str) -> Path:
    """A path below the workspace's exports that is not taken."""
    clean = re.sub(r"[^\w.+]+", "-", name).strip("-") or "export"
    path, number = session.workspace().exports / clean, 2
    while path.exists():
        path, number = session.workspace().exports / f"{clean}-{number}", number + 1
    return path


def card(job: Job, result: PackedResult, form: str) -> None:
    title, words, code, language = FORMS[form]
    with st.container(border=True, height="stretch"):
        st.markdown(f"**{title}**")
        st.markdown(f"{size_text(result, form)}. {words}")
        path = st.text_input(
            "Directory to write",
            str(free_path(f"{result_name(job)}-{SUFFIXES[form]}")),
            key=f"out_{form}_{job.id}",
            help="It must not exist yet and lie below: "
            + ", ".join(str(root) for root in session.workspace().roots),
        )
        base = None
        if form == "patch":
            base = st.text_input(
                "Base",
                placeholder="any packed checkpoint with the same bases",
                key=f"base_{job.id}",
                help="A directory that the patch will be applied to, for instance the dense parent:"
                " what it holds byte for byte need not travel. Empty: the patch is for packed "
                "checkpoints that have the same bases.",
            )
        if st.button("Export", key=f"export_{form}", type="primary"):
            try:
                target = session.workspace().check_allowed(Path(path or ""))
                if target.exists():
                    raise DersError(f"{target} exists already; choose another name")
                submit(
                    "export",
                    {
                        "packed": result.packed,
                        "out": str(target),
                        "format": form,
                        "base": str(session.workspace().check_allowed(Path(base)))
                        if base
                        else None,
                        "quality": result.measured.to_dict() if result.measured else None,
                    },
                    f"Export {target.name}",
                )
            except DersError as error:
                st.error(str(error))
        if language == "bash":
            code = code.format(path=shlex.quote(path), base=shlex.quote(base) if base else "BASE")
        else:
            code = code.format(path=path, auto=reads.auto_class(result.packed))
        st.code(code, language=language, wrap_lines=True)


def size_text(result: PackedResult, form: str) -> str:
    """What the form takes, as it is known before it is written."""
    if form == "dense":
        return f"{bytes_text(result.bytes_before)} of weight files"
    if form == "packed":
        return f"{bytes_text(result.bytes_after)} of weight files"
    try:
        return f"{bytes_text(reads.delta_bytes(result.packed))} of deltas"
    except DersError as error:  # the run's directory was removed or damaged since
        return str(error)


def result_name(job: Job) -> str:
    return str(job.spec.get("name") or job.title)


@st.fragment(run_every=1.5)
def exports() -> None:
    """Exports under way and done, with what was checked."""
    jobs = session.job_store().list(kind="export")
    if jobs:
        st.markdown("##### Exports")
    for job in jobs:
        job_panel(job)
        result = ExportResult.of(job)
        if result is not None:
            st.code(result.out, language=None)
            for check in result.checks:
                mark = ":green[✓]" if check.ok else ":red[✗]"
                st.caption(f"{mark} {check.name}: {check.detail}")


frame.need_frame()
done = finished_runs()
if not done:
    with st.container(border=True):
        st.markdown("**Nothing to export yet.** A finished run can be taken home from here.")
        st.page_link("pages/runs.py", label="Start a run", icon=":material/play_arrow:")
else:
    by_id = {job.id: (job, result) for job in done if (result := packed_result(job))}
    chosen = st.selectbox(
        "Run",
        list(by_id),
        format_func=lambda job_id: (
            f"{result_name(by_id[job_id][0])} · {bytes_text(by_id[job_id][1].bytes_after)} · "
            f"{share_text(by_id[job_id][1].ratio)} of original"
        ),
        key="export_run",
    )
    columns = st.columns(len(FORMS))
    for column, form in zip(columns, FORMS, strict=True):
        with column:
            card(*by_id[chosen], form)
    st.caption(
        "A model card with recipe, sizes, measured quality and how to load is written beside the "
        "weights; every tensor is read back and checked."
    )
exports()
