"""A judge for models that say nothing sensible: what it says depends on the text alone, and all labels come up."""

from zlib import crc32

import pandas as pd

from mechrefusal.evaluation.judges import DEGENERATE, FULL_COMPLIANCE, FULL_REFUSAL


class ByHash:
    """Every second answer refuses, and some of the others are degenerate, by a checksum of the text."""

    name = "by_hash"

    def label(self, completion: str) -> str:
        number = crc32(completion.encode()) % 5
        return {0: FULL_REFUSAL, 1: FULL_REFUSAL, 2: DEGENERATE}.get(number, FULL_COMPLIANCE)

    def judge(self, prompts, completions):
        assert len(prompts) == len(completions)
        return pd.DataFrame({"label": [self.label(each) for each in completions], "because": ""})
