"""Tables as markdown."""

import pandas as pd


def written(about: str, table: pd.DataFrame) -> str:
    """One section in markdown."""
    shown = table.copy()
    for name in shown.select_dtypes("float"):
        shown[name] = [f"{value:.3f}".rstrip("0").rstrip(".") or "0" for value in shown[name]]
    lines = [" | ".join(map(str, row)) for row in shown.itertuples(index=False)]
    head = [" | ".join(shown.columns), " | ".join("---" for _ in shown.columns)]
    return "\n".join([about.strip(), "", *(f"| {line} |" for line in [*head, *lines]), ""])
