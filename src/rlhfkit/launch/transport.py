"""Workers that are actors of Ray, as the pool reaches them."""

import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from rlhfkit.errors import LostRankError
from rlhfkit.launch.board import Orders
from rlhfkit.launch.pool import Answer

__all__ = ["RayTransport"]


class RayTransport:
    """Calls actors by name, in the namespace of the run."""

    def __init__(self, kind: str) -> None:
        """Reach those whose names begin with `kind`."""
        self._kind = kind
        self.orders = Orders()
        """As the driver said last."""
        self.table: dict[str, Any] = {}
        self._handles: dict[str, Any] = {}
        self._calls: dict[Any, tuple[str, int]] = {}
        """Open call → worker and ticket."""
        self._failed: list[Answer] = []

    def members(self) -> list[str]:
        """The workers that the driver has named."""
        return [name for name in self.orders.workers if name.startswith(self._kind)]

    def give(self, worker: str, ticket: int, chunk: Any) -> None:
        """Have it work."""
        try:
            if worker not in self._handles:
                self._handles[worker] = ray.get_actor(worker)
            self._calls[self._handles[worker].work.remote(chunk)] = worker, ticket
        except (ValueError, RayActorError) as error:  # no actor of this name: it is gone for good
            self._failed.append(self._lost(worker, ticket, "there is no process of this name", error))

    def answers(self, seconds: float) -> list[Answer]:
        """What has come, after at most `seconds` of waiting for it."""
        found, self._failed = self._failed, []
        if not self._calls:
            if not found:
                time.sleep(seconds)
            return found
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        return found + [self._answer(call) for call in done]

    def _answer(self, call: Any) -> Answer:
        worker, ticket = self._calls.pop(call)
        try:
            return Answer(worker, ticket, ray.get(call))
        except RayTaskError as error:  # what the worker raised
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Answer(worker, ticket, error=cause, is_loss=isinstance(cause, RayError))
        except ActorUnavailableError as error:
            return self._lost(worker, ticket, "its process has ended, or cannot be reached", error)
        except RayActorError as error:
            return self._lost(worker, ticket, "its process or its machine has ended", error)
        except RayError as error:  # what it needed could not be pulled
            return self._lost(worker, ticket, "what it works with cannot be pulled", error)

    def _lost(self, worker: str, ticket: int, why: str, error: Exception) -> Answer:
        self._handles.pop(worker, None)
        lost = LostRankError(why)
        lost.__cause__ = error
        return Answer(worker, ticket, error=lost, is_loss=True)

    def restart(self, worker: str) -> None:
        """Kill it; Ray starts another one in its place."""
        self._calls = {call: given for call, given in self._calls.items() if given[0] != worker}
        handle = self._handles.pop(worker, None)
        if handle is not None:
            ray.kill(handle, no_restart=False)

    def publish(self, table: dict[str, Any]) -> None:
        """Show how the workers are, with the next beat."""
        self.table = table
