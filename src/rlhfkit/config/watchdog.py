"""Settings of the watchdog."""

from typing import Literal

from pydantic import NonNegativeFloat

from rlhfkit.config.section import Section

__all__ = ["WatchdogConfig"]


class WatchdogConfig(Section):
    """What happens when a run gives no sign of life: no update, no response, no score."""

    patience_seconds: NonNegativeFloat = 1800.0
    """How long the same phase may be silent before it is named; 0 never watches."""
    action: Literal["warn", "stop"] = "warn"
    """"warn" says so and waits on; "stop" ends the process, so that what started it can start it again."""
