"""Uploading a folder to the Hugging Face Hub, or to another server that speaks its protocol."""

from __future__ import annotations

import re
from typing import Final

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from steering_pts.errors import InteropError
from steering_pts.interop.hub.folder import PushFolder

REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_repository(name: str) -> None:
    """Sees that a name is one of a repository.

    Raises:
        InteropError: It is not.
    """
    if not REPOSITORY.fullmatch(name):
        raise InteropError(name, ["a repository is named owner/name, of letters, digits, '.', '_' and '-'"])


def upload(folder: PushFolder, repository: str, *, private: bool, endpoint: str | None = None) -> str:
    """Makes the repository where it is not there, and commits the folder to it.

    Who is asking is what the Hub's own library knows: the login, or the variable HF_TOKEN.

    Args:
        folder: What to upload.
        repository: `owner/name`.
        private: Whether a new repository is private.
        endpoint: The server; the Hub if None.

    Returns:
        The address of the commit.

    Raises:
        InteropError: The server can't be reached, or refuses it.
    """
    check_repository(repository)
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, repo_type=folder.kind, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder.path,
            repo_type=folder.kind,
            commit_message="Upload by pts push",
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InteropError(repository, [f"it can't be pushed: {reason:.300}"]) from error
    return str(commit.commit_url)
