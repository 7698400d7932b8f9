"""Where table `carrier` says that the carrier of a checkpoint stands, and what stands in for one."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def carrier_place(row: Mapping[str, Any] | pd.Series) -> tuple[int, int] | None:
    """(position, layer) of the carrier; None where there is none."""
    return _place(row.get("position"), row.get("layer"))


def best_place(row: Mapping[str, Any] | pd.Series) -> tuple[int, int] | None:
    """The same of the carrier, or of the best candidate in its place (`reference_kind` tells); None without either."""
    return _place(row.get("reference_position"), row.get("reference_layer"))


def _place(position: Any, layer: Any) -> tuple[int, int] | None:
    return None if pd.isna(position) or pd.isna(layer) else (int(position), int(layer))
