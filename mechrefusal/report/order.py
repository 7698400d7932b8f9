"""Which checkpoint comes first: the base model, then the warm-up that all arms share, then arm by arm."""

BASE, WARM_UP = "base", "warm-up"
SHARED = (BASE, WARM_UP)
"""Arms that are no arm: every arm starts at the last of them that there is."""


def arm_order(arm: str) -> tuple[int, str]:
    """Sorts arms: base, warm-up, then by name."""
    return (SHARED.index(arm) if arm in SHARED else len(SHARED)), arm


def checkpoint_order(key: tuple[str, float]) -> tuple[int, str, float]:
    """Sorts (arm, step): base, warm-up, then arm by arm in the order of steps."""
    return *arm_order(key[0]), key[1]
