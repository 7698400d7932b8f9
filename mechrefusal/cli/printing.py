"""What commands print: tables, as wide as the terminal."""

import io
import os
import sys
from pathlib import Path
from typing import Any

WIDE = 200
"""Columns of a table that no terminal shows."""


def print_rich(what: Any) -> None:
    """Print a table; into a file or a pipe so wide that nothing of it is cut off."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # for `main`, which knows what to do; rich would end the process itself

    console = Output()
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console = Output(width=WIDE)
    console.print(what)


def print_any_character() -> None:
    """Print what the encoding of the output does not have as its number, in place of an error that ends a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def summarise(folder: Path) -> None:
    """Print the summary of a measured run."""
    from mechrefusal import report

    print_rich(report.summary(folder))


def print_rates(rates: Any, differences: Any) -> None:
    """Print the rates of an evaluation and their differences."""
    from mechrefusal.report.terminal import evaluated

    print_rich(evaluated(rates, differences))


def print_stress(curve: Any, transfer: Any, control: Any, differences: Any) -> None:
    """Print the success of attacks that were made anew; nothing where there were none."""
    from mechrefusal.report.terminal import stress_control_tables, stress_differences_tables, stress_table

    if len(curve):
        print_rich(stress_table(curve, transfer))
        print_rich(stress_control_tables(control))
        print_rich(stress_differences_tables(differences))
