"""Uploading a folder to the Hugging Face Hub, or to the server that HF_ENDPOINT names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from huggingface_hub import HfApi

from steering_pts.errors import InteropError
from steering_pts.interop.hub.replacing import MANIFEST

Kind = Literal["dataset", "model"]
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class PushFolder:
    """A folder that can be pushed as it is.

    Attributes:
        path: Where it is.
        kind: What kind of repository it becomes.
    """

    path: Path
    kind: Kind


def check_repository(name: str) -> None:
    """Sees that a name is one of a repository.

    Raises:
        InteropError: It is not.
    """
    if not REPOSITORY.fullmatch(name):
        raise InteropError(name, ["a repository is named owner/name, of letters, digits, '.', '_' and '-'"])


def upload(folder: PushFolder, repository: str, *, private: bool) -> str:
    """Makes the repository where it is not there, and commits the folder to it.

    Who is asking is what the Hub's own library knows: the login, or the variable HF_TOKEN.

    Args:
        folder: What to upload.
        repository: `owner/name`.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        InteropError: The server can't be reached, or refuses it.
    """
    check_repository(repository)
    api = HfApi()
    try:
        api.create_repo(repository, repo_type=folder.kind, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder.path,
            repo_type=folder.kind,
            commit_message="Upload by pts push",
            ignore_patterns=[MANIFEST],
        )
    except (
        Exception
    ) as error:  # the library raises whatever its HTTP client does, which is not always the same one
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InteropError(repository, [f"it can't be pushed: {reason:.300}"]) from error
    return str(commit.commit_url)
