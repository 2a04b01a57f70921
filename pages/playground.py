"""Playground: what the original and its compressed form say to the same prompt."""

from ders_core.ui import frame, session
from ders_core.ui.job_progress import ended_count
from ders_core.ui.playground.form import ask_form, under_way
from ders_core.ui.playground.shown import shown_replies

frame.need_frame()
frame.head(
    "Playground",
    "Ask the original and its compressed form the same, and see where they disagree.",
)
ask_form()
under_way(ended_count(session.job_store().counts("ask")))
shown_replies()
