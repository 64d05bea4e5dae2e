"""The documentation of the interface at /docs, from local files only."""

import functools
import mimetypes
from importlib import resources

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>loci: the interface</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# In its own file, so no inline script must be allowed. Without null, Swagger's server
# would validate the description.
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""
FILES = ("favicon.png", "swagger-ui.css", "swagger-ui-bundle.js")


@router.get("/docs")
async def show_docs() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE)


@router.get("/docs/start.js")
async def start_docs() -> Response:
    """Return the script that fills the page."""
    return Response(START, media_type="text/javascript")


@router.get("/docs/{name}")
def docs_file(name: str) -> Response:
    """Return a file of the page; the name only selects one."""
    content = _files().get(name)
    if content is None:
        raise HTTPException(404, "the documentation has no such file")
    return Response(content, media_type=mimetypes.types_map[f".{name.rpartition('.')[2]}"])


@functools.cache
def _files() -> dict[str, bytes]:
    folder = resources.files("fastapi_offline") / "static"
    return {name: (folder / name).read_bytes() for name in FILES}
