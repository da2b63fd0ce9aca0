"""The section `parallel`: what several processes of a run part among them, beside the rows."""

from typing import Literal

from rlhfkit.config.section import Section

__all__ = ["ParallelConfig"]


class ParallelConfig(Section):
    """How several processes share a run; one process alone heeds none of it.

    Example:
        >>> from rlhfkit.config.parallel import ParallelConfig
        >>> ParallelConfig().shard
        'none'
    """

    shard: Literal["none", "fsdp"] = "none"
    """Each process holds all weights ("none"), or its part of them with gradients and Adam's averages ("fsdp")."""
