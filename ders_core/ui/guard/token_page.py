"""What a visitor without the token sees: one sentence and a field, nothing of the studio."""

from __future__ import annotations

from html import escape

from ders_core.ui.guard.policy import COMMON, Headers, as_headers, hash_of, policy

ASK = "Give the token that <code>ders app</code> printed, or open the address that it printed."
WRONG = (
    "This is not the token of the running studio. Give the one that <code>ders app</code> printed."
)
EXPIRED = (
    "The studio was started again since you opened it. Give its new token, or open the address "
    "that <code>ders app</code> printed."
)

STYLE = """
:root{color-scheme:light dark;--ground:#ffffff;--card:#f4f6f8;--text:#0b1218;--accent:#0b6e99;
--on-accent:#ffffff;--line:#c3ccd5}
@media (prefers-color-scheme:dark){:root{--ground:#11161c;--card:#1a222b;--text:#e4e9ee;
--accent:#4fb3d9;--on-accent:#11161c;--line:#3b4753}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1rem;
background:var(--ground);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{width:min(30rem,100%);padding:1.75rem 2rem;background:var(--card);border-radius:.4rem}
h1{margin:0 0 .5rem;font-size:1.3rem}
p{margin:0 0 1.25rem}
code{font-size:.95em}
form{display:flex;gap:.6rem;flex-wrap:wrap}
label{flex-basis:100%;font-size:.9rem}
input,button{font:inherit;padding:.5rem .75rem;border-radius:.4rem;border:1px solid var(--line)}
input{flex:1;min-width:12rem;background:var(--ground);color:var(--text)}
button{border-color:var(--accent);background:var(--accent);color:var(--on-accent);cursor:pointer}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
"""

HEADERS: Headers = as_headers(
    {
        **COMMON,
        "Content-Security-Policy": policy(
            style_src=hash_of(STYLE), img_src="data:", form_action="'self'"
        ),
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",
    }
)

_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<link rel="icon" href="data:,"><title>DeRS Studio</title>'
)


def token_page(sentence: str) -> bytes:
    """The page with a field. sentence: HTML, one of ours."""
    return (
        f"{_HEAD}<style>{STYLE}</style></head><body><main><h1>DeRS Studio</h1><p>{sentence}</p>"
        '<form method="get"><label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="off" required autofocus>'
        "<button>Open</button></form></main></body></html>"
    ).encode()


def onward_page(target: str) -> bytes:
    """A page that goes on to a relative address at once.

    A browser that came from another site keeps a strict cookie back on a redirect, and sends it
    with a step from a page of ours.
    """
    link = escape(target, quote=True)
    return (
        f'{_HEAD}<meta http-equiv="refresh" content="0; url={link}"></head>'
        f'<body><p><a href="{link}">Open the studio</a></p></body></html>'
    ).encode()
