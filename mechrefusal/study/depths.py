"""From a checkpoint's tables to what `statistics.depth` compares: candidates with their scores prompt by prompt."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mechrefusal import tables
from mechrefusal.models import Checkpoint
from mechrefusal.prompts import PromptSet, Split
from mechrefusal.statistics.depth import Profile
from mechrefusal.study.run import Run

MEASURES = ("bypass", "induce", "kl")


def profiles(run: Run, checkpoints: Sequence[Checkpoint], validation: Split) -> dict[str, Profile | None]:
    """`profile` of each checkpoint of a run, by its id; `validation`: the prompts that candidates were scored on."""
    units, by_id = twins(validation.harmful, validation.harmless), {}
    for checkpoint in checkpoints:
        scores, halves = (
            tables.read(name, run.measurements(checkpoint)) for name in ("candidate_scores", "half_scores")
        )
        by_id[checkpoint.id] = profile(scores, halves, units)
    return by_id


def profile(candidates: pd.DataFrame, halves: pd.DataFrame, units: Mapping[str, Hashable]) -> Profile | None:
    """What is known of one checkpoint's candidates; None where their scores by prompt were not kept.

    Args:
        candidates, halves: tables `candidate_scores` and `half_scores` of the checkpoint.
        units: for each validation prompt what it stands or falls with, as `twins` gives it; itself where it is not in
            it.
    """
    if candidates.empty:
        return None
    # The rows come in the order in which ties between candidates are decided: layer, then position.
    by_measure = {
        name: candidates[candidates["measure"] == name].pivot_table(
            index=["layer", "position"], columns="prompt_id", values="value", sort=True
        )
        for name in MEASURES
    }
    places = by_measure["bypass"].index
    values = {name: table.reindex(places).to_numpy(float) for name, table in by_measure.items()}
    harmful, harmless = (
        [units.get(str(prompt), (name, str(prompt))) for prompt in by_measure[name].columns]
        for name in ("bypass", "induce")
    )
    return Profile(
        np.array([layer for layer, _ in places], float),
        values["bypass"],
        values["induce"],
        values["kl"],
        harmful,
        harmless,
        _shifts(places, halves),
    )


def scaled(profile: Profile | None, *, n_layers: int, to: int) -> Profile | None:
    """The profile with its depths taken as shares of `n_layers`, and counted in layers of a model with `to` layers."""
    if profile is None or n_layers == to:
        return profile
    return replace(profile, depths=profile.depths * (to / n_layers))


def twins(*sides: PromptSet) -> dict[str, str]:
    """The twin number of every prompt that has one, by its id."""
    known = [prompts.table for prompts in sides if "twin" in prompts.table]
    return {str(i): str(twin) for table in known for i, twin in zip(table["id"], table["twin"], strict=True)}


def _shifts(places: pd.MultiIndex, halves: pd.DataFrame) -> np.ndarray:
    """Half of the difference between the two halves: directions of all prompts are as noisy as that."""
    if halves.empty:
        return np.zeros((0, len(MEASURES), len(places)))
    first, second = (
        halves[halves["half"] == half].set_index(["layer", "position"])[list(MEASURES)].reindex(places)
        for half in (1, 2)
    )
    return np.nan_to_num(((first - second) / 2).to_numpy(float).T[None])
