"""All calibrations, as one page of tables.

python -m calibration --out docs/calibration.md   # what `make calibrate` runs first: five minutes
python -m calibration --quick                     # about a minute, to the terminal
python -m calibration --only corrected_rates      # one table
"""

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_limits

from calibration import depth, intervals, maps, separability, sides
from calibration.written import written
from mechrefusal.progress import track


def pages(*, quick: bool) -> Iterator[tuple[str, str, Callable[[], pd.DataFrame]]]:
    """The name of each table, what it is about, and the table."""
    runs = 40 if quick else 1000
    yield (
        "depth",
        str(depth.__doc__),
        lambda: depth.table(runs=10 if quick else 200, numbers=(32,) if quick else depth.NUMBERS),
    )
    yield "sides", str(sides.__doc__), lambda: sides.table(runs=20 if quick else 500)
    yield "separability", str(separability.__doc__), lambda: separability.table(runs=10 if quick else 150)
    for module, of in (
        (intervals, ("means", "ratios", "paired_rates", "corrected_rates")),
        (maps, ("table", "controls")),
    ):
        for name in of:
            make = getattr(module, name)
            many = 300 if module is maps and not quick else runs
            yield name, inspect.getdoc(make) or name, partial(make, runs=many)


def main() -> int:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs of each")
    parser.add_argument("--only", help="one table, by its name")
    parser.add_argument("--out", type=Path, help="file to write; the terminal by default")
    options = parser.parse_args()
    start = time.perf_counter()
    chosen = [page for page in pages(quick=options.quick) if options.only in (None, page[0])]
    if not chosen:
        parser.error(f"no table '{options.only}'; there are {', '.join(name for name, *_ in pages(quick=True))}")
    with threadpool_limits(1):  # matrices as small as these are multiplied slower by several threads
        sections = [written(about, make()) for _, about, make in track(chosen, "calibrations")]
    words = " ".join(["python -m calibration", *sys.argv[1:]])
    text = "\n".join(
        [
            "# Calibration",
            "",
            f"Measured by `{words}` in {time.perf_counter() - start:.0f} s. Shares are of simulated runs.",
            "",
            *sections,
        ]
    )
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
