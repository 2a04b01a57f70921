"""What a person can set on a page: found by walking it, and set as the browser does."""

from __future__ import annotations

from typing import Any

from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import (
    Button,
    ButtonGroup,
    DownloadButton,
    Multiselect,
    NumberInput,
    Selectbox,
    SelectSlider,
    Slider,
    TextArea,
    TextInput,
    Toggle,
    Widget,
)


def inputs(app: AppTest) -> list[Any]:
    """Every widget of the page and the sidebar that has a value; not the buttons."""
    nodes = [*app.main, *app.sidebar]
    return [
        node
        for node in nodes
        if isinstance(node, Widget) and not isinstance(node, Button | DownloadButton)
    ]


def change(app: AppTest, widget: Any, text: str) -> None:
    """Send another value of this widget to the app, as the browser would, and run the page.

    text: what is typed into a field of text.
    """
    app._run(states_with(app, widget, text))


def states_with(app: AppTest, widget: Any, text: str) -> WidgetStates:
    """What the browser would send: the values of all widgets, another one of this widget."""
    states = app._tree.get_widget_states()
    _set(next(state for state in states.widgets if state.id == widget.id), widget, text)
    return states


def _set(state: WidgetState, widget: Any, text: str) -> None:
    match widget:
        case TextInput() | TextArea():
            state.string_value = text
        case NumberInput():
            state.double_value = _step(widget)
        case Toggle():
            state.bool_value = not widget.value
        case Selectbox():
            chosen = state.string_value
            state.string_value = next(option for option in widget.options if option != chosen)
        case Multiselect():
            state.string_array_value.data[:] = widget.options[-1:]
        case ButtonGroup() | SelectSlider():
            chosen = state.string_array_value.data[0]
            state.string_array_value.data[:] = [
                next(option for option in widget.options if option != chosen)
            ]
        case Slider():
            state.double_array_value.data[:] = [_step(widget)]
        case _:
            raise AssertionError(f"no test knows how to set a {widget.type}")


def _step(widget: Any) -> float:
    """One step up from the value, or down where that would be too much."""
    now = widget.min if widget.value is None else widget.value
    is_last = widget.max is not None and now + widget.step > widget.max
    return float(now - widget.step if is_last else now + widget.step)
