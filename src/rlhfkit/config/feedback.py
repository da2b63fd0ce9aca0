"""Settings of the labels: what people are asked, and who they are."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, NonNegativeInt, PositiveFloat, PositiveInt, Tag

from rlhfkit.config.secrets import secret_in
from rlhfkit.config.section import LocalPath, OpenShare, Section, Share, type_or

__all__ = ["AnnotatorsConfig", "Database", "PeopleConfig", "PreferencesConfig", "SimulatedConfig", "usable_database"]


REMEDY = "give it in the environment variable PGPASSWORD or in ~/.pgpass, or write ${NAME} in its place and export NAME"


def usable_database(database: str) -> str:
    """The name of a database, with ~ filled in. Raises: ValueError where it holds a secret."""
    if "://" not in database:
        if re.search(r"\bpassword\s*=", database) and not os.path.exists(database):
            raise ValueError(f"it is neither a file nor an address, and holds a password; {REMEDY}")
        return os.path.expanduser(database)
    if (what := secret_in(database)) is not None:
        raise ValueError(
            f"the address holds {what}, which would stand in files and lists of processes; leave it out, and {REMEDY}"
        )
    return database


Database = Annotated[str, Field(min_length=1), AfterValidator(usable_database)]


class SimulatedConfig(Section):
    """Simulated people, who know the true reward and err at a stated rate."""

    type: Literal["simulated"] = "simulated"
    """Says which kind this is; in Python the class does."""
    disagreement: Share = 0.15
    """Share of the votes that go against the true reward."""
    votes_per_pair: PositiveInt = 1
    """How many of them vote on each pair; the majority decides, a tie drops the pair."""


class PeopleConfig(Section):
    """People, who compare the responses on a page that the run shows while it waits."""

    type: Literal["people"] = "people"
    """Says which kind this is; in Python the class does."""
    votes_per_pair: PositiveInt = 1
    """How many of them vote on a pair; one more is asked where the first two disagree."""
    calibration_share: Share = 0.15
    """Share of the pairs that everybody may get, which tell how far people agree."""
    calibration_votes: PositiveInt = 3
    """How many of them vote on such a pair."""
    names: tuple[str, ...] = ()
    """People who get a link of their own, and whom the run waits for; without names, anybody here may vote."""
    guidelines: LocalPath | None = None
    """Markdown file with what to look at, shown beside the page."""
    host: str = "127.0.0.1"
    """Address that the page is bound to; one that other machines reach needs `names`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8571
    """Port of the page; the next free one where it is taken."""
    lease_minutes: PositiveFloat = 10.0
    """After this time without a sign of life a pair goes to somebody else."""


AnnotatorsConfig = Annotated[
    Annotated[SimulatedConfig, Tag("simulated")] | Annotated[PeopleConfig, Tag("people")],
    Discriminator(type_or("simulated")),
]


class PreferencesConfig(Section):
    """Sample pairs of responses and let people choose, real or simulated."""

    num_pairs: PositiveInt = 1000
    """Pairs to be labelled; in every round where there are several."""
    num_test_pairs: NonNegativeInt = 200
    """Further pairs, on other prompts, that measure the reward model."""
    num_candidates: NonNegativeInt = 0
    """Pairs to choose `num_pairs` from, by where a label teaches most; 0 takes what was sampled."""
    random_share: OpenShare = 0.25
    """Share of the chosen pairs that is drawn at random all the same: only these give honest figures."""
    sampled_from: LocalPath | None = None
    """Model that writes the responses; by default the one that PPO starts from."""
    database: Database | None = None
    """SQLite file or address of a PostgreSQL database that keeps pairs and votes; by default a file of the run."""
    round: PositiveInt = 1
    """Round of the loop that the pairs belong to; labels of the rounds before count too."""
    annotators: AnnotatorsConfig = SimulatedConfig()
    """Who votes."""
