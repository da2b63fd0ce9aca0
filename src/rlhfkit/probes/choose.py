"""The probes that settings name: those of the package, and files of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhfkit.config.probe import OWN_PROBES, ProbeConfig
from rlhfkit.errors import ConfigError
from rlhfkit.probes.catalogue import own_probes, own_scorers
from rlhfkit.probes.formats import probes_of_file
from rlhfkit.probes.probe import Probe
from rlhfkit.probes.scorers import Scorer

__all__ = ["chosen_probes", "primary_of"]


def chosen_probes(
    config: ProbeConfig, *, directory: Path, scorer: Scorer | None = None, training: Sequence[str] = ()
) -> list[Probe]:
    """The probes of `config`, in its order; relative paths start at `directory`.

    `scorer` says something of samples beside the package's word lists; `training` are rows that may be recited.
    Raises: ConfigError where a name is neither a probe nor a file; DataError where a file will not do.
    """
    own = {probe.name: probe for probe in own_probes(max_rows=config.max_rows, scorer=scorer, training=training)}
    if not config.names:
        return list(own.values())
    return list(_named(config, own, directory, scorer))


def _named(config: ProbeConfig, own: dict[str, Probe], directory: Path, scorer: Scorer | None) -> Iterator[Probe]:
    scorers = [*own_scorers(), *([scorer] if scorer is not None else [])]
    for name in config.names:
        path = directory / name
        if name in own:
            yield own[name]
        elif path.is_file():
            yield from probes_of_file(path, max_rows=config.max_rows, scorers=scorers)
        elif name not in OWN_PROBES:  # leakage has nothing to recite where no training rows are known
            raise ConfigError(
                f"names: {name!r} is neither a file of rows nor a probe; the probes are {', '.join(OWN_PROBES)}"
            )


def primary_of(config: ProbeConfig, probes: Sequence[Probe]) -> str:
    """Name of the probe that was declared beforehand: the one of the settings, or else the first."""
    named = config.primary if config.primary in OWN_PROBES else Path(config.primary).name.split(".")[0].lower()
    found = next((probe.name for probe in probes if config.primary and probe.name == named), None)
    return found or (probes[0].name if probes else "")
