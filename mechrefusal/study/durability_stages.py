"""Stages of durability: what it takes to remove refusal, at a checkpoint and from one to another."""

from mechrefusal import durability
from mechrefusal.models import load_causal_lm
from mechrefusal.prompts import PromptSet, leakage
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.stages import Results

# (a) Cost of removal

# (b) Harmful fine-tuning


def harmful_fine_tuning(subject: Measurement) -> Results:
    """Refusals after training on a few behaviours with their targets, and on as many instructions, in memory.

    The plain model is opened for it, and nothing is saved. What is asked is not trained on.
    """
    settings, asked = subject.recipe.durability.harmful_fine_tuning, subject.prompts
    if settings.n_prompts == 0:
        return
    held_out = (asked.harmful, asked.harmless)
    model, tokenizer = load_causal_lm(subject.checkpoint)
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
