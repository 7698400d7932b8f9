"""What rows of a study's tables stand for: the place of a carrier, and which suites a study asks by itself."""

from collections.abc import Mapping
from typing import Any, Literal

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
"""Names and sides of the suites that a study asks at every checkpoint by itself, in the order in which it asks them.
Directions are made of the last two. All other suites are benchmarks, of an evaluation."""


def of_study(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table with a column `suite` that are of the study's suites."""
    return table[table["suite"].isin(SIDES)]


def of_benchmarks(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table with a column `suite` that are of all other suites."""
    return table[~table["suite"].isin(SIDES)]


def carrier_place(row: Mapping[str, Any] | pd.Series) -> tuple[int, int] | None:
    """(position, layer) of the carrier in a row of table `carrier`; None where there is none."""
    return _place(row.get("position"), row.get("layer"))


def best_place(row: Mapping[str, Any] | pd.Series) -> tuple[int, int] | None:
    """(position, layer) of the carrier, or of the best candidate in its place (`reference_kind`); None without one."""
    return _place(row.get("reference_position"), row.get("reference_layer"))


def _place(position: Any, layer: Any) -> tuple[int, int] | None:
    return None if pd.isna(position) or pd.isna(layer) else (int(position), int(layer))
