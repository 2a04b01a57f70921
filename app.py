"""DeRS Studio: the frame of every page."""

import streamlit as st

ICON = (  # a drawing of our own: Streamlit lets browsers fetch `:material/...:` from Google
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#2f8fbd">'
    '<path d="M12 2 22 8 12 14 2 8z"/>'
    '<path d="M4 11.5 12 16.3 20 11.5 22 12.8 12 18.8 2 12.8z" opacity=".75"/>'
    '<path d="M4 15.8 12 20.6 20 15.8 22 17 12 23 2 17z" opacity=".5"/></svg>'
)

st.set_page_config(page_title="DeRS Studio", page_icon=ICON, layout="wide")

with st.skeleton(height=360):  # the first visitor waits for torch to be imported
    from ders_core.ui import frame

page = frame.navigation()
frame.sidebar()
page.run()
