"""Folders that are pushed to the Hugging Face Hub, or to what `HF_ENDPOINT` names.

Who may write is the business of the hub's own login (`hf auth login`, or the environment's `HF_TOKEN`): no setting here
takes a token, since settings are kept and shown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dopd_vl.common.errors import ConfigurationError, UserError, one_line

Kind = Literal["model", "dataset"]


def open_repository(name: str, kind: Kind, key: str) -> None:
    """Make a private repository, or see that there is one, which stays as public or private as it is.

    Args:
        name: "user/name".
        key: the setting that names it.

    Raises:
        UserError: the name is none, or: offline, not logged in, or refused.
    """
    from huggingface_hub import HfApi

    if name.count("/") != 1:
        raise ConfigurationError(f"{key}: {name!r} is no repository of the hub; give it as user/name")
    with _told(f"{key}: {name} is not to be written to from here"):
        HfApi().create_repo(name, repo_type=kind, private=True, exist_ok=True)


def push_folder(folder: Path, name: str, kind: Kind, key: str, files: Sequence[str], replaced: Sequence[str]) -> str:
    """Push files of a folder in one commit; its address.

    Args:
        files: patterns of what is pushed.
        replaced: patterns of what goes from the repository unless it is pushed anew.

    Raises:
        UserError: offline or refused; the folder is as it was, and the message says how to push it later.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    later = f"hf upload {name} {folder}" + (" --repo-type dataset" if kind == "dataset" else "")
    with _told(f"{key}: {folder} is whole, but was not pushed to {name}; push it later with `{later}`"):
        commit = HfApi().upload_folder(
            repo_id=name,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(files),
            delete_patterns=list(replaced),
            commit_message="Pushed by dopd-vl",
        )
    return str(commit.repo_url)


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whichever HTTP library the hub's client was built on
        raise UserError(f"{what} ({one_line(error)[:300]})") from error
