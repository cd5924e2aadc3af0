"""The demo page at ``/``: static files, and headers that let the browser load nothing from anywhere else."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Response

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/client.js": ("client.js", "text/javascript"),
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A page of one version must not meet scripts of another.
    "Cache-Control": "no-cache",
}


def mount_page(api: FastAPI) -> None:
    """Add the page and its files to an API that answers ``v1/caption`` and ``v1/models`` below the same root.

    The files are public, also where the API asks for a key: the page asks for it once a request is refused.
    """
    for path, (name, media_type) in _FILES.items():
        content = files(__name__).joinpath(name).read_bytes()
        # HEAD too, by which monitors ask whether a page is there.
        api.add_api_route(path, _answer_with(content, media_type), methods=["GET", "HEAD"], include_in_schema=False)


def _answer_with(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return answer
