"""The page of the studio, which `make studio` builds into `server/studio/`."""

import gzip
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from triptych.server.routes.answers import not_found

BUILT = Path(__file__).parents[1] / "studio"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
UNBUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Triptych</title>
<h1>Triptych is running</h1>
<p>Its page is not built yet: run <code>make studio</code>, then start the service again.</p>
<p>The routes are described in <a href="/openapi.json">/openapi.json</a>.</p></html>"""
FOREVER = "public, max-age=31536000, immutable"
"""For files with a digest of their content in their name."""


@dataclass(frozen=True)
class Asset:
    """A file of the page, plain and compressed."""

    kind: str
    plain: bytes
    compressed: bytes


def read_assets(built: Path) -> dict[str, Asset]:
    """The files below `assets/` by name; none where the page is not built."""
    folder = built / "assets"
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {}
    for file in files:
        data = file.read_bytes()
        found[file.name] = Asset(TYPES[file.suffix], data, gzip.compress(data, 9, mtime=0))
    return found


def routes(built: Path = BUILT) -> APIRouter:
    """`/` and `/assets/`."""
    router = APIRouter(include_in_schema=False)
    assets = read_assets(built)
    index = built / "index.html"
    page = index.read_text(encoding="utf-8") if index.is_file() else UNBUILT

    @router.get("/")
    async def show_page() -> Response:
        return HTMLResponse(page)

    @router.get("/assets/{name}")
    async def read_asset(request: Request, name: str) -> Response:
        asset = assets.get(name)
        if asset is None:
            raise not_found("file")
        headers = {"cache-control": FOREVER, "vary": "accept-encoding"}
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(asset.plain, media_type=asset.kind, headers=headers)
        headers["content-encoding"] = "gzip"
        return Response(asset.compressed, media_type=asset.kind, headers=headers)

    return router
