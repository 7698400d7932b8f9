"""How often judges err, measured on answers that people labelled: `known_errors.yaml` says on which, and how."""

from pathlib import Path

import yaml

from mechrefusal.evaluation.judge_error import JudgeCounts

XSTEST = "XSTest, Llama 2"
MEASURED: dict[str, dict[str, JudgeCounts]] = {
    judge: {data_set: JudgeCounts(**counts) for data_set, counts in known.items()}
    for judge, known in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
"""Counts by judge and data set, of the halves that were not read."""


def known_error(judge_name: str) -> tuple[str, JudgeCounts] | None:
    """Counts that correct the rates of the judge of this name, and what they were measured on; None without any."""
    counts = MEASURED.get(judge_name)
    return None if counts is None else (XSTEST, counts[XSTEST])
