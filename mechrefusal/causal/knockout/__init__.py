"""Knock-out: components replaced, and what that does to refusal and to the rest.

Heads, MLPs and attention layers are replaced one at a time (`components`), neurons after a screen (`neurons`), heads
together (`head_sets`). What stands in for a component, and why, says `mechrefusal.causal.knockout.replacements`.
"""

from mechrefusal.causal.knockout.components import KnockOuts, knock_out
from mechrefusal.causal.knockout.head_sets import HeadSet, smallest_set
from mechrefusal.causal.knockout.single_neurons import NeuronKnockOuts, neurons

__all__ = [
    "HeadSet",
    "KnockOuts",
    "NeuronKnockOuts",
    "knock_out",
    "neurons",
    "smallest_set",
]
