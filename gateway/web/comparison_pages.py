"""Comparisons for those who decide about versions: the list, and each report as it was written.

A report is one file that holds all it shows. It is served with a policy of its own: no script, nothing from anywhere,
its one style sheet by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment

from gateway.errors import StoreError, UnreadableError
from gateway.store import Store
from gateway.store.comparisons import find_comparison, list_comparisons
from gateway.web.access import MayActOnModels
from gateway.web.render import render

FOLDER = "comparisons"
MOST_LISTED = 200
Key = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$")]
FileName = Literal["report.json", "cases.csv", "run.json"]
_MEDIA_TYPES = {"report.json": "application/json", "run.json": "application/json", "cases.csv": "text/csv"}
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


def comparison_router(store: Store, data_dir: Path, environment: Environment) -> APIRouter:
    """Every route about comparisons."""
    router = APIRouter()

    def file_of(comparison_key: str, name: str) -> Path:
        """A file of a comparison that the store knows; its name is made of nothing but the checked key."""
        if find_comparison(store, comparison_key) is None:
            raise StoreError(f"no comparison {comparison_key}")
        path = data_dir / FOLDER / comparison_key / name
        if not path.is_file():
            raise HTTPException(410, f"the report of comparison {comparison_key} is gone from the data folder")
        return path

    @router.get("/api/comparisons", tags=["models"], summary="Comparisons of model versions, newest first")
    def listed(
        caller: MayActOnModels,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        model: Annotated[str | None, Query(pattern="^[a-z][a-z0-9-]{0,63}$")] = None,
    ) -> list[dict[str, Any]]:
        return [asdict(row) for row in list_comparisons(store, model_name=model, limit=limit)]

    @router.get("/comparisons", include_in_schema=False)
    def page(request: Request, caller: MayActOnModels) -> HTMLResponse:
        rows = list_comparisons(store, limit=MOST_LISTED)
        return render(environment, request, "comparisons.html", rows=rows, page="comparisons")

    @router.get("/comparisons/{comparison_key}", include_in_schema=False)
    def report(caller: MayActOnModels, comparison_key: Key) -> Response:
        path = file_of(comparison_key, "report.html")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnreadableError(f"a report cannot be read: {type(error).__name__}") from error
        return HTMLResponse(content, headers={"Content-Security-Policy": policy_for(content)})

    @router.get("/comparisons/{comparison_key}/{name}", include_in_schema=False)
    def file(caller: MayActOnModels, comparison_key: Key, name: FileName) -> FileResponse:
        return FileResponse(file_of(comparison_key, name), media_type=_MEDIA_TYPES[name], filename=name)

    return router


def policy_for(report: bytes) -> str:
    """A content security policy under which a report shows itself, and can do nothing."""
    found = _STYLE.search(report)
    digest = base64.b64encode(hashlib.sha256(found[1] if found else b"").digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; sandbox"
    )
