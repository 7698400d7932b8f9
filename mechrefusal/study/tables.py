"""The schema of every table: tidy pandas frames, stored as parquet. One place, so that no reader guesses a column.

Every per-checkpoint table starts with `arm` (str, "base" at step 0), `step` (int, optimiser steps) and `weights` (str,
hash of the weights that were measured). Rates carry `n`, `low` and `high` (95% interval).
"""

from pathlib import Path

import pandas as pd

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file

CHECKPOINT = ("arm", "step", "weights")

PER_CHECKPOINT: dict[str, tuple[str, ...]] = {
    # One row a completion. `set`: evaluation_harmful, evaluation_harmless, overrefusal, contrast, utility,
    # direction_harmful, direction_harmless. `attack`: none, or the method that made the case.
    # `intervention`: none, ablate, add, ablate_random, add_random.
    "generations": (
        "set", "prompt_id", "category", "prompt", "attack", "intervention", "completion", "refused", "degenerate",
    ),
    # One row a rate. `metric`: refusal_rate, degenerate_rate, attack_success_rate (harmful sets), answered_rate (the
    # others). `judge` names the rule.
    "rates": ("set", "attack", "intervention", "metric", "judge", "value", "n", "low", "high"),
    # One row a checkpoint. `kind`: discovered or fallback. Token sets are JSON lists of strings. The refusal metric is
    # log P(refusal tokens) - log P(compliance tokens) after `opening`, nats.
    "openings": (
        "kind", "opening", "refusal_tokens", "compliance_tokens", "coverage", "auc", "n_refused", "n_answered", "note",
    ),
    # One row a prompt: the discovered score and the hand-picked one of Arditi et al.
    "scores": ("set", "prompt_id", "score", "rd_score", "refused"),
    # One row a (position, layer). `position` is negative, counted from the end of the prompt; `token` stands there.
    # `selection`: "kept by score", or "all prompts" where too few were kept.
    "directions": ("position", "token", "layer", "norm", "split_half_cosine", "n_harmful", "n_harmless", "selection"),
    # One row a scored candidate.
    "carriers": ("position", "layer", "bypass", "induce", "kl", "admissible", "rejected_because", "winner"),
    # One row a checkpoint: the winner, or NaN and the reason why there is none.
    "carrier": (
        "position", "token", "layer", "bypass", "induce", "kl", "baseline_harmful", "baseline_harmless",
        "n_candidates", "n_admissible", "reason",
    ),
    # One row a component: embed, pos_embed, head, mlp, bias, total; `layer`, `head` are -1 where there is none. `onto`:
    # refusal_logits (mean logit of the refusal tokens minus that of the compliance tokens) or carrier (projection on
    # the unit carrier). `set`: harmful or harmless. `value` is the mean over n prompts.
    "attribution": ("set", "onto", "component", "layer", "head", "value", "n", "low", "high"),
    # One row a patched site. `site`: resid_pre (layer x position, `head` -1) or head_z (layer x head, `position` 0 for
    # all). `raw`: change of the metric, nats; `effect`: (m - m_corrupted) / (m_clean - m_corrupted).
    "patching": ("site", "mode", "layer", "head", "position", "token", "raw", "effect", "n", "low", "high"),
    # One row a token of an example prompt: `value` is the projection of resid_pre at the carrier's layer on the unit
    # carrier, NaN where there is no carrier.
    "tokens": ("set", "prompt_id", "index", "token", "value"),
    # One row an entry of an attention pattern of a top head on an example prompt (source <= destination).
    "attention": ("prompt_id", "layer", "head", "destination", "source", "weight"),
    # One row a step of the measurement: wall time.
    "timings": ("stage", "seconds", "note"),
}  # fmt: skip

ACROSS: dict[str, tuple[str, ...]] = {
    # One row a training step. Loss terms that an arm lacks are NaN (all terms, added ones too, are in `terms`).
    # `attack_loss_*`: mean target loss of the drawn cases before and after their refresh. `pool_age`: mean number of
    # refreshes since a drawn case had the initial suffix. `attack_tokens`: tokens that the refresh ran forward.
    # `seconds` is the wall time of the step, `seconds_*` its parts. `peak_mib`: highest memory so far.
    "training": (
        "arm", "step", "loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after", "pool_age",
        "attack_tokens", "grad_norm", "learning_rate", "seconds", "seconds_refresh", "seconds_forward",
        "seconds_backward", "seconds_optimizer", "peak_mib",
    ),
    # One row a training step and loss term: `value` before `weight` is applied.
    "terms": ("arm", "step", "term", "weight", "value"),
    # One row a case that a training step refreshed. `age`: refreshes since it had the initial suffix, this one
    # included. `loss_before`, `loss_after`: cross-entropy of its target, nats a token.
    "refreshes": ("arm", "step", "case", "loss_before", "loss_after", "age", "forward_tokens", "dropped"),
    # One row an anchor of an arm and probe set (harmful, harmless, attacked: pool behaviours with their suffixes).
    "probes": ("arm", "step", "set", "metric", "judge", "value", "n", "low", "high"),
    # One row an attack case made against `source` (arm-step-00000 or a hash of weights).
    "cases": (
        "source", "method", "case", "behaviour", "prompt", "loss_first", "loss", "steps", "forward_tokens", "dropped",
        "seconds",
    ),
    # One row a pair of checkpoints and measure: carrier_cosine, direction_cosine, principal_angle_mean,
    # principal_angle_max (degrees). `layer` is -1 where the measure belongs to none. `floor`: the same measure between
    # two halves of the prompts at the first checkpoint. `reason` says why a value is NaN.
    "drift": ("arm_a", "step_a", "arm_b", "step_b", "measure", "layer", "value", "floor", "n", "reason"),
    # One row a checkpoint and variant. `rows`: positions, layers, admissible. `scaling`: raw, unit. `weight`: sigma,
    # sigma_squared.
    "effective_rank": ("arm", "step", "rows", "scaling", "weight", "value", "n_rows", "reason"),
    # One row a stage of the run: wall time.
    "stages": ("stage", "seconds"),
}  # fmt: skip


ADDED: dict[str, tuple[str, ...]] = {
    "training": (
        "pool_age", "attack_tokens", "grad_norm", "learning_rate", "seconds_refresh", "seconds_forward",
        "seconds_backward", "seconds_optimizer", "peak_mib",
    ),
}  # fmt: skip
"""Columns that runs of an earlier version do not have; they are NaN there."""


def columns(name: str) -> tuple[str, ...]:
    """Column names of table `name`, in order."""
    if name in PER_CHECKPOINT:
        return CHECKPOINT + PER_CHECKPOINT[name]
    if name in ACROSS:
        return ACROSS[name]
    raise MechrefusalError(f"unknown table '{name}': expected one of {', '.join([*PER_CHECKPOINT, *ACROSS])}")


def frame(name: str, rows: list[dict] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a table of schema `name`; a missing or an extra column is an error."""
    wanted = list(columns(name))
    table = pd.DataFrame(rows, columns=wanted if len(rows) == 0 else None)
    missing, extra = [c for c in wanted if c not in table], [c for c in table if c not in wanted]
    if missing or extra:
        raise MechrefusalError(
            f"table '{name}' does not fit its schema: missing columns {missing}, extra columns {extra}"
        )
    return table[wanted]


def write(table: pd.DataFrame, name: str, folder: Path) -> Path:
    """Write `table` (checked against the schema) to `<folder>/<name>.parquet`."""
    path = Path(folder) / f"{name}.parquet"
    with whole_file(path) as draft:
        frame(name, table).to_parquet(draft, index=False)
    return path


def read(name: str, folder: Path) -> pd.DataFrame:
    """Read `<folder>/<name>.parquet`; an absent file is an empty table of the right columns."""
    path = Path(folder) / f"{name}.parquet"
    if not path.is_file():
        return pd.DataFrame(columns=list(columns(name)))
    try:
        table = pd.read_parquet(path)
    except Exception as error:
        raise MechrefusalError(
            f"{path} cannot be read as parquet ({error}); delete it and run 'mechrefusal measure' again"
        ) from error
    added = [column for column in ADDED.get(name, ()) if column not in table]
    return frame(name, table.assign(**dict.fromkeys(added, float("nan"))))
