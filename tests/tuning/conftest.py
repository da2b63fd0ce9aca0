"""The fixtures of the database, for what keeps its trials there."""

from tests.databases import postgresql, postgresql_server

__all__ = ["postgresql", "postgresql_server"]
