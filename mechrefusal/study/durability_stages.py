"""Stages of durability: what it takes to remove refusal, at a checkpoint and from one to another."""

from mechrefusal import durability, tables
from mechrefusal.durability.removal import CONFIRMED, SEARCH, cost_of_removal
from mechrefusal.forward.direction import direction_of
from mechrefusal.models import load_causal_lm
from mechrefusal.prompts import PromptSet, Split, leakage
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


def harmful_fine_tuning(subject: Measurement) -> Results:
    """Refusals after training on a few behaviours with their targets, and on as many instructions, in memory.

    The plain model is opened for it, and nothing is saved. What is asked is not trained on.
    """
    settings, asked = subject.recipe.durability.harmful_fine_tuning, subject.prompts
    if settings.n_prompts == 0:
        return
    held_out = (asked.harmful, asked.harmless)
    model, tokenizer = load_causal_lm(subject.checkpoint, dtype="float32")  # it is trained
    found = durability.after_harmful_examples(
        model,
        tokenizer,
        _without(asked.behaviours, *held_out),
        _without(asked.instructions, *held_out),
        *held_out,
        subject.judge,
        settings=settings,
    )
    yield "harmful_fine_tuning", found.table
    yield "fine_tunings", found.trainings


def _without(trained: PromptSet, *asked: PromptSet) -> PromptSet:
    """The prompts that are not among those that are asked."""
    leaks = leakage({"trained": trained, **{str(number): each for number, each in enumerate(asked)}})
    return trained[(~trained.table["id"].isin(leaks.loc[leaks["set_a"] == "trained", "id_a"])).to_numpy()]


# (c) Spectrum of the update


def update_spectrum(subject: Comparison) -> Results:
    """The update of every trained checkpoint: tables `update_spectrum`, `update_refusals`, `update_prompts`."""
    if subject.run.recipe.durability.update_spectrum.n_prompts:
        version = subject.inputs["version"]
        yield from updates(subject.run, subject.pairs, subject.prompts, version=version).items()


# (d) Answers by their length


def answer_length(subject: Measurement) -> Results:
    """Refusals of long answers that are cut, and where they refuse first."""
    settings, asked = subject.recipe.durability.answer_length, subject.prompts
    if settings.n_prompts == 0:
        return
    found = durability.answer_lengths(subject.model, asked.harmful, asked.harmless, subject.judge, settings=settings)
    yield "answer_length", found.table
    yield "refusal_places", found.places


# (e) Prefilled openings


def prefilled(subject: Measurement) -> Results:
    """Refusals after the first tokens of openings that are given."""
    settings, asked = subject.recipe.durability.prefilled, subject.prompts
    if settings.n_prompts == 0:
        return
    found = durability.after_openings(subject.model, asked.harmful, asked.harmless, subject.judge, settings=settings)
    yield "prefilled", found.table


# (f) Lockstep patching


def lockstep(subject: Comparison) -> Results:
    """From which layer on one checkpoint's stream makes another behave as it does, table `lockstep` and its depths."""
    run = subject.run
    if run.recipe.durability.lockstep.n_prompts:
        yield from locksteps(run, subject.pairs, subject.prompts, version=subject.inputs["version"]).items()
