"""What may be concluded from numbers: intervals, tests of many, verdicts. Nothing here knows a model or a prompt."""

from mechrefusal.statistics import intervals
from mechrefusal.statistics.intervals import Estimate
from mechrefusal.statistics.observations import Observations, Observed

__all__ = ["Estimate", "Observations", "Observed", "intervals"]
