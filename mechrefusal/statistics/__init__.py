"""What may be concluded from numbers: intervals, tests of many, verdicts. Nothing here knows a model or a prompt."""

from mechrefusal.statistics import intervals
from mechrefusal.statistics.intervals import Estimate

__all__ = ["Estimate", "intervals"]
