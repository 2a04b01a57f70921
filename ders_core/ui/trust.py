"""Whether code that came with a model may run: off unless the user turns it on."""

from __future__ import annotations

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.ui import kept


def trust_switch(source: Checkpoint, key: str) -> bool:
    """Whether a job may run code that came with the checkpoint; asked anew in each session. key: of
    the widget."""
    trusted = kept.field(
        st.toggle,
        "Run the model's own code (trust_remote_code)",
        key=key,
        start=False,
        of=source.path,
        lasting=False,
        help="Some models come with Python files of their own, named by `auto_map` in config.json, "
        "and cannot be run without them. Turned on, the job runs these files with all "
        "your rights: do so only if you have read them or trust their author. Other models need "
        "no such code. It holds for this checkpoint until the browser's page is closed.",
    )
    if not trusted and "auto_map" in source.config:
        st.caption("This model comes with code of its own, which runs only if you allow it.")
    return trusted
