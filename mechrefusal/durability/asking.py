"""What a model does with prompts as it is at the moment: greedy answers, and what the judge says of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import DEGENERATE
from mechrefusal.evaluation.judges.judge import refuses


@dataclass(frozen=True)
class Judged:
    """Of every prompt whether its answer declines, fully or in part, and whether it is no language."""

    refused: Bool[np.ndarray, " prompt"]
    degenerate: Bool[np.ndarray, " prompt"]


def judged_answers(
    model, texts: Iterable[str], judge: Judge, *, max_new_tokens: int, tokenizer=None, description: str = "answers"
) -> Judged:
    """Answer prompts greedily, under whatever interventions and weights the model has now, and judge the answers.

    Args:
        model: a hooked transformer, or a Hugging Face model with its `tokenizer`.
    """
    asked = list(texts)
    options = {"tokenizer": tokenizer, "max_new_tokens": max_new_tokens, "description": description}
    return judged(judge, asked, complete(model, asked, **options).texts)


def judged(judge: Judge, prompts: Sequence[str], answers: Sequence[str]) -> Judged:
    """What the judge says of answers that are there already."""
    labels = judge.judge(list(prompts), list(answers))["label"] if len(prompts) else []
    return Judged(
        np.array([refuses(label) for label in labels], bool), np.array([label == DEGENERATE for label in labels], bool)
    )
