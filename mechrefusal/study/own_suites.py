"""The suites that a study asks at every checkpoint by itself. All others are benchmarks, of an evaluation."""

from typing import Literal

import pandas as pd

SIDES: dict[str, Literal["harmful", "harmless"]] = {
    "evaluation_harmful": "harmful",
    "evaluation_harmless": "harmless",
    "overrefusal": "harmless",
    "contrast": "harmful",
    "utility": "harmless",
    "direction_harmful": "harmful",
    "direction_harmless": "harmless",
}
"""Their names and sides, in the order in which they are asked. Directions are made of the last two."""


def own(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table with a column `suite` that are of the study's own suites."""
    return table[table["suite"].isin(SIDES)]


def benchmarks(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table with a column `suite` that are of all other suites."""
    return table[~table["suite"].isin(SIDES)]
