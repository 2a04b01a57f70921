"""Upcycle: a dense model becomes an MoE whose experts' deltas are light from the start."""

import shlex

import streamlit as st
from streamlit.elements.lib.column_types import ColumnConfig

from ders_core.checkpoint.layouts import PROJECTIONS
from ders_core.errors import DersError
from ders_core.files.texts import text_files
from ders_core.jobs.workspace import place_label
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.job_progress import ACTIVE, ended_count, submit
from ders_core.ui.number_columns import number_column, number_format
from ders_core.ui.plain import plain, show_error, strong
from ders_core.ui.upcycle import choices as choosing
from ders_core.ui.upcycle import comparison as upcycle_compare
from ders_core.ui.upcycle import widgets as upcycle_form
from ders_core.ui.upcycle.fields import NUMBERS
from ders_core.ui.upcycle.live import under_way
from ders_core.ui.upcycle.results import results
from ders_core.units import bytes_text, count_text
from ders_core.upcycle import DenseModel, UpcycleConfig
from ders_core.upcycle.forms import FORMS

VIEW = "upcycle_view"
YAML = "up_yaml"
NEW, RUNS = "new", "runs"
TO_RUNS = "upcycle_to_runs"
PROBLEM = "upcycle_problem"


def start() -> choosing.Values:
    """What the widgets show until a person changes them."""
    return choosing.values_of(last_config()) | {upcycle_form.DEVICE: "auto"}


def last_config() -> UpcycleConfig:
    """What was possible last."""
    text = session.current().upcycle
    try:
        return UpcycleConfig.from_yaml(text) if text else choosing.start()
    except DersError:  # written by another version
        return choosing.start()


def set_values(config: UpcycleConfig) -> None:
    """Show a configuration in the widgets; only in a callback."""
    upcycle_form.fill_in(choosing.values_of(config))
    session.set_upcycle(config.to_yaml())


def positions(dense: DenseModel) -> int:
    """The longest context of the model, in tokens."""
    names = ("max_position_embeddings", "n_positions")
    known = [dense.config[name] for name in names if isinstance(dense.config.get(name), int)]
    return min(known, default=int(NUMBERS["window"].most))


def offer(dense: DenseModel) -> None:
    """Fill in a window that fits the model, and the demo's texts if none were named."""
    now = upcycle_form.chosen(start())
    longest = positions(dense)
    filled: choosing.Values = {"window": longest} if (now["window"] or 0) > longest else {}
    train = frame.demo_text("calibration.txt", dense.path)
    if train and not now["texts"]:
        heldout = frame.demo_text("heldout.txt", dense.path)
        filled |= {"texts": str(train), "heldout": now["heldout"] or str(heldout or "")}
    upcycle_form.fill_in(filled)


def open_dense(place: str | None) -> None:
    """Open a directory as the model to upcycle; a callback."""
    try:
        dense = reads.dense(place or "")
        session.open_dense(dense.path)
    except DersError as error:
        st.session_state[PROBLEM] = str(error)
    else:
        offer(dense)


def dense_row() -> DenseModel | None:
    """Choose the model: a path with completion, or the demo's. Returns the open model."""
    roots = tuple(str(root) for root in session.workspace().roots)
    demo, now = session.workspace().demo / "dense", session.current().dense
    known = [now, *reads.dense_directories(roots)] if now else reads.dense_directories(roots)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen: str | None = kept.field(
            st.selectbox,
            "Dense model's directory",
            key="up_path",
            start=None,
            options=list(dict.fromkeys(known)),
            index=None,
            accept_new_options=True,
            placeholder="Type or choose a path",
            help="A dense causal language model: config.json and safetensors files, below "
            + plain(", ".join(roots)),
        )
        st.button(
            "Open",
            type="secondary" if now else "primary",
            disabled=not chosen,
            key="up_open",
            on_click=open_dense,
            args=(chosen,),
        )
        if demo.is_dir():
            st.button(
                "The demo's dense model",
                key="up_demo",
                icon=":material/science:",
                on_click=open_dense,
                args=(str(demo),),
            )
    problem = st.session_state.pop(PROBLEM, None)
    if problem:
        show_error(problem)
    if now is None:
        return None
    try:
        dense = reads.dense(now)
    except DersError as error:
        show_error(error)
        return None
    st.markdown(
        f"{strong(place_label(dense.path))} · {plain(dense.family)} · {dense.layers} "
        f"layers · {dense.hidden} × {dense.intermediate} · {count_text(dense.parameters)} "
        f"parameters · {bytes_text(dense.store.bytes_total)}",
        help="Family, layers, hidden width × the FFN's width, values of all tensors, size of the "
        "weight files. MB and GB are powers of ten.",
    )
    return dense


def empty() -> None:
    with st.container(border=True):
        st.markdown(
            "**Which dense model should become a Mixture-of-Experts?** Open one: a directory with "
            "`config.json` and safetensors files. Its FFNs are copied into experts that share one "
            "weight, and each expert learns a light delta of its own."
        )
        if not (session.workspace().demo / "dense").is_dir():
            st.markdown("If you have none, *Try the demo* on the Checkpoint page brings one.")
            st.page_link("pages/checkpoint.py", label="Checkpoint", icon=":material/science:")


def side_by_side(dense: DenseModel, config: UpcycleConfig, now: choosing.Values) -> None:
    """A sentence on the chosen form, and a table of all forms."""
    table = upcycle_compare.comparison_table(dense, upcycle_compare.variants(config, now))
    shown, count, size = upcycle_compare.scaled(table)
    st.markdown(f"## {upcycle_compare.sentence(table, config)}")

    def number(key: str, label: str, help: str | None = None) -> ColumnConfig:
        return number_column(label, shown[key], help=help)

    def share(key: str, label: str, help: str) -> ColumnConfig:
        return st.column_config.ProgressColumn(
            label,
            help=help,
            format=number_format("%.3g %%", shown[key]),
            min_value=0.0,
            max_value=100.0,
            width="small",
        )

    place = st.container(height=(len(FORMS) + 1) * 35 + 38, border=False)
    place.dataframe(  # nothing moves when a mix comes as one more row
        shown,
        hide_index=True,
        key="up_compared",
        column_order=[
            "form",
            "added",
            "added_share",
            "disk",
            "disk_share",
            "memory",
            "memory_share",
            "weights",
            "gradients",
            "optimizer",
        ],
        column_config={
            "form": st.column_config.TextColumn("form", pinned=True),
            "added": number("added", f"added, {count}", "Parameters besides the dense model's."),
            "added_share": share(
                "added_share", "of vanilla", "Added parameters, share of vanilla's."
            ),
            "disk": number("disk", f"on disk, {size}", "Packed, all tensors, upper bound."),
            "disk_share": share("disk_share", "of vanilla ", "Size on disk, share of vanilla's."),
            "memory": number(
                "memory", f"training, {size}", "Weights, gradients and optimizer during training."
            ),
            "memory_share": share(
                "memory_share", "of vanilla  ", "Training memory, share of vanilla's."
            ),
            "weights": number("weights", f"weights, {size}"),
            "gradients": number("gradients", f"gradients, {size}"),
            "optimizer": number("optimizer", f"optimizer, {size}", "AdamW's two moments, float32."),
        },
    )
    st.caption("Activations need memory too; it is measured during training.")


def checked(config: UpcycleConfig) -> None:
    """Raises DersError if a text cannot be used."""
    if config.data.texts == (choosing.TEXT,):
        raise DersError("name at least one text to train on")
    files = [*config.data.texts, *([config.data.heldout] if config.data.heldout else [])]
    text_files([session.workspace().check_allowed(file) for file in files])


def apply_text() -> None:
    """Apply the YAML text to the widgets; a callback."""
    try:
        set_values(UpcycleConfig.from_yaml(st.session_state[YAML]))
    except DersError as error:
        st.session_state["upcycle_yaml_problem"] = str(error)


def yaml_tab(dense: DenseModel, config: UpcycleConfig) -> None:
    text = config.to_yaml()
    kept.field(st.text_area, "Configuration", key=YAML, start=text, draft_of=text, height=360)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Apply the text", key="up_yaml_apply", on_click=apply_text)
        st.download_button(
            "YAML",
            text,
            file_name="upcycle.yaml",
            mime="application/yaml",
            icon=":material/download:",
            key="up_yaml_download",
            on_click="ignore",
        )
    problem = st.session_state.pop("upcycle_yaml_problem", None)
    if problem:
        show_error(problem)
    st.caption("The same from a shell:")
    command = f"ders upcycle {shlex.quote(str(dense.path))} OUT --config upcycle.yaml"
    st.code(command, language="bash", wrap_lines=True)


def start_row(
    dense: DenseModel, config: UpcycleConfig, begin: choosing.Values, device: str
) -> None:
    """The run's name and the button. begin: what the widgets show until a person changes them."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kept.field(
            st.text_input,
            "Name",
            key=upcycle_form.key_of("name"),
            start=begin["name"],
            placeholder=choosing.suggested_name(config),
            width=320,
        )
        started = st.button("Start", type="primary", icon=":material/play_arrow:", key="up_start")
    if not started:
        return
    try:
        checked(config)
        name = session.job_store().free_name("upcycle", config.name)
        spec = {
            "dense": str(dense.path),
            "config": config.model_copy(update={"name": name}).to_yaml(),
            "name": name,
            "device": device,
        }
        submit("upcycle", spec, name)
    except DersError as error:
        show_error(error)
    else:
        st.session_state[TO_RUNS] = True
        st.rerun()


def new() -> None:
    """Choose and start."""
    dense = dense_row()
    if dense is None:
        empty()
        return
    begin, before = start(), last_config()
    projections = [name for name in PROJECTIONS if name in dense.ffns[0].weights]
    compared = st.container()
    as_form, as_yaml = st.tabs(["Choices", "YAML"])
    with as_form:
        now = upcycle_form.choices(begin, projections)
    try:
        config = choosing.config_of(now, before, projections)
        with compared:
            side_by_side(dense, config, now)
    except DersError as error:
        with compared:
            show_error(error)
        return
    session.set_upcycle(config.to_yaml())
    with as_yaml:
        yaml_tab(dense, config)
    start_row(dense, config, begin, now[upcycle_form.DEVICE])


frame.need_frame()
frame.head(
    "Upcycle",
    "Make a light Mixture of Experts of a dense model: choose, train, watch, open the result.",
)
counts = session.job_store().counts("upcycle")
active = sum(counts.get(state, 0) for state in ACTIVE)
if st.session_state.pop(TO_RUNS, active > 0):  # at first, and after a start
    kept.put({VIEW: RUNS})
st.session_state[TO_RUNS] = False
view = kept.field(
    st.segmented_control,
    "View",
    key=VIEW,
    start=NEW,
    options=[NEW, RUNS],
    format_func={NEW: "New", RUNS: "Runs"}.__getitem__,  # a label that changed would be unmarked
    required=True,
    label_visibility="collapsed",
)
if view == NEW:
    new()
else:
    under_way(ended_count(counts))
    results(counts)
