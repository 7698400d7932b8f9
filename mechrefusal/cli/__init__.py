"""The command line: one thin command a stage."""

from mechrefusal.cli.entry import main

__all__ = ["main"]
