"""What a recipe will take, as a table of the terminal."""

import pandas as pd
from rich.table import Table


def plan_table(rows: pd.DataFrame) -> Table:
    """Table `plan` (`study.plan`): a line a stage, and the whole."""
    first = rows.iloc[0]
    table = Table(
        title=f"Plan: {first['parameters'] / 1e6:,.0f} million parameters on {first['device']}",
        caption=f"{rows['seconds'].sum() / 3600:.2f} hours; {first['available_gib']:.1f} GiB on each device",
    )
    for name in ("stage", "times", "memory, GiB", "forward tokens", "TFLOP", "time", ""):
        table.add_column(name, justify="left" if name in ("stage", "") else "right")
    for row in rows.to_dict("records"):
        table.add_row(
            row["stage"],
            str(row["times"]),
            f"{row['memory_gib']:.1f}",
            _number(row["forward_tokens"]),
            _number(row["flops"] / 1e12, 1),
            _time(row["seconds"]),
            "" if row["fits"] else "will not fit",
        )
    return table


def _number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
