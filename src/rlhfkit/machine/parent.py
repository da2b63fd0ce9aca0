"""A process of `multiprocessing` that ends with the one that started it."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """From now on this process ends when its parent does, however that ended.

    `daemon=True` is not enough: it ends the child of a parent that ends in good order, not of one that was killed,
    which would go on alone, with a core or with all memory.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing has started has a parent"

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)  # nobody is left to hear of it

    threading.Thread(target=end, daemon=True, name="end with parent").start()
