"""Progress that a test reads or stops, and what a run in a directory holds of people's votes."""

import json
from contextlib import contextmanager

from rlhfkit.feedback.store import Store
from rlhfkit.machine.progress import Progress


class Talk(Progress):
    """Keeps what a person would read, and shows nothing."""

    def __init__(self):
        super().__init__(quiet=True)
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


class Killed(Talk):
    """Ctrl-C when so many units of a stage are done, at the stage's n-th time."""

    def __init__(self, name, time, completed=1):
        super().__init__()
        self.name, self.time, self.completed = name, time, completed

    @contextmanager
    def stage(self, name, **settings):
        self.time -= name == self.name
        with super().stage(name, **settings) as stage:
            advance = stage.advance

            def advance_or_stop(amount=1, detail=""):
                advance(amount, detail)
                if name == self.name and self.time == 0 and stage.completed >= self.completed:
                    raise KeyboardInterrupt

            stage.advance = advance_or_stop
            yield stage


def snapshot_of(database):
    with Store.open(database) as store:
        return store.snapshot()


def frozen(run_dir):
    return [json.loads(line) for line in run_dir.preferences.read_text().splitlines()]


def metrics(run_dir):
    """Rows of metrics.jsonl, without what a clock says."""
    rows = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
