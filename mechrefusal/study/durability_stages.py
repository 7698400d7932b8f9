"""Stages of durability: what it takes to remove refusal, at a checkpoint and from one to another."""

from mechrefusal.study.comparison import Comparison
from mechrefusal.study.locksteps import locksteps
from mechrefusal.study.stages import Results

# (a) Cost of removal

# (b) Harmful fine-tuning

# (c) Spectrum of the update

# (d) Answers by their length

# (e) Prefilled openings

# (f) Lockstep patching


def lockstep(subject: Comparison) -> Results:
    """From which layer on one checkpoint's stream makes another behave as it does, table `lockstep` and its depths."""
    run = subject.run
    if run.recipe.durability.lockstep.n_prompts:
        yield from locksteps(run, subject.pairs, subject.prompts, version=subject.inputs["version"]).items()
