"""The pages that people look at, and what both are made of. Each goes out as one document that asks for nothing more.

Its policy names the digests of its own scripts and styles, so that no other runs, whatever a name from another host
would smuggle in.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

_STYLE = '<link rel="stylesheet" href="shared.css">'
_SCRIPT = '<script src="shared.js"></script>'


def page(name: str) -> str:
    """A page, ``index`` or ``serve``, with what it shares with the other in its place."""
    text, style, script = (_read(file) for file in (f"{name}.html", "shared.css", "shared.js"))
    text = text.replace(_STYLE, f"<style>\n{style}</style>")
    return text.replace(_SCRIPT, f"<script>\n{script}</script>")


def page_headers(text: str) -> dict[str, str]:
    """What a page is sent with."""
    return {
        "Content-Security-Policy": page_policy(text),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def page_policy(text: str) -> str:
    """A Content-Security-Policy under which the page's own scripts and styles run, by their digests, and no others."""
    sources = {tag: _digests(text, tag) for tag in ("script", "style")}
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digests(text: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in bodies)


def _read(file: str) -> str:
    return resources.files("modelsync.web").joinpath(file).read_text(encoding="utf-8")
