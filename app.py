"""DeRS Studio: the frame of every page."""

import streamlit as st

st.set_page_config(page_title="DeRS Studio", page_icon=":material/layers:", layout="wide")

with st.skeleton(height=360):  # the first visitor waits for torch to be imported
    from ders_core.ui import frame

page = frame.navigation()
frame.sidebar()
page.run()
