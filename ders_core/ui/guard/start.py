"""The guard of a server that starts, from its environment and Streamlit's settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import streamlit
from starlette.middleware import Middleware
from streamlit import config

from ders_core.errors import DersError
from ders_core.ui.address import ANY, Listening
from ders_core.ui.guard import (
    arriving,
    later_code,
    left_fields,
    paused_text,
    pictures,
    root_address,
)
from ders_core.ui.guard.browser_code import BrowserCode
from ders_core.ui.guard.first_code import links
from ders_core.ui.guard.lifeline import LIFELINE_VARIABLE, hold_on
from ders_core.ui.guard.middleware import Guard
from ders_core.ui.guard.origins import HOSTS_VARIABLE, Origins, origin_of
from ders_core.ui.guard.policy import studio_headers
from ders_core.ui.guard.root_address import RootAddress
from ders_core.ui.guard.secret import take_secret

STATIC = Path(streamlit.__file__).parent / "static" / "static"
"""The code that Streamlit sends to browsers."""

SCRIPTS = (
    *(each.SCRIPT for each in (left_fields, paused_text, arriving, pictures)),
    later_code.script(STATIC),
)
"""Added to Streamlit's page."""


def protection() -> list[Middleware]:
    """The middleware of the studio's server; for `st.App`.

    `ders app` gives a token and a lifeline in the environment. Without it, as under
    `streamlit run app.py`, the token is made here and the address printed. Ends the process with
    one sentence for a token or a host that cannot be used.
    """
    try:
        head = arriving.STYLE + pictures.STYLE + links(STATIC)
        address = Middleware(RootAddress, scripts=SCRIPTS, links=head)
        return [_guard(), address, _browser_code()]
    except DersError as error:
        sys.exit(f"ders: {error}")


def _guard() -> Middleware:
    launched = LIFELINE_VARIABLE in os.environ
    base_path = str(config.get_option("server.baseUrlPath") or "")
    scheme = "https" if config.get_option("server.sslCertFile") else "http"
    hold_on(f"{scheme} {base_path}\n")
    secret = take_secret()
    host = str(config.get_option("server.address") or "0.0.0.0")
    further = map(origin_of, os.environ.get(HOSTS_VARIABLE, "").split())
    if not launched:
        listening = Listening(ANY.get(host, host), int(config.get_option("server.port")))
        address = listening.url(base_path, scheme)
        print(f"DeRS Studio: {secret.in_address(address)}", flush=True)
    return Middleware(
        Guard,
        origins=Origins.of(host, scheme, further),
        secret=secret,
        headers=studio_headers(STATIC.parent / "index.html", [root_address.SCRIPT, *SCRIPTS]),
    )


def _browser_code() -> Middleware:
    base = str(config.get_option("server.baseUrlPath") or "").strip("/")
    return Middleware(BrowserCode, static=STATIC, base_path=f"/{base}" if base else "")
