"""Whose command it is, where nobody logs in: the account of the operating system."""

from __future__ import annotations

import getpass
import os


def system_account() -> str:
    """Name of the account that runs this process; its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def command_actor() -> str:
    """How records name the one who gave a command."""
    return f"command:{system_account()}"
