"""Which arms of a recipe are guided, what each is told, and which arm is its twin without a guide."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations

from mechrefusal.study.arms import PlannedArm
from mechrefusal.training.guide_settings import GuideSettings

GUIDED, CONTROL, BESIDE_CONTROL = "guided", "control", "beside control"
"""A guided arm after its twin without a guide; the same with random directions; and the one after the other."""


@dataclass(frozen=True)
class Counterparts:
    """Two arms of one method and one training, of which the second has what the first lacks (`relation`)."""

    first: str
    second: str
    relation: str


def counterparts(arms: Sequence[PlannedArm]) -> list[Counterparts]:
    """All pairs of arms that differ in their guide alone, in that one has none, or goes by random directions."""
    pairs = []
    for first, second in permutations(arms, 2):
        if _without_guide(first) != _without_guide(second) or (there := guide_of(second)) is None:
            continue
        here, by_random = guide_of(first), is_control(second)
        if here is None:
            pairs.append(Counterparts(first.name, second.name, CONTROL if by_random else GUIDED))
        elif is_control(first) and not by_random and replace(here, direction=there.direction) == there:
            pairs.append(Counterparts(first.name, second.name, BESIDE_CONTROL))
    return pairs


def guide_of(arm: PlannedArm) -> GuideSettings | None:
    """Its guide; None where it has none, or one that neither freezes a layer nor adds a term."""
    guide = arm.guide
    return guide if guide is not None and (guide.has_terms or guide.freeze) else None


def is_control(arm: PlannedArm) -> bool:
    """Whether its guide goes by random directions, which only terms do."""
    guide = guide_of(arm)
    return guide is not None and guide.has_terms and guide.direction == "random"


def told(arm: PlannedArm) -> str:
    """What its guide is told beside its defaults: `freeze 0.5, hold_weight 1.0`; empty without a guide."""
    guide, usual = guide_of(arm), GuideSettings()
    names = [] if guide is None else [each.name for each in fields(guide) if each.name != "direction"]
    changed = [name for name in names if getattr(guide, name) != getattr(usual, name)]
    return ", ".join(f"{name} {getattr(guide, name)}" for name in changed)


def _without_guide(arm: PlannedArm) -> PlannedArm:
    return replace(arm, name="", guide=None)
