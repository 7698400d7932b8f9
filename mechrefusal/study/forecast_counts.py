"""The work of a recipe's stages, counted before anything is run.

Prompts are known, so that tokens of passes over them are counted as passes share them. How long answers get, and what
searches and screens come upon, is not known: each function says what it takes for granted.
"""

from collections.abc import Callable, Iterator, Mapping

from mechrefusal.study import forecast_causal as causal
from mechrefusal.study import forecast_durability as durability
from mechrefusal.study import forecast_geometry as geometry
from mechrefusal.study.forecast_training import training
from mechrefusal.study.forecast_work import Counting, Work

AT_A_CHECKPOINT: Mapping[str, Callable[[Counting], Work]] = {
    "answers": geometry.answers,
    "refusal metric": geometry.refusal_metric,
    "directions": geometry.directions,
    "separability": geometry.separability,
    "carriers": geometry.carriers,
    "subspaces": geometry.subspaces,
    "over-refusal overlap": geometry.overlap,
    "harmfulness and refusal": geometry.coupling,
    "dose-response": geometry.doses,
    "interventions": geometry.interventions,
    "attribution": causal.attribution,
    "patching": causal.patching,
    "knock-out": causal.knock_out,
    "circuit": causal.circuit,
    "cost of removal": durability.removal,
    "harmful fine-tuning": durability.harmful_fine_tuning,
    "answers by their length": durability.answer_length,
    "prefilled openings": durability.prefilled,
}
"""By the name of the stage in the protocol."""
BETWEEN: Mapping[str, Callable[[Counting], Work]] = {
    "transfer": geometry.transfer,
    "cross patching": causal.cross_patching,
    "spectrum of the update": durability.update_spectrum,
    "lockstep patching": durability.lockstep,
}
"""Stages over all checkpoints that open models, as a whole. The others make tables of tables."""

__all__ = ["AT_A_CHECKPOINT", "BETWEEN", "Counting", "Work", "asked", "training"]


def asked(counting: Counting, stages: Mapping[str, Callable[[Counting], Work]]) -> Iterator[tuple[str, Work]]:
    """The stages that the recipe asks for, with their work."""
    for name, count in stages.items():
        if (work := count(counting)) != Work():
            yield name, work
