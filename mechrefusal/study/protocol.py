"""The protocol: what is measured at every checkpoint, in order, and then over all of them.

A measure is a line here: its work, the tables that it gives, and what its result hangs on. Each is kept on disk by
itself (`Run.cached`): what was finished is not made again, and what is changed takes along what comes after it alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.attacks import AttackCase
from mechrefusal.models import Checkpoint, load_hooked
from mechrefusal.study import answer_stages, causal_stages, comparison, durability_stages, geometry_stages
from mechrefusal.study.caching import Inputs, fingerprint
from mechrefusal.study.carrier_choice import choose_carrier
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.run import Run
from mechrefusal.study.selection import StudyPrompts
from mechrefusal.study.stages import CASES, LAST, Stage, inputs, prompts_asked
from mechrefusal.workers import LOADING, Around, alone

_EVALUATED = ("harmful", "harmless")
_AT_REFERENCE = ("refusal metric", "directions", "carriers")

AT_A_CHECKPOINT = (
    Stage("answers", answer_stages.answer, settings=("measuring.max_new_tokens",),
          asks=(*_EVALUATED, "overrefusal", "contrast", "utility", "direction", CASES)),
    Stage("refusal metric", answer_stages.refusal_metric, gives=("openings", "scores"), after=("answers",),
          asks=("direction", "validation"), settings=("measuring.judge", "training.refusal")),
    Stage("directions", geometry_stages.directions, gives=("directions",), after=("refusal metric",),
          asks=("direction",), settings=("measuring.fewest_kept",)),
    Stage("separability", geometry_stages.separability, gives=("separability", "separability_draws"),
          asks=("direction",), optional=True),
    Stage("carriers", choose_carrier, after=("refusal metric", "directions"),
          gives=("carriers", "candidate_scores", "half_scores", "carrier"), asks=("validation",),
          settings=("measuring.admissible", "measuring.fewest_kept", "measuring.reference", "measuring.n_positions",
                    "geometry.screen", "geometry.score_zero", "geometry.layer_step", "geometry.n_contenders",
                    "geometry.n_bootstrap")),
    Stage("subspaces", geometry_stages.subspaces, gives=("subspaces",), after=_AT_REFERENCE,
          asks=("direction", "validation"), optional=True,
          settings=("measuring.admissible", "measuring.reference", "geometry.largest_subspace", "geometry.cone_steps",
                    "geometry.cone_addition", "geometry.cone_retain", "geometry.cone_samples")),
    Stage("over-refusal overlap", geometry_stages.overlap, gives=("overlap",), optional=True,
          after=("answers", *_AT_REFERENCE), asks=("direction", "overrefusal"), settings=("measuring.judge",)),
    Stage("harmfulness and refusal", geometry_stages.coupling, optional=True,
          gives=("coupling", "linear_probes"), after=("answers", *_AT_REFERENCE),
          asks=("direction", "validation", "overrefusal"),
          settings=("measuring.judge", "measuring.reference", "geometry.n_coupled")),
    Stage("dose-response", geometry_stages.doses, gives=("doses", "utility_coupling"), optional=True,
          after=_AT_REFERENCE, asks=("validation", "harmless"),
          settings=("measuring.reference", "geometry.n_dosed", "geometry.doses")),
    Stage("interventions", answer_stages.intervene, after=_AT_REFERENCE, asks=_EVALUATED,
          settings=("measuring.n_intervened", "measuring.max_new_tokens", "measuring.reference")),
    Stage("attribution", causal_stages.attribution_of_refusal, optional=True,
          gives=("attribution", "attribution_compared", "token_sources", "logit_lens"), after=_AT_REFERENCE,
          asks=_EVALUATED, settings=("measuring.n_attributed", "measuring.n_top_heads")),
    Stage("patching", causal_stages.patching_of_pairs, optional=True,
          gives=("pairs", "patching", "patching_pairs", "attention", "tokens", "attribution_patching",
                 "attribution_agreement"),
          after=_AT_REFERENCE, asks=("pairs", "direction", "validation"),
          settings=("measuring.n_pairs", "measuring.layer_step", "measuring.n_top_heads", "causal.modes",
                    "causal.sites", "causal.n_finalists", "causal.screening")),
    Stage("knock-out", causal_stages.knock_outs, gives=("knockout", "knockout_prompts", "head_sets"),
          after=("refusal metric",), asks=("validation", *_EVALUATED), optional=True,
          settings=("causal.n_knocked_out", "causal.layer_step", "causal.how", "causal.n_candidates",
                    "causal.largest_set", "causal.n_random")),
    Stage("circuit", causal_stages.circuit, gives=("circuit_nodes", "circuit_edges", "faithfulness"),
          after=("refusal metric",), asks=("pairs", "direction", "validation"), optional=True,
          settings=("measuring.n_pairs", "causal.n_nodes", "causal.n_edges", "causal.n_random")),
    # Durability: (a) cost of removal
    Stage("cost of removal", durability_stages.removal, gives=("removal", "removal_trials", "removal_prompts"),
          after=_AT_REFERENCE, asks=("validation", *_EVALUATED), optional=True,
          settings=("durability.removal", "measuring.judge")),
    # (b) harmful fine-tuning
    Stage("harmful fine-tuning", durability_stages.harmful_fine_tuning, gives=("harmful_fine_tuning", "fine_tunings"),
          asks=(*_EVALUATED, "behaviours", "instructions"), optional=True, opens=False,
          settings=("measuring.judge", "durability.harmful_fine_tuning")),
    # (d) answers by their length
    Stage("answers by their length", durability_stages.answer_length, gives=("answer_length", "refusal_places"),
          asks=_EVALUATED, optional=True, settings=("measuring.judge", "durability.answer_length")),
    # (e) prefilled openings
    Stage("prefilled openings", durability_stages.prefilled, gives=("prefilled",), asks=_EVALUATED, optional=True,
          settings=("measuring.judge", "durability.prefilled")),
    Stage(LAST, answer_stages.rates, gives=("verdicts", "gate"), after=("answers", "interventions"),
          settings=("measuring.judge",), opens=False),
)  # fmt: skip

ACROSS_CHECKPOINTS = (
    Stage("drift", comparison.drift, gives=("drift",), after=("directions", "carriers"), opens=False),
    Stage("effective rank", comparison.effective_rank, gives=("effective_rank",), opens=False,
          after=("directions", "carriers")),
    Stage("tables of all checkpoints", comparison.stacked_tables, gives=tuple(tables.PER_CHECKPOINT),
          after=(*(stage.name for stage in AT_A_CHECKPOINT), "timings"), opens=False),
    Stage("transfer", comparison.transfer, gives=("transfer",), after=_AT_REFERENCE, asks=("validation",),
          settings=("geometry.n_transferred", "measuring.reference", "measuring.admissible")),
    Stage("relocation", comparison.relocate, gives=("relocation",), opens=False,
          after=("directions", "carriers", "transfer"), asks=("validation",), settings=("measuring.admissible",)),
    Stage("power", comparison.power, gives=("power",), asks=("validation",), settings=("measuring.admissible",),
          after=("directions", "carriers", "patching", "knock-out", LAST), opens=False),
    Stage("cross patching", comparison.cross_patching, gives=("cross_patching",), asks=("validation",),
          after=("refusal metric", "directions"),
          settings=("causal.n_crossed", "causal.n_rotations", "causal.layer_step")),
    # Durability: (c) spectrum of the update
    Stage("spectrum of the update", durability_stages.update_spectrum, asks=_EVALUATED,
          gives=("update_spectrum", "update_refusals", "update_prompts"),
          settings=("durability.update_spectrum", "measuring.judge")),
    # (f) lockstep patching
    Stage("lockstep patching", durability_stages.lockstep, gives=("lockstep", "lockstep_depth", "lockstep_prompts"),
          asks=_EVALUATED, settings=("durability.lockstep", "measuring.judge")),
    Stage("methods", comparison.compare_methods, gives=("methods", "method_differences"), asks=("validation",),
          after=("directions", "separability", "carriers", "cost of removal", "transfer", "effective rank", LAST),
          settings=("arms", "attack.methods", "attack.n_cases", "measuring.admissible"), opens=False, version=2),
)  # fmt: skip


@dataclass(frozen=True)
class Remaining:
    """What is to be taken of a checkpoint.

    Fields:
        inputs: what each stage hangs on, by its name.
        stages: those that are not finished with these inputs, in order.
    """

    inputs: Mapping[str, Inputs]
    stages: tuple[Stage, ...]


def inputs_of(run: Run, checkpoint: Checkpoint, stamps_of_prompts: Mapping[str, str]) -> dict[str, Inputs]:
    """What each stage of a checkpoint hangs on; `stamps_of_prompts`: as `stages.prompts_asked` gives them."""
    return inputs(AT_A_CHECKPOINT, checkpoint.computed, stamps_of_prompts, run.recipe)


def remaining(run: Run, checkpoint: Checkpoint, stamps_of_prompts: Mapping[str, str]) -> Remaining:
    """What is to be taken of a checkpoint. The files of all its stages are hashed for it, so that it is asked once."""
    needed = inputs_of(run, checkpoint, stamps_of_prompts)
    left = (stage for stage in AT_A_CHECKPOINT if run.kept(stage.name, checkpoint.id, needed[stage.name]) is None)
    return Remaining(needed, tuple(left))


def measure(
    run: Run,
    checkpoint: Checkpoint,
    prompts: StudyPrompts,
    cases: Sequence[AttackCase],
    *,
    todo: Remaining | None = None,
    around: Around = alone,
) -> None:
    """Take the stages of one checkpoint that remain. Its model is opened once, where one of them needs it.

    Args:
        todo: what `remaining` gives, where that is known.
        around: entered around each stage, by its name, and around the opening of the model.
    """
    todo = todo or remaining(run, checkpoint, prompts_asked(prompts, cases))
    model = None
    if any(stage.opens for stage in todo.stages):
        with around(LOADING):
            started = time.perf_counter()
            model = load_hooked(checkpoint)
            run.update({"opened": {checkpoint.id: round(time.perf_counter() - started, 4)}})
    measurement = Measurement(run, checkpoint, prompts, cases, model)
    for stage in todo.stages:
        with around(stage.name):
            needed = todo.inputs[stage.name]
            run.cached(stage.name, checkpoint.id, needed, partial(stage.make, measurement, needed))
    tables.write(timings(run, checkpoint), "timings", run.measurements(checkpoint))


def timings(run: Run, checkpoint: Checkpoint) -> pd.DataFrame:
    """Table `timings` of a checkpoint: seconds of each stage that is finished, and why one could not be taken."""
    rows: list[dict[str, Any]] = []
    if (opened := run.manifest.get("opened", {}).get(checkpoint.id)) is not None:
        rows.append({"stage": LOADING, "seconds": opened, "note": ""})
    for stage in AT_A_CHECKPOINT:
        if (unit := run.finished(stage.name, checkpoint.id)) is not None:
            rows.append({"stage": stage.name, "seconds": unit.seconds, "note": unit.note})
    owner = dict(zip(tables.CHECKPOINT, (checkpoint.arm, checkpoint.step, checkpoint.weights), strict=True))
    return tables.frame("timings", pd.DataFrame(rows).assign(**owner))


def inputs_across(
    run: Run,
    checkpoints: Sequence[Checkpoint],
    stamps_of_prompts: Mapping[str, str],
    needed: Mapping[str, Mapping[str, Inputs]],
) -> dict[str, Inputs]:
    """What the stages over all checkpoints hang on, all of which are measured.

    Args:
        stamps_of_prompts: fingerprints of the prompts (`stages.prompts_asked`).
        needed: what the stages of each checkpoint hang on, by its id (`inputs_of`).
    """
    stamps: dict[str, dict[str, Any]] = {"timings": {}}
    for checkpoint in checkpoints:
        for name, stage_inputs in needed[checkpoint.id].items():
            stamps.setdefault(name, {})[checkpoint.id] = fingerprint(stage_inputs)
        seconds = timings(run, checkpoint)
        tables.write(seconds, "timings", run.measurements(checkpoint))
        stamps["timings"][checkpoint.id] = seconds["seconds"].tolist()
    of = {
        "weights": {c.id: c.weights for c in checkpoints},
        "given": list(run.recipe.checkpoints),
        "kinds": tables.read("checkpoints", run.measurements()).astype(str).to_numpy().tolist(),
    }
    return inputs(ACROSS_CHECKPOINTS, of, stamps_of_prompts, run.recipe, stamps)
