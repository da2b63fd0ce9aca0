"""`rlhfkit` with a sampler that has a fault, as the environment says: python -m tests.launch.planted run …"""

import os
import time
from pathlib import Path

import ray

from rlhfkit.cli import main
from rlhfkit.launch import driver
from rlhfkit.launch.sampler import Sampler
from tests.launch.machines import samplers

__all__ = ["Planted"]

FAULT = "RLHFKIT_TEST_FAULT"
"""Names the sampler that has it."""
RUN = "RLHFKIT_TEST_RUN"
PATIENCE_SECONDS = 40.0


class Planted(Sampler):
    """Keeps the first weights that it gets, and says that they are those that it was asked for.

    The others leave the work to it until it has been taken out, so that this comes before the end of a short run.
    """

    def _load(self, weights):
        is_it = ray.get_runtime_context().get_actor_name() == os.environ[FAULT]
        if not is_it:
            self._wait()
        if not is_it or self._weights is None:
            super()._load(weights)
        self._weights = weights.id

    def _wait(self):
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            liar = samplers(Path(os.environ[RUN])).get(os.environ[FAULT], {})
            if liar.get("state") == "refused":
                break
            time.sleep(0.2)


if __name__ == "__main__":
    import tests.launch.planted  # by this name actors find it too

    driver.Sampler = tests.launch.planted.Planted
    main()
