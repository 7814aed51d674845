"""An export as a data set that DVC tracks, so that a model's card can name it by its hash.

The command ``dvc`` is asked, and not imported: it is a tool of its own with some eighty packages.

References
----------
DVC documentation, ``dvc add``, https://dvc.org/doc/command-reference/add.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from gateway.errors import SavedError
from models.dvc import read_dvc_file
from models.errors import BundleError

COMMAND = "dvc"
_QUIET = {"DVC_NO_ANALYTICS": "1", "DVC_STUDIO_OFFLINE": "1"}


def find_dvc(command: str = COMMAND) -> Path:
    """The program of that name or path.

    Raises
    ------
    SavedError
        There is none.
    """
    found = shutil.which(command)
    if found is None:
        raise SavedError(f"there is no command {command!r}; expected DVC, as `pip install dvc` gives, or --dvc-command")
    return Path(found).absolute()


def find_repository(folder: Path) -> Path:
    """The DVC repository that a folder, which need not be there yet, lies in.

    Raises
    ------
    SavedError
        It lies in none.
    """
    for parent in folder.absolute().parents:
        if (parent / ".dvc").is_dir():
            return parent
    raise SavedError(f"{folder} is in no DVC repository; expected one (`git init` and `dvc init` make it)")


def track(folder: Path, command: Path) -> str:
    """Let DVC track a folder; gives its hash as a card's ``training_data.dvc_hash`` spells it.

    Raises
    ------
    SavedError
        DVC refused; the text says why.
    """
    repository = find_repository(folder)
    target = os.path.relpath(folder.absolute(), repository)
    done = subprocess.run(
        [command, "add", target],
        cwd=repository,
        env=os.environ | _QUIET,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it does not say why").splitlines()
        raise SavedError(f"the export is in {folder}, and dvc add failed: {said[0]}")
    stated = folder.with_name(f"{folder.name}.dvc")
    try:
        (output,) = read_dvc_file(stated)
    except (BundleError, ValueError) as error:
        raise SavedError(f"the export is in {folder}, and {stated.name} does not say its hash: {error}") from error
    return output.dvc_hash
