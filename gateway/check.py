"""``gateway check``: is this configuration right, what would it do, and which rule chooses this image?"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from drift.mmd import ALIBI_PERMUTATIONS
from gateway.errors import SettingsError
from gateway.routing import choose_rule, explain, is_quality_control
from gateway.send import find_files
from gateway.settings import Settings, load_settings
from gateway.tls import judge_files
from models import bundled_folders
from models.card import load_bundle

LICENCE_WARNING = (
    "monitor.backend is alibi-detect. From 0.12 on its licence is the Business Source License, which bars most "
    'production use without a contract with Seldon; monitor.backend = "builtin" computes the same test without it'
)


LEAST_ALIBI_P = 1 / ALIBI_PERMUTATIONS


def check(config: Path | None, files: Sequence[Path]) -> dict[str, Any]:
    """Validate the configuration at `config` (the defaults where ``None``), and try its rules on `files`.

    Returns
    -------
    dict
        ``ok``, ``errors``, ``warnings``, and ``images``: for each file ``path``, ``rule``, ``models``,
        ``destinations``, ``lines`` (why each rule matched or did not).
    """
    try:
        settings = load_settings(config)
    except SettingsError as error:
        return {"ok": False, "errors": str(error).splitlines(), "warnings": [], "images": []}
    images = [_try_rules(path, settings) for path in find_files(files)]
    errors, tls_warnings = _check_tls(settings)
    errors += [f"{image['path']}: {image['error']}" for image in images if image["error"]]
    return {
        "ok": not errors,
        "errors": errors,
        "warnings": [*_warnings(settings), *tls_warnings],
        "images": [image for image in images if not image["error"]],
    }


def _check_tls(settings: Settings) -> tuple[list[str], list[str]]:
    """Errors and warnings about TLS and what is bound to it."""
    errors, warnings = judge_files(settings.tls, sends=settings.sends_by_tls, now=datetime.now(UTC))
    asks = settings.tls.enabled and settings.tls.client_certificates == "required"
    for peer in settings.peers:
        if (peer.certificate_sha256 or peer.certificate_names) and not asks:
            warnings.append(
                f"peer {peer.ae_title!r} is bound to a certificate, and peers are not asked for one: it cannot connect"
            )
    return errors, warnings


def _warnings(settings: Settings) -> list[str]:
    """What is allowed, and worth a second look."""
    warnings = []
    bundled = {load_bundle(folder).card.name for folder in bundled_folders()}
    for rule in settings.rules:
        unknown = sorted(set(rule.models) - bundled)
        if unknown and not settings.models.tracking_uri:
            warnings.append(f"rule {rule.name!r} names {unknown}; shipped are {sorted(bundled)}")
    if not settings.destinations:
        warnings.append("no destinations: results are kept and shown, and sent nowhere")
    if settings.web.host not in ("127.0.0.1", "::1", "localhost") and not settings.web.certificate:
        warnings.append(f"pages on {settings.web.host} go over the network unencrypted: no web.certificate")
    if settings.web.authentication == "off":
        warnings.append("web.authentication is off: everybody on this machine sees every patient")
    installed = importlib.util.find_spec("alibi_detect") is not None and importlib.util.find_spec("torch") is not None
    if settings.monitor.backend == "alibi" or (settings.monitor.backend == "auto" and installed):
        warnings.append(LICENCE_WARNING)
        if settings.monitor.p_value < LEAST_ALIBI_P:
            warnings.append(
                f"monitor.p_value is under {LEAST_ALIBI_P}, the least that alibi-detect's permutations give"
            )
    if settings.monitor.backend == "alibi" and not installed:
        warnings.append("monitor.backend is alibi, which is not installed: pip install 'dicom-ai-gateway[alibi]'")
    return warnings


def _try_rules(path: Path, settings: Settings) -> dict[str, Any]:
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except (OSError, InvalidDicomError, RecursionError) as error:
        return {"path": str(path), "error": f"cannot be read: {error}"}
    phantom = is_quality_control(dataset)
    rule = None if phantom else choose_rule(dataset, settings.rules)
    return {
        "path": str(path),
        "error": "",
        "rule": rule.name if rule else None,
        "models": list(rule.models) if rule else [],
        "destinations": [each.name for each in settings.destinations_of(rule)] if rule else [],
        "lines": explain(dataset, settings.rules),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report for a person."""
    lines = [*report["errors"], *(f"warning: {warning}" for warning in report["warnings"])]
    for image in report["images"]:
        if image["rule"] is None:
            lines.append(f"{image['path']}: no rule; kept, shown, sent nowhere")
        else:
            models = ", ".join(image["models"]) or "no model"
            destinations = ", ".join(image["destinations"]) or "nowhere"
            lines.append(f"{image['path']}: rule {image['rule']!r}: {models}; results go to {destinations}")
        lines.extend(f"    {line}" for line in image["lines"])
    lines.append("configuration is valid" if report["ok"] else "not valid")
    return lines
