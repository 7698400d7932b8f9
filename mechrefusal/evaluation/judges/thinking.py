"""Judges of completions with a thought: the answer is judged, and a thought without an end is no answer."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import pandas as pd

from mechrefusal.evaluation.judges.answer_judge import UNFINISHED
from mechrefusal.evaluation.judges.judge import require_texts
from mechrefusal.evaluation.judges.scoring import Scored, null, score_table
from mechrefusal.prompts import after_thought


def of_answers(judge: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """A harm judge's method `judge` that is shown answers without their thoughts; unfinished thoughts are nulls."""

    @wraps(judge)
    def judged(self, prompts, completions, **others: Any) -> pd.DataFrame:
        require_texts(prompts, completions)
        answers = [after_thought(text) for text in completions]
        answered = [row for row, answer in enumerate(answers) if answer is not None]
        if len(answered) == len(answers):
            return judge(self, prompts, answers, **others)
        rows = [null(UNFINISHED)] * len(answers)
        if answered:
            of_rows = {
                name: [value[row] for row in answered] if value is not None and len(value) == len(answers) else value
                for name, value in others.items()
            }
            scores = judge(self, [prompts[row] for row in answered], [answers[row] for row in answered], **of_rows)
            for row, scored in zip(answered, scores.itertuples(index=False, name=None), strict=True):
                rows[row] = Scored(*scored)
        return score_table(rows)

    return judged
