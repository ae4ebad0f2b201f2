"""Files that ship with the toolkit: beside the package in a checkout, inside it in an installed copy."""

import reprlib
from pathlib import Path

from dopd_vl.common.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
NANO_PREFIX = "nano:"


def shipped(relative: str) -> Path:
    """Path of a shipped file or folder, e.g. `configs/quickstart.yaml` or `data/nano`; it may not exist."""
    installed = _PACKAGE / relative
    return installed if installed.exists() else _PACKAGE.parent / relative


def find_config(name: str) -> Path:
    """A configuration by path, or by its name among the shipped ones: `configs/quickstart.yaml` works anywhere.

    Raises:
        UserError: there is no such file.
    """
    try:
        candidates = [Path(name), shipped(name), shipped(f"configs/{name}"), shipped(f"configs/{name}.yaml")]
        for path in candidates:
            if path.is_file():
                return path
    except (OSError, ValueError) as error:  # longer than a name may be, a null byte in it, or not ours to look at
        raise UserError(f"--config: {reprlib.repr(name)} cannot be the name of a file ({error.args[-1]})") from error
    raise UserError(f"--config: no file {name!r} here or among those that ship; `dopd-vl configs` lists them")


def find_model(name: str) -> str:
    """Resolve `nano:NAME` to the shipped model's folder; any other name is a folder or a hub id and stays as it is.

    Raises:
        UserError: no shipped model has that name.
    """
    if not name.startswith(NANO_PREFIX):
        return name
    return str(model_folder(name.removeprefix(NANO_PREFIX)))


def model_folder(name: str) -> Path:
    """A shipped model, e.g. `vision-teacher` or `text-learner` (docs/nano.md has them all): a Hugging Face folder.

    Raises:
        UserError: no such model.
    """
    models = nano_data_folder() / "models"
    if not (models / name / "config.json").is_file():
        known = ", ".join(sorted(folder.parent.name for folder in models.glob("*/config.json"))) or "none"
        raise UserError(f"no nano model {name!r} in {models} (there: {known})")
    return models / name


def nano_data_folder() -> Path:
    """data/nano of the checkout, or its copy inside an installed wheel.

    Raises:
        UserError: it is not there, so the installation is not whole.
    """
    folder = shipped("data/nano")
    if not folder.is_dir():
        raise UserError(f"no {folder}: reinstall dopd-vl, its wheel carries the nano data")
    return folder
