"""What a user asks of a run on a cluster while it goes on: other numbers of workers."""

from collections.abc import Callable

from rlhfkit.errors import CheckpointError
from rlhfkit.launch.board import SAMPLERS, SCORERS
from rlhfkit.launch.crew import Crew
from rlhfkit.launch.record import Record
from rlhfkit.rundir.cluster import Wanted, refused, taken_request
from rlhfkit.rundir.directory import RunDir
from rlhfkit.wording import counted

__all__ = ["heed", "wanted_of"]


def wanted_of(crew: Crew) -> Wanted:
    """How many workers of each kind there shall be."""
    return Wanted(samplers=crew.number(SAMPLERS), reward_workers=crew.number(SCORERS))


def heed(run: RunDir, crew: Crew, record: Record, *, note: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Do what has been asked for since the last time; what cannot be done is a warning, as the run goes on."""
    try:
        asked = taken_request(run)
        why_not = None if asked is None else refused(asked, wanted_of(crew))
    except (CheckpointError, OSError) as error:
        asked, why_not = None, str(error)
    if why_not is not None:
        warn(f"the workers stay as they are: {why_not}")
        return
    if asked is None:
        return
    for kind, name, num in (
        (SAMPLERS, "sampler", asked.samplers),
        (SCORERS, "reward worker", asked.reward_workers),
    ):
        before = crew.number(kind)
        if num is not None and num != before:
            crew.have(kind, num)
            words = f"{counted(num, name)} in place of {before}"
            record.note("asked", why=words)
            note(f"from now on {words}")
