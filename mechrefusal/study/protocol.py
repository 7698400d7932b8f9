"""The protocol: what is measured at every checkpoint, in order, and then over all of them.

A measure is a line here: its work, the tables that it gives, and what its result hangs on. Each is kept on disk by
itself (`Run.cached`): what was finished is not made again, and what is changed takes along what comes after it alone.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.processes import LOADING, Around, alone
from mechrefusal.study.caching import Inputs, fingerprint
from mechrefusal.study.comparison import Comparison
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.run import Run
from mechrefusal.study.selection import Asked
from mechrefusal.study.stages import CASES, LAST, Stage, inputs, prompts_asked

_EVALUATED = ("harmful", "harmless")
_THRESHOLDS = ("measuring.kl_threshold", "measuring.induce_threshold", "measuring.prune_layer_fraction")
_AT_REFERENCE = ("refusal metric", "directions", "carriers")

AT_A_CHECKPOINT = (
    Stage("answers", Measurement.answer, settings=("measuring.max_new_tokens",),
          asks=(*_EVALUATED, "overrefusal", "contrast", "utility", "direction", CASES)),
    Stage("refusal metric", Measurement.take_metric, gives=("openings", "scores"), after=("answers",),
          asks=("direction", "validation"), settings=("measuring.judge", "training.refusal")),
    Stage("directions", Measurement.take_directions, gives=("directions",), after=("refusal metric",),
          asks=("direction",), settings=("measuring.fewest_kept",)),
    Stage("carriers", lambda at: at.geometry_of_directions().choose_carrier(), after=("refusal metric", "directions"),
          gives=("carriers", "candidate_scores", "half_scores", "carrier"), asks=("validation",),
          settings=(*_THRESHOLDS, "measuring.fewest_kept", "measuring.reference", "measuring.n_positions",
                    "geometry.screen", "geometry.score_zero", "geometry.layer_step", "geometry.n_contenders",
                    "geometry.n_bootstrap")),
    Stage("subspaces", lambda at: at.geometry.take_subspaces(), gives=("subspaces",), after=_AT_REFERENCE,
          asks=("direction", "validation"), optional=True,
          settings=(*_THRESHOLDS, "measuring.reference", "geometry.largest_subspace", "geometry.cone_steps",
                    "geometry.cone_addition", "geometry.cone_retain", "geometry.cone_samples")),
    Stage("over-refusal overlap", lambda at: at.geometry.take_overlap(at.answers), gives=("overlap",), optional=True,
          after=("answers", *_AT_REFERENCE), asks=("direction", "overrefusal"), settings=("measuring.judge",)),
    Stage("harmfulness and refusal", lambda at: at.geometry.take_coupling(at.answers), optional=True,
          gives=("coupling", "linear_probes"), after=("answers", *_AT_REFERENCE),
          asks=("direction", "validation", "overrefusal"),
          settings=("measuring.judge", "measuring.reference", "geometry.n_coupled")),
    Stage("dose-response", lambda at: at.geometry.take_doses(), gives=("doses", "utility_coupling"), optional=True,
          after=_AT_REFERENCE, asks=("validation", "harmless"),
          settings=("measuring.reference", "geometry.n_dosed", "geometry.doses")),
    Stage("interventions", Measurement.intervene, after=_AT_REFERENCE, asks=_EVALUATED,
          settings=("measuring.n_intervened", "measuring.max_new_tokens", "measuring.reference")),
    Stage("attribution", lambda at: at.causes.take_attribution(at.best), optional=True,
          gives=("attribution", "attribution_compared", "token_sources", "logit_lens"), after=_AT_REFERENCE,
          asks=_EVALUATED, settings=("measuring.n_attributed", "measuring.n_top_heads")),
    Stage("patching", lambda at: at.causes.take_patching(at.best), optional=True,
          gives=("pairs", "patching", "patching_pairs", "attention", "tokens", "attribution_patching",
                 "attribution_agreement"),
          after=_AT_REFERENCE, asks=("pairs", "direction", "validation"),
          settings=("measuring.n_pairs", "measuring.layer_step", "measuring.n_top_heads", "causal.modes",
                    "causal.sites", "causal.n_finalists", "causal.screening")),
    Stage("knock-out", lambda at: at.causes.take_knock_outs(), gives=("knockout", "knockout_prompts", "head_sets"),
          after=("refusal metric",), asks=("validation", *_EVALUATED), optional=True,
          settings=("causal.n_knocked_out", "causal.layer_step", "causal.how", "causal.n_candidates",
                    "causal.largest_set", "causal.n_random")),
    Stage("circuit", lambda at: at.causes.take_circuit(), gives=("circuit_nodes", "circuit_edges", "faithfulness"),
          after=("refusal metric",), asks=("pairs", "direction", "validation"), optional=True,
          settings=("measuring.n_pairs", "causal.n_nodes", "causal.n_edges", "causal.n_random")),
    Stage(LAST, Measurement.take_rates, gives=("verdicts", "gate"), after=("answers", "interventions"),
          settings=("measuring.judge",), opens=False),
)  # fmt: skip

ACROSS_CHECKPOINTS = (
    Stage("drift", Comparison.take_drift, gives=("drift",), after=("directions", "carriers")),
    Stage("effective rank", Comparison.take_effective_rank, gives=("effective_rank",),
          after=("directions", "carriers")),
    Stage("tables of all checkpoints", Comparison.take_tables, gives=tuple(tables.PER_CHECKPOINT),
          after=(*(stage.name for stage in AT_A_CHECKPOINT), "timings")),
    Stage("transfer", Comparison.take_transfer, gives=("transfer",), after=_AT_REFERENCE, asks=("validation",),
          settings=("geometry.n_transferred", "measuring.reference", *_THRESHOLDS)),
    Stage("relocation", Comparison.take_relocation, gives=("relocation",),
          after=("directions", "carriers", "transfer"), asks=("validation",), settings=_THRESHOLDS),
    Stage("power", Comparison.take_power, gives=("power",), asks=("validation",), settings=_THRESHOLDS,
          after=("directions", "carriers", "patching", "knock-out", LAST)),
    Stage("cross patching", Comparison.take_crossing, gives=("cross_patching",), asks=("validation",),
          after=("refusal metric", "directions"),
          settings=("causal.n_crossed", "causal.n_rotations", "causal.layer_step")),
)  # fmt: skip


def inputs_of(run: Run, checkpoint: Checkpoint, asked: Mapping[str, str]) -> dict[str, Inputs]:
    """What each stage of a checkpoint hangs on; `asked`: fingerprints of the prompts (`stages.prompts_asked`)."""
    return inputs(AT_A_CHECKPOINT, checkpoint.weights, asked, run.recipe)


def left(run: Run, checkpoint: Checkpoint, asked: Mapping[str, str]) -> list[Stage]:
    """The stages of a checkpoint that are to be taken, in order: those that are not finished with these inputs."""
    needed = inputs_of(run, checkpoint, asked)
    return [one for one in AT_A_CHECKPOINT if run.kept(one.name, checkpoint.id, needed[one.name]) is None]


def measure(
    run: Run, checkpoint: Checkpoint, asked: Asked, cases: Sequence[AttackCase], *, around: Around = alone
) -> None:
    """Take the stages of one checkpoint that are left. Its model is opened once, where one of them needs it.

    `around` is entered around each of them, by its name, and around the opening of the model.
    """
    prompts = prompts_asked(asked, cases)
    needed, stages = inputs_of(run, checkpoint, prompts), left(run, checkpoint, prompts)
    model = None
    if any(stage.opens for stage in stages):
        with around(LOADING):
            started = time.perf_counter()
            model = load_hooked(checkpoint)
            run.update({"opened": {checkpoint.id: round(time.perf_counter() - started, 4)}})
    at = Measurement(run, checkpoint, asked, cases, model)
    for stage in stages:
        with around(stage.name):
            own = needed[stage.name]
            run.cached(stage.name, checkpoint.id, own, partial(at.make, stage, own))
    tables.write(timings(run, checkpoint), "timings", run.measurements(checkpoint))


def timings(run: Run, checkpoint: Checkpoint) -> pd.DataFrame:
    """Table `timings` of a checkpoint: seconds of each stage that is finished, and why one could not be taken."""
    rows: list[dict[str, Any]] = []
    if (opened := run.manifest.get("opened", {}).get(checkpoint.id)) is not None:
        rows.append({"stage": LOADING, "seconds": opened, "note": ""})
    for stage in AT_A_CHECKPOINT:
        if (found := run.finished(stage.name, checkpoint.id)) is not None:
            rows.append({"stage": stage.name, "seconds": found.seconds, "note": found.note})
    own = dict(zip(tables.CHECKPOINT, (checkpoint.arm, checkpoint.step, checkpoint.weights), strict=True))
    return tables.frame("timings", pd.DataFrame(rows).assign(**own))


def compare(
    run: Run, checkpoints: Sequence[Checkpoint], asked: Asked, cases: Sequence[AttackCase], *, at_once: int = 1
) -> None:
    """Set the checkpoints, all of which are measured, side by side. `at_once`: processes where models are opened."""
    prompts = prompts_asked(asked, cases)
    stamps: dict[str, dict[str, Any]] = {"timings": {}}
    for checkpoint in checkpoints:
        for name, own in inputs_of(run, checkpoint, prompts).items():
            stamps.setdefault(name, {})[checkpoint.id] = fingerprint(own)
        told = timings(run, checkpoint)
        tables.write(told, "timings", run.measurements(checkpoint))
        stamps["timings"][checkpoint.id] = told["seconds"].tolist()
    of = {
        "weights": {c.id: c.weights for c in checkpoints},
        "given": list(run.recipe.checkpoints),
        "kinds": tables.read("checkpoints", run.measurements()).astype(str).to_numpy().tolist(),
    }
    needed = inputs(ACROSS_CHECKPOINTS, of, prompts, run.recipe, stamps)
    comparison = Comparison(run, checkpoints, asked, at_once=at_once)
    for stage in ACROSS_CHECKPOINTS:
        run.cached(stage.name, "", needed[stage.name], partial(comparison.make, stage))
