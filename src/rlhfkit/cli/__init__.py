"""The command line: each command parses, imports late and calls one function."""

from rlhfkit.cli.app import main

__all__ = ["main"]
