"""The section `parallel`: what several processes of a run part among them, beside the rows."""

from typing import Literal

from rlhfkit.config.section import Section

__all__ = ["ParallelConfig"]


class ParallelConfig(Section):
    """How several processes share a run; one process alone heeds none of it.

    Example:
        >>> from rlhfkit.config.parallel import ParallelConfig
        >>> ParallelConfig().shard
        'auto'
    """

    shard: Literal["auto", "none", "fsdp"] = "auto"
    """Each process holds all weights ("none"), or its part of them, their gradients and Adam's averages ("fsdp");
    "auto": all, where they fit into its memory, as a run decides when it begins."""
