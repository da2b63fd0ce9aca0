"""Fixtures of databases, of each kind that holds votes."""

from tests.databases import database, postgresql, postgresql_server

__all__ = ["database", "postgresql", "postgresql_server"]
