"""Export: write a finished run packed, in its original layout, or as a patch."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.address import is_address
from ders_core.files.missing import cleaned
from ders_core.files.output import free_bytes
from ders_core.jobs import Job, Which
from ders_core.jobs.kinds.export import ExportResult
from ders_core.jobs.results import PackedResult, packed_kinds
from ders_core.pipeline.formats import Format
from ders_core.pipeline.original_form import DTYPES
from ders_core.runtime.modes import CACHE_BYTES
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.decision_report import report_button
from ders_core.ui.finished_jobs import finished_jobs, job_label, of_other_versions
from ders_core.ui.hub_push import push_section
from ders_core.ui.job_pages import job_page
from ders_core.ui.job_progress import ENDED, active_jobs, ended_count, job_panel, submit
from ders_core.ui.plain import plain, show_error
from ders_core.units import bytes_text

Asked = dict[str, str | None]  # what a job is told beside the format, by the names of its spec


def packed_size(result: PackedResult) -> str:
    return f"{bytes_text(result.bytes_after)} of weight files"


def original_size(result: PackedResult) -> str:
    return f"{bytes_text(result.bytes_before)} of weight files"


def patch_size(result: PackedResult) -> str:
    try:
        return f"{bytes_text(reads.delta_bytes(result.packed))} of deltas"
    except DersError as error:  # the run's directory was removed or damaged since
        return plain(error)


def packed_code(result: PackedResult, path: str, asked: Asked) -> str:
    return f"from ders_core.hf import load_model\n\nmodel = load_model({path!r})"


def original_code(result: PackedResult, path: str, asked: Asked) -> str:
    auto = reads.auto_class(result.packed)
    load = f'model = {auto}.from_pretrained({path!r}, dtype="auto")'
    return f"from transformers import {auto}\n\n{load}"


def patch_code(result: PackedResult, path: str, asked: Asked) -> str:
    base = asked.get("base")
    place = shlex.quote(base) if base else "BASE"
    return f"ders apply {place} {shlex.quote(path)} OUT\nders rollback OUT BASE_AGAIN"


def ask_nothing(job: Job) -> Asked:
    """The format needs nothing else."""
    return {}


def ask_dtype(job: Job) -> Asked:
    dtype = kept.field(
        st.selectbox,
        "Dtype of the weights",
        key=f"dtype_{job.id}",
        start="auto",
        options=list(DTYPES),
        help="auto: the original's. Base and delta are added in float32 and rounded once: where "
        "experts differ little from their base, float32 keeps what 16 bits round away, in twice "
        "the bytes.",
    )
    return {"dtype": dtype}


def ask_base(job: Job) -> Asked:
    base = kept.field(
        st.text_input,
        "Base",
        key=f"base_{job.id}",
        start="",
        placeholder="none",
        help="A directory that the patch will be applied to, for instance the dense parent: "
        "tensors that it holds byte for byte need not travel. Empty: the patch is for packed "
        "checkpoints that have the same bases.",
    )
    return {"base": base}


@dataclass(frozen=True)
class FormatCard:
    """How one export format is shown. suffix: of the suggested directory. size: bytes as text,
    before anything is written. ask: draws fields for what else the job is to be told, and gives
    that. code: how to use what is written, in `language`."""

    format: Format
    title: str
    about: str
    suffix: str
    size: Callable[[PackedResult], str]
    code: Callable[[PackedResult, str, Asked], str]
    language: str = "python"
    ask: Callable[[Job], Asked] = ask_nothing


CARDS = (
    FormatCard(
        "packed",
        "Packed DeRS checkpoint",
        "transformers loads it with ders_core, which synthesizes the weights while loading.",
        "ders",
        packed_size,
        packed_code,
    ),
    FormatCard(
        "original",
        "Original layout",
        "As large as the original. Loaded by anything that loads the original.",
        "synthesized",
        original_size,
        original_code,
        ask=ask_dtype,
    ),
    FormatCard(
        "patch",
        "Patch",
        "`ders apply` adds them to a base that is kept elsewhere and refuses any "
        "other base; `ders rollback` removes them again.",
        "patch",
        patch_size,
        patch_code,
        "bash",
        ask_base,
    ),
)


EXPORTS = 5  # that are shown of those that have ended


def free_name(name: str) -> str:
    """Of a directory among the workspace's exports that does not exist."""
    free = clean = re.sub(r"[^\w.+]+", "-", name).strip("-") or "export"
    number = 2
    while (session.workspace().exports / free).exists():
        free, number = f"{clean}-{number}", number + 1
    return free


def place_of(typed: str) -> str:
    """What was typed as a path: a name is one among the workspace's exports. An address, which is
    refused later, and a path from somebody's home stay as they are; so does nothing."""
    place = cleaned(typed)
    if not place or place.startswith("~") or is_address(place):
        return place
    return str(session.workspace().exports / place)


def memory_text(result: PackedResult) -> str:
    """What the weights take in memory, mode by mode, in words."""
    try:
        known = reads.bytes_in_memory(result.packed)
    except DersError as error:  # the run's directory was removed or damaged since
        return plain(error)
    if known is None:
        return plain(f"{result.packed} is not packed any more: what a run wrote was replaced.")
    whole, held = map(bytes_text, known)
    return (
        f"**In memory**, of weights: {whole} with `mode='synthesized'`, the default, as of the "
        f"original layout; {held} with `mode='packed'`, whose experts stay packed; {held} and a "
        f"cache of at most `cache_bytes`, by default {bytes_text(CACHE_BYTES)}, with "
        "`mode='cached'`."
    )


def show_card(job: Job, result: PackedResult, card: FormatCard) -> str:
    """One format: its size, the directory to write, and the button. Returns the code that uses what
    is written."""
    with st.container(border=True, height="stretch"):
        st.markdown(f"**{card.title}**")
        st.markdown(f"{card.size(result)}. {card.about}")
        typed = kept.field(
            st.text_input,
            "Directory to write",
            key=f"out_{card.format}_{job.id}",
            start=free_name(f"{job.title}-{card.suffix}"),
            help=f"A name in {plain(session.workspace().exports)}, or a whole path. It must not "
            "exist yet, and be below: "
            + plain(", ".join(str(root) for root in session.workspace().roots)),
        )
        path = place_of(typed)
        asked = card.ask(job)
        if st.button("Export", key=f"export_{card.format}", type="primary"):
            try:
                submit_export(result, card.format, path, asked)
            except DersError as error:
                show_error(error)
    return card.code(result, path, asked)


def show_codes(codes: Sequence[str]) -> None:
    """How to use each format, in the whole width of the page: a path is seldom short."""
    for place, card, code in zip(
        st.tabs([card.title for card in CARDS]), CARDS, codes, strict=True
    ):
        place.code(code, language=card.language, wrap_lines=True)


def submit_export(result: PackedResult, format: Format, path: str, asked: Asked) -> None:
    """File the job. Raises DersError if a path is not allowed or the directory exists."""
    workspace = session.workspace()
    target = workspace.check_allowed(path)
    if target.exists():
        raise DersError(f"{target} exists already; choose another name")
    base = asked.get("base")
    spec = {
        **asked,
        "packed": result.packed,
        "out": str(target),
        "format": format,
        "base": str(workspace.check_allowed(base)) if base else None,
        "quality": result.measured.to_dict() if result.measured else None,
        "outlook": asdict(result.outlook),
    }
    submit("export", spec, f"Export {target.name}")


def written(result: ExportResult, job_id: int) -> None:
    """What an export wrote: where, its checks, and its model card as it stands there."""
    st.code(result.out, language=None)
    for check in result.checks:
        mark = ":green[✓]" if check.ok else ":red[✗]"
        st.caption(f"{mark} {plain(check.name)}: {plain(check.detail)}")
    card = reads.model_card(result.out)
    if card:
        with st.expander("Model card", key=f"card_{job_id}"):
            st.code(card, language="markdown", wrap_lines=True)


@st.fragment(run_every=1.5)
def exports(ended: int) -> None:
    """Running exports, and the newest that have ended, with their checks. ended: how many had when
    the page was drawn; it is drawn again once there are more."""
    store, counts = session.job_store(), session.job_store().counts("export")
    if counts:
        st.markdown("## Exports")
    past = store.page(Which(("export",), ENDED), most=EXPORTS)
    for job in [*active_jobs("export", ended), *past]:
        panel = job_panel(job)
        result = ExportResult.of(job)
        if result is not None:
            with panel:
                written(result, job.id)
    more = ended_count(counts) - len(past)
    if more > 0:
        st.caption(f"And {more} before them.")


frame.need_frame()
frame.head(
    "Export",
    "Write a finished run as files that other programs load; they are checked before they count.",
)
page = job_page("exported", packed_kinds(), ["done"], ("newest", "oldest", "name", "size"))
by_id = finished_jobs(page, kept.value("export_run", 0))
if not (page.total or by_id):
    with st.container(border=True):
        st.markdown("**Nothing to export yet.** A finished run can be exported here.")
        st.page_link("pages/runs.py", label="Start a run", icon=":material/play_arrow:")
elif by_id:
    chosen = kept.field(
        st.selectbox,
        "Run",
        key="export_run",
        start=next(iter(by_id)),
        options=list(by_id),
        format_func=lambda job_id: job_label(*by_id[job_id]),
    )
    columns = st.columns(len(CARDS))
    codes = []
    for column, card in zip(columns, CARDS, strict=True):
        with column:
            codes.append(show_card(*by_id[chosen], card))
    free = free_bytes(session.workspace().exports)
    st.caption(f"Free space for a directory that you give by name: {bytes_text(free)}.")
    st.markdown("## How to use it")
    show_codes(codes)
    memory = st.container(key="export_memory")
    st.caption(
        "A model card is added: it says the recipe, sizes, measured quality and how to load the "
        "model. Every tensor is read back and checked."
    )
    report_button([by_id[chosen][0]], "export_report")
elif page.jobs:
    st.info(of_other_versions(page, "exported"))
exports(ended_count(session.job_store().counts("export")))
push_section()
if by_id:  # last, since a process is asked
    with memory, st.skeleton(height=48):
        in_memory = memory_text(by_id[chosen][1])
    memory.markdown(in_memory)
