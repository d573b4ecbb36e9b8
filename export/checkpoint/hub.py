"""Download of a checkpoint from the Hugging Face hub, through its own client and file store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from stc.errors import CheckpointError

ALLOWED = ["*.safetensors", "*.json", "tokenizer*", "vocab*", "merges*", "*.txt", "*.jinja"]
"""Files worth their download: no pickled weights, no weights of other frameworks."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
BY_HAND = "download the checkpoint on a connected machine and pass its directory"


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME."""
    return HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def download(hub_id: str) -> Path:
    """The directory of the checkpoint's complete snapshot; nothing is fetched twice.

    Raises CheckpointError when the host cannot be reached and no complete snapshot lies on this
    machine, or when the host refuses.
    """
    host = urlparse(constants.ENDPOINT).hostname
    try:
        return Path(snapshot_download(hub_id, allow_patterns=ALLOWED))
    except LocalEntryNotFoundError as error:
        reason = _reason(error.__cause__ or error)
        got = f"no such directory, and {host} could not be reached ({reason})"
        raise CheckpointError(hub_id, got, fix=BY_HAND) from error
    except GatedRepoError as error:
        fix = "accept its licence there, then run: hf auth login"
        raise CheckpointError(hub_id, f"gated on {host}", fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the name; a private one needs: hf auth login"
        got = f"no such directory, and no such model on {host}"
        raise CheckpointError(hub_id, got, fix=fix) from error
    except Exception as error:
        # The client lets through errors of its HTTP library, which differs between its versions.
        got = f"download from {host} failed ({_reason(error)})"
        raise CheckpointError(hub_id, got, fix=f"try again, or {BY_HAND}") from error


def _reason(error: BaseException) -> str:
    """The error's first line, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
