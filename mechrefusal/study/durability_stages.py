"""Stages of durability: what it takes to remove refusal, at a checkpoint and from one to another."""

from mechrefusal import tables
from mechrefusal.durability.removal import CONFIRMED, SEARCH, cost_of_removal
from mechrefusal.forward.direction import direction_of
from mechrefusal.prompts import Split
from mechrefusal.study.comparison import Comparison
from mechrefusal.study.locksteps import locksteps
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.stages import Results
from mechrefusal.study.updates import by_prompt, updates

# (a) Cost of removal


def removal(subject: Measurement) -> Results:
    """How few refusals an ablation leaves for how much KL: tables `removal`, `removal_trials`, `removal_prompts`.

    Trials are chosen by the validation prompts, and confirmed on the held-out ones.
    """
    settings, judge = subject.recipe.durability.removal, subject.judge
    if settings.n_prompts == 0:
        return
    if subject.best is None:
        nothing = {"trial": -1, "n": 0, "n_harmless": 0, "n_random": 0, "judge": judge.name}
        reason = "no candidate direction was scored, so there is none to ablate"
        yield "removal", [dict.fromkeys(tables.columns("removal")) | nothing | {"reason": reason}]
        return
    search = subject.prompts.validation.take(settings.n_prompts)
    held_out = Split(subject.prompts.harmful, subject.prompts.harmless).take(settings.n_prompts)
    found = cost_of_removal(subject.model, subject.best, search, held_out, judge, settings)
    yield "removal", found.confirmed.assign(along=direction_of(subject.best).name, judge=judge.name)
    yield "removal_trials", found.table
    yield "removal_prompts", by_prompt(found.observations, {SEARCH: search, CONFIRMED: held_out})


# (b) Harmful fine-tuning

# (c) Spectrum of the update


def update_spectrum(subject: Comparison) -> Results:
    """The update of every trained checkpoint: tables `update_spectrum`, `update_refusals`, `update_prompts`."""
    if subject.run.recipe.durability.update_spectrum.n_prompts:
        version = subject.inputs["version"]
        yield from updates(subject.run, subject.pairs, subject.prompts, version=version).items()


# (d) Answers by their length

# (e) Prefilled openings

# (f) Lockstep patching


def lockstep(subject: Comparison) -> Results:
    """From which layer on one checkpoint's stream makes another behave as it does, table `lockstep` and its depths."""
    run = subject.run
    if run.recipe.durability.lockstep.n_prompts:
        yield from locksteps(run, subject.pairs, subject.prompts, version=subject.inputs["version"]).items()
