"""Whether the hub answers at all, asked once and briefly: its client tries again for half a minute with each file."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session

__all__ = ["hub_answers", "hub_options"]

TIMEOUT_SECONDS = 4.0
SECONDS_REMEMBERED = 60.0


def hub_options(path: str) -> dict[str, Any]:
    """What a loader of transformers needs to know of the hub for a model at `path`, a directory or a hub id."""
    return {} if Path(path).is_dir() or hub_answers() else {"local_files_only": True}


def hub_answers() -> bool:
    """Whether the hub is switched on and answers, whatever it says; known again for a minute."""
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, int(time.monotonic() / SECONDS_REMEMBERED))


@lru_cache(maxsize=4)
def _answers(endpoint: str, minute: int) -> bool:
    try:
        get_session().head(endpoint, timeout=TIMEOUT_SECONDS)
    except Exception:  # the client's library has errors of its own for each way to have no connection
        return False
    return True
