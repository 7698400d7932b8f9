"""What writes refusal, by layer and head: onto the refusal logits, and onto a direction.

refusal = RefusalLogits(metric)
table = compare(model, harmful, harmless, refusal)
heads = attribute(model, harmful, refusal).top(4)
read = sources(model, harmful, refusal, heads=heads).by_segment
lens = compare_lenses(model, harmful, harmless, metric)
"""

from mechrefusal.attribution.comparison import compare, difference
from mechrefusal.attribution.direct import Attribution, Component, attribute
from mechrefusal.attribution.lens import Lens, Lenses, compare_lenses, logit_lens
from mechrefusal.attribution.patterns import attention, projections
from mechrefusal.attribution.readouts import Onto, RefusalLogits
from mechrefusal.attribution.token_sources import Sources, sources

__all__ = [
    "Attribution",
    "Component",
    "Lens",
    "Lenses",
    "Onto",
    "RefusalLogits",
    "Sources",
    "attention",
    "attribute",
    "compare",
    "compare_lenses",
    "difference",
    "logit_lens",
    "projections",
    "sources",
]
