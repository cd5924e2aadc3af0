"""GET /: the page to try captions on."""

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_INLINE = {
    kind: re.compile(rf"<{kind}(?:\s[^>]*)?>(.*?)</{kind}>", re.DOTALL | re.IGNORECASE) for kind in ("script", "style")
}


def page_routes() -> APIRouter | None:
    """The route; None if the package came without the page."""
    file = resources.files("raycap.serve") / "page" / "index.html"
    if not file.is_file():
        return None
    html = file.read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": content_security_policy(html), "X-Content-Type-Options": "nosniff"}
    routes = APIRouter()

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return routes


def content_security_policy(html: str) -> str:
    """Only the page's own scripts and styles run, known by their hashes; it talks to its own server only, and shows
    pictures that it made or got. Style attributes are styles of no known hash: a page must do without."""
    script, style = (" ".join(_hashes(html, kind)) or "'none'" for kind in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, kind: str) -> list[str]:
    blocks = [match[1] for match in _INLINE[kind].finditer(html)]
    digests = (hashlib.sha256(block.encode()).digest() for block in blocks)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
