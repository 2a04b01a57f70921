"""The widgets of the Upcycle page; each sets one value of `choices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from ders_core.compute.device import available_devices
from ders_core.ui import kept
from ders_core.ui.upcycle.choices import LAYERS, MIXED, Values, form_titles
from ders_core.ui.upcycle.fields import NUMBERS
from ders_core.upcycle.fields import Number
from ders_core.upcycle.forms import FORMS

DEVICE = "device"
"""The device to train on: not part of the configuration, which is the same on any machine."""


def key_of(name: str) -> str:
    return f"up_{name}"


def chosen(start: Values) -> Values:
    """What the widgets show. start: what they show until a person changes them."""
    return {name: kept.value(key_of(name), value) for name, value in start.items()}


def fill_in(values: Values) -> None:
    """Set widgets as a person would; only before the page draws them, as in a callback."""
    kept.put({key_of(name): value for name, value in values.items()})


class _Widgets:
    """Draws widgets. start: what they show until a person changes them; values: what they show."""

    def __init__(self, start: Values) -> None:
        self.start = start
        self.values = chosen(start)

    def field(self, place: Any, widget: str, name: str, label: str, **options: Any) -> None:
        self.values[name] = kept.field(
            getattr(place, widget), label, key=key_of(name), start=self.start[name], **options
        )

    def number(self, place: Any, name: str, number: Number | None = None) -> None:
        number = number or NUMBERS[name]
        self.field(
            place,
            "number_input",
            name,
            number.label,
            help=number.help,
            min_value=number.least,
            max_value=number.most,
            step=number.step,
            format=None if isinstance(number.step, int) else "%g",
            placeholder=number.empty,
            value=None if number.empty else "min",  # None: it may be emptied again
        )

    def toggle(self, place: Any, name: str, label: str, help: str) -> None:
        self.field(place, "toggle", name, label, help=help)

    def one_of(
        self, place: Any, name: str, label: str, help: str, names: Mapping[str, str]
    ) -> None:
        self.field(
            place,
            "segmented_control",
            name,
            label,
            help=help,
            options=list(names),
            format_func=names.__getitem__,
            required=True,
        )

    def select(self, place: Any, name: str, label: str, help: str, options: Sequence[str]) -> None:
        self.field(place, "selectbox", name, label, help=help, options=list(options))


def choices(start: Values, projections: Sequence[str]) -> Values:
    """Draw all widgets and return their values. start: what they show until a person changes them.
    projections: those of the model."""
    ask = _Widgets(start)
    _experts(ask)
    _forms(ask, projections)
    _text(ask)
    row = st.columns(5)
    for place, name in zip(
        row, ("steps", "batch", "accumulation", "learning_rate", "warmup"), strict=True
    ):
        ask.number(place, name)
    with st.expander("More choices", key="up_more"):
        _router(ask)
        _optimizer(ask)
        _keeping(ask)
    return ask.values


def _row(widths: Sequence[int]) -> list[Any]:
    return list(st.columns(widths, vertical_alignment="bottom"))


def _experts(ask: _Widgets) -> None:
    row = _row([2, 2, 4, 3, 3])
    ask.number(row[0], "experts")
    ask.number(row[1], "top_k")
    ask.one_of(
        row[2],
        "layers",
        "Layers",
        "Which layers' FFNs become experts; every other: the 2nd, the 4th, and so on.",
        LAYERS,
    )
    listed = ask.values["layers"] == "list"
    ask.field(
        row[3],
        "text_input",
        "layers_list",
        "Listed layers",
        help="Numbers and ranges, counted from 0.",
        placeholder="0-3,7" if listed else "with 'a list'",
        disabled=not listed,
    )
    ask.toggle(
        row[4],
        "universal",
        "Universal FFN",
        "An always-on FFN besides the experts, one more of the same base (extended DeRS).",
    )


def _forms(ask: _Widgets, projections: Sequence[str]) -> None:
    titles, meaning = form_titles(), _form_help()
    widths = [7, *[2] * max(len(form.fields) for form in FORMS.values()), 3]
    row = _row(widths)
    ask.one_of(row[0], "form", "Form of the deltas", meaning, titles | {MIXED: "mixed"})
    _strength(ask, row[1:], "", ask.values["form"])
    ask.one_of(
        row[-1],
        "base",
        "Shared weight",
        r"$W_{shared}$ starts as the dense FFN; frozen, it saves memory and costs quality "
        "(1.3 to 1.6 points in the paper).",
        {"trained": "trained", "frozen": "frozen"},
    )
    for projection in projections if ask.values["form"] == MIXED else ():
        row = _row(widths)
        ask.one_of(row[0], f"form_{projection}", f"Form of {projection}", meaning, titles)
        _strength(ask, row[1:], f"_{projection}", ask.values[f"form_{projection}"])


def _form_help() -> str:
    *others, last = (form.difference for form in FORMS.values())
    return (
        r"How an expert differs from the shared weight, $W_i = W_{shared} + F(\Delta_i)$: "
        f"{', '.join(others)}, or {last}."
    )


def _strength(ask: _Widgets, row: Sequence[Any], suffix: str, name: str) -> None:
    """The fields of the form that is chosen; nothing for the mix of several."""
    fields = FORMS[name].fields if name in FORMS else {}
    for place, (value, field) in zip(row, fields.items(), strict=False):
        field.draw(ask, place, f"{value}{suffix}")


def _text(ask: _Widgets) -> None:
    row = st.columns([5, 4, 2])
    ask.field(
        row[0],
        "text_area",
        "texts",
        "Texts to train on",
        help="Local files and directories, one a line: UTF-8 text, or .jsonl with `text` or chat "
        "`messages` in each line.",
        placeholder="one file or directory a line",
        height=68,
    )
    ask.field(
        row[1],
        "text_input",
        "heldout",
        "Held-out text",
        help="A file or directory that is not trained on: perplexity of the dense model and of "
        "the MoE.",
        placeholder="none: quality is not measured",
    )
    ask.number(row[2], "window")


def _router(ask: _Widgets) -> None:
    row = _row([5, 4, 4, 4, 5])
    ask.one_of(
        row[0],
        "router_init",
        "Router's start",
        "random: normal numbers; clusters: centres of what the dense FFN sees of the text, so "
        "that experts meet unlike tokens from the first step.",
        {"random": "random", "clusters": "clusters"},
    )
    for place, name in zip(row[1:4], ("router_std", "balance", "noise"), strict=True):
        ask.number(place, name)
    ask.toggle(
        row[4],
        "router_train",
        "Routers learn",
        "Otherwise they stay as they start.",
    )


def _optimizer(ask: _Widgets) -> None:
    row = _row([1] * 4)
    ask.number(row[0], "base_rate")
    ask.number(row[1], "router_rate")
    ask.select(
        row[2],
        "schedule",
        "Schedule",
        "How the rate falls after the warm-up.",
        ["cosine", "linear", "constant"],
    )
    ask.number(row[3], "weight_decay")
    row = _row([1] * 4)
    ask.number(row[0], "clip")
    ask.field(
        row[1],
        "text_input",
        "train",
        "Also trained",
        help="Patterns of parameter names besides experts and routers, such as `*.self_attn.*`.",
        placeholder="nothing else",
    )
    ask.toggle(row[2], "bf16", "bfloat16", "Compute in bfloat16; what is trained stays in float32.")
    ask.toggle(
        row[3],
        "gradient_checkpointing",
        "Checkpointing",
        "Gradient checkpointing: activations are computed again in the backward pass, which saves "
        "memory and costs about a third more time.",
    )


def _keeping(ask: _Widgets) -> None:
    row = _row([1] * 6)
    names = ("save_every", "keep", "measure_every", "heldout_tokens", "seed")
    for place, name in zip(row, names, strict=False):
        ask.number(place, name)
    ask.select(
        row[5],
        DEVICE,
        "Device",
        "auto: the GPU where there is one.",
        ["auto", *available_devices()],
    )
