"""DeRS Studio: the frame of every page."""

import streamlit as st

st.set_page_config(page_title="DeRS Studio", page_icon=":material/layers:", layout="wide")

PAGES = [
    st.Page("pages/checkpoint.py", title="Checkpoint", default=True),
    st.Page("pages/redundancy.py", title="Redundancy"),
    st.Page("pages/spectra.py", title="Spectra"),
    st.Page("pages/recipe.py", title="Recipe"),
    st.Page("pages/runs.py", title="Runs"),
    st.Page("pages/export.py", title="Export"),
]

page = st.navigation(PAGES, position="top")

with st.skeleton(height=360):  # the first visitor waits for torch to be imported
    from ders_core.ui import frame

frame.sidebar()
page.run()
