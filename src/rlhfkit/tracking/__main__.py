"""The process beside a run: `python -m rlhfkit.tracking TRACKER RUN`, which the run starts and ends.

On stdin it gets what the run cannot write into its files: "forget STAGE" and "end ENDING". Without an end the run
was killed, and what it had written is sent all the same. Each line that it says is an object with `place` or `error`.
"""

import json
import os
import select
import sys
import threading
import warnings
from typing import IO, cast, get_args

from rlhfkit.config.tracking import TrackerName
from rlhfkit.rundir.directory import RunDir
from rlhfkit.tracking.follow import Follower
from rlhfkit.tracking.tracker import Ending, safe_words

__all__ = ["main"]

LOOK_SECONDS = 1.0
"""How often it looks for new lines."""
LAST_SECONDS = 120.0
"""So long it may take to send the rest once the run has ended; then it ends itself."""


def main(name: TrackerName, directory: str) -> int:
    """Follow the run until it ends; exit code 1 where the tracker has failed, which was said."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what libraries print is not for the run's screen
        os.dup2(nowhere, descriptor)
    try:
        _follow(name, RunDir(directory), said)
        return 0
    except Exception as error:  # whatever it is, it only shows the run
        words = " ".join(safe_words(str(error)).split()) or type(error).__name__
        _say(said, error=words[:500])
        return 1


def _follow(name: TrackerName, run: RunDir, said: IO[str]) -> None:
    _hear_warnings(name, said)
    follower = Follower(run, name)
    _say(said, place=safe_words(follower.place))
    ending: Ending | None = None
    while ending is None:
        follower.follow()
        for line in _heard(LOOK_SECONDS):
            word, _, rest = line.partition(" ")
            if word == "forget":
                follower.forget(rest)
            elif word == "end" and rest in get_args(Ending):
                ending = cast(Ending, rest)
            elif not word:
                ending = ending or "failed"
    timer = threading.Timer(LAST_SECONDS, os._exit, [1])
    timer.daemon = True
    timer.start()
    follower.close(ending)


def _heard(seconds: float) -> list[str]:
    """Lines that have come on stdin within the seconds; an empty one at its end."""
    if not select.select([0], [], [], seconds)[0]:
        return []
    content = os.read(0, 65536)  # whole lines: far less than what a pipe writes at once
    return content.decode("utf-8", "replace").splitlines() if content else [""]


def _hear_warnings(name: str, said: IO[str]) -> None:
    """Pass on the first warning that a tracker gives where others raise."""
    heard: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if not heard and issubclass(category, UserWarning) and name in str(message).lower():
            heard.append(str(message))
            _say(said, error=" ".join(safe_words(str(message)).split())[:500])

    warnings.showwarning = show
    warnings.simplefilter("default", UserWarning)


def _say(said: IO[str], **what: str) -> None:
    try:
        said.write(json.dumps(what) + "\n")
        said.flush()
    except BrokenPipeError:
        pass  # the run was killed; what it had written is sent all the same


if __name__ == "__main__":
    # Not by sys.exit: no handler of a library may hold the process at its end.
    os._exit(main(cast(TrackerName, sys.argv[1]), sys.argv[2]))
