"""A run folder as the report sees it: tables and texts, nothing else."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report.order import BASE, SHARED, WARM_UP, checkpoint_order
from mechrefusal.study import table_rows

_CHECKPOINT_FOLDER = re.compile(r"(?P<arm>.+)-step-(?P<step>\d+)")
EVALUATION = (
    "suite_differences", "answer_losses", "judge_agreement", "leaks", "stress", "stress_transfer", "stress_control",
    "stress_differences",
)  # fmt: skip
"""Tables of benchmarks and of attacks made anew, beside `verdicts` and `rates`."""
BEHAVIOUR = ("verdicts", "rates")
"""Tables of what was answered and judged, by measurements and evaluations."""
KIND = ("architecture", "n_layers", "d_model", "n_heads")
"""Columns of the table `checkpoints` that must agree for layers and heads to be the same ones."""


@dataclass(frozen=True)
class MeasuredCheckpoint:
    """The tables of one checkpoint.

    Fields:
        id: name of its folder in `measurements/`, e.g. `r2d2-step-00050`.
        arm, step: taken from that name; step counts optimiser steps.
        tables: every name of `tables.PER_CHECKPOINT`; an absent file is an empty table. Also `verdicts` and `rates`:
            the rows of the run's tables that are of this checkpoint and of the study's own suites.
    """

    id: str
    arm: str
    step: int
    tables: Mapping[str, pd.DataFrame]

    @property
    def label(self) -> str:
        """`r2d2, step 50`."""
        return f"{self.arm}, step {self.step}"

    @property
    def weights(self) -> str:
        """Hash of the weights as the tables give it, or an empty string."""
        for table in self.tables.values():
            if len(table) and "weights" in table:
                return str(table["weights"].iloc[0])
        return ""

    @property
    def n_layers(self) -> int:
        """Number of layers that the tables speak of (0 if none does)."""
        names = ("carriers", "directions", "attribution", "patching")
        return max(int(self.tables[name]["layer"].max()) + 1 if len(self.tables[name]) else 0 for name in names)


@dataclass(frozen=True)
class MeasuredRun:
    """Everything that a report shows. `recipe` and `manifest` are None where the file is absent."""

    folder: Path
    checkpoints: tuple[MeasuredCheckpoint, ...]
    across: Mapping[str, pd.DataFrame]
    recipe: str | None
    manifest: str | None

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.resolve().name

    @property
    def ids(self) -> set[str]:
        """Of all checkpoints."""
        return {checkpoint.id for checkpoint in self.checkpoints}

    @property
    def evaluated(self) -> bool:
        """Whether any benchmark was answered, or attacked anew: the report then has a page about them."""
        return any(len(self.benchmarks(name)) for name in BEHAVIOUR) or any(len(self.across[n]) for n in EVALUATION)

    @property
    def has_several_arms(self) -> bool:
        """Whether there are two arms or more that were compared: the report then has a page about them."""
        methods = self.across["methods"]
        return methods.loc[~methods["arm"].isin(SHARED), "arm"].nunique() > 1

    @property
    def beside_each_other(self) -> str:
        """What a sum of times has to say: that checkpoints were measured at once, and how many; else nothing."""
        try:
            n = max(json.loads(self.manifest or "{}").get("at_once", {}).values(), default=1)
        except (ValueError, AttributeError, TypeError):
            n = 1
        return f"; up to {n} checkpoints were measured at once" if n > 1 else ""

    @property
    def has_durability(self) -> bool:
        """Whether it was measured what it takes to remove refusal: the report then has a page about it."""
        names = set(tables.DURABILITY)
        across = any(len(self.across[name]) for name in names.intersection(tables.ACROSS))
        return across or any(len(c.tables[name]) for c in self.checkpoints for name in names & c.tables.keys())

    def benchmarks(self, name: str) -> pd.DataFrame:
        """Rows of `verdicts` or `rates` that are of benchmarks; what the study asks itself the checkpoints have."""
        return table_rows.of_benchmarks(self.across[name])

    @property
    def warm_up(self) -> int | None:
        """Last step of the warm-up that all arms share, or None where there is none."""
        return max((c.step for c in self.checkpoints if c.arm == WARM_UP), default=None)

    @property
    def has_base(self) -> bool:
        """Whether there is a base model, which arms start at or are compared with."""
        return any(c.arm == BASE for c in self.checkpoints)

    @property
    def has_trained(self) -> bool:
        """Whether any arm was trained here."""
        return len(self.across["training"]) > 0 or not self.given

    @property
    def given(self) -> bool:
        """Whether models were measured that others trained."""
        return bool((self.across["checkpoints"]["source"] != "").any())

    @property
    def n_kinds(self) -> int:
        """Kinds of models: architectures, sizes, and tokens that the same prompts become."""
        return len(self.across["checkpoints"][[*KIND, "prompts"]].drop_duplicates())

    @property
    def kinds(self) -> list[list[MeasuredCheckpoint]]:
        """Checkpoints by architecture and sizes; all are of one kind where the table `checkpoints` does not tell."""
        rows = self.across["checkpoints"].to_dict("records")
        kind_of = {(row["arm"], int(row["step"])): tuple(row[name] for name in KIND) for row in rows}
        by_kind: dict[tuple, list[MeasuredCheckpoint]] = {}
        for checkpoint in self.checkpoints:
            by_kind.setdefault(kind_of.get((checkpoint.arm, checkpoint.step), ()), []).append(checkpoint)
        return list(by_kind.values())

    @property
    def last_of_each_arm(self) -> list[MeasuredCheckpoint]:
        """The end of the warm-up and the last checkpoint of each arm; the base where nothing was trained."""
        last = {c.arm: c for c in self.checkpoints}
        trained = [c for c in last.values() if c.arm != BASE]
        return trained or list(last.values())

    def together(self, name: str, *, among: Sequence[MeasuredCheckpoint] | None = None) -> pd.DataFrame:
        """Table `name` of all checkpoints, or of those in `among`, in their order."""
        chosen = self.checkpoints if among is None else among
        measured = [c.tables[name].assign(arm=c.arm, step=c.step) for c in chosen if len(c.tables[name])]
        return pd.concat(measured, ignore_index=True) if measured else tables.frame(name, [])


def read_run(folder: Path | str) -> MeasuredRun:
    """Read `<folder>/measurements`, `manifest.json` and `recipe.yaml`.

    Raises:
        MechrefusalError: there is no such run, it has not been measured, or a table cannot be read.
    """
    folder = Path(folder)
    measurements = folder / "measurements"
    if not measurements.is_dir():
        raise MechrefusalError(
            f"nothing to report: {measurements} does not exist; run 'mechrefusal measure' on {folder} first"
        )
    across = {name: tables.read(name, measurements) for name in tables.ACROSS}
    of_study = {name: table_rows.of_study(across[name]) for name in BEHAVIOUR}
    checkpoints = []
    for path in measurements.iterdir():
        match = _CHECKPOINT_FOLDER.fullmatch(path.name)
        if path.is_dir() and match and not path.name.startswith("."):
            read = {name: tables.read(name, path) for name in tables.PER_CHECKPOINT}
            arm, step = match["arm"], int(match["step"])
            behaviour = {name: rows[(rows["arm"] == arm) & (rows["step"] == step)] for name, rows in of_study.items()}
            checkpoints.append(MeasuredCheckpoint(path.name, arm, step, read | behaviour))
    checkpoints.sort(key=lambda c: checkpoint_order((c.arm, c.step)))
    return MeasuredRun(
        folder, tuple(checkpoints), across, _text(folder / "recipe.yaml"), _json_text(folder / "manifest.json")
    )


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _json_text(path: Path) -> str | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text
