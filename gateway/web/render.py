"""Templates, and the values that every page gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gateway import __version__
from gateway.web import text


def make_environment() -> Environment:
    """Templates, escaped throughout; a name that a template misspells is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("person_name", "dicom_date", "dicom_time", "age_years", "bytes_text", "p_text", "number_text"):
        environment.filters[name] = getattr(text, name)
    environment.filters["words"] = text.words
    environment.filters["drift_text"] = text.drift_text
    environment.globals["gateway_version"] = __version__
    return environment


def render(
    environment: Environment,
    request: Request,
    template: str,
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """A page, as its caller (``None`` where nobody was asked for) may see it."""
    theme = "light" if request.cookies.get("theme") == "light" else "dark"
    caller = getattr(request.state, "caller", None)
    content = environment.get_template(template).render(theme=theme, caller=caller, **values)
    return HTMLResponse(content, status_code, headers)
