"""Discover how a checkpoint opens its refusals, instead of picking first tokens by hand.

Hand-picked tokens break between checkpoints: one refuses with "Sorry", another with "I", and a model may open both
refusals and answers with "I". So the answers themselves are read: a forced opening (possibly empty), then the tokens
with which refusals go on and those with which answers do.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.evaluation.generation import Completions, complete
from mechrefusal.evaluation.judges import is_degenerate, is_refusal
from mechrefusal.models import RefusalMetric, TokenBatch, last_logits

GOOD_AUC = 0.9
FEWEST = 3
"""Refusals, and answers, below which nothing is discovered."""
LARGEST_SET = 20


@dataclass(frozen=True)
class Discovered(RefusalMetric):
    """A refusal metric and how well it tells refused from answered prompts.

    coverage: the smaller of two shares, of refusals that start with opening + a refusal token, and of answered prompts
    whose likeliest token after the opening is a compliance token. auc: of the score, refused against answered, on the
    prompts it was discovered on. NaN where nothing could be discovered.
    """

    coverage: float = float("nan")
    auc: float = float("nan")
    n_refused: int = 0
    n_answered: int = 0
    note: str = field(default="", compare=False)


def discover_refusal(
    model,
    contrast,
    *,
    completions: Completions | None = None,
    fallback: str = "Sorry, I can't do that.",
    longest_opening: int = 3,
    max_new_tokens: int = 24,
) -> Discovered:
    """Find the opening and token sets that separate refused from answered prompts best.

    The protocol asks for teacher-forced openings where the AUC stays below `GOOD_AUC`. That is not done: the best token
    sets are returned with a note, and the study then names no carrier.

    Args:
        contrast: harmful and harmless prompts.
        completions: the model's answers to the harmful and then the harmless prompts, if they exist already.
        fallback: a refusal whose first token is the refusal token where the model refuses, or answers, fewer than
            `FEWEST` prompts; the compliance tokens are then the model's own likeliest first tokens.
        longest_opening: forced tokens at most.
    """
    texts = [*contrast.harmful, *contrast.harmless]
    if completions is None:
        completions = complete(model, texts, max_new_tokens=max_new_tokens, description="generating for discovery")
    # An answer that is no language is neither a refusal nor compliance.
    rows = [row for row, text in enumerate(completions.texts) if is_refusal(text) or not is_degenerate(text)]
    if not rows:
        rows = list(range(len(texts)))
    refused = torch.tensor([is_refusal(completions.texts[row]) for row in rows])
    answers = [completions.token_ids[row] for row in rows]
    prompt_ids = prompts.prompt_ids(model.tokenizer, [texts[row] for row in rows])
    n_refused, n_answered = int(refused.sum()), int((~refused).sum())
    if min(n_refused, n_answered) < FEWEST:
        return _fallback(model, prompt_ids, refused, fallback)
    tried = []
    for length in range(longest_opening + 1):
        found = _try_opening(model, prompt_ids, answers, refused, length)
        if found is not None:
            tried.append(found)
            if found.auc >= 0.99 and found.coverage >= 0.8:
                break
    if not tried:
        return _fallback(model, prompt_ids, refused, fallback)
    return max(tried, key=lambda metric: (round(metric.auc, 3), metric.coverage, -len(metric.opening)))


def _try_opening(
    model, prompt_ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], refused: Tensor, length: int
) -> Discovered | None:
    refusals = [answer for answer, flag in zip(answers, refused.tolist(), strict=True) if flag and len(answer) > length]
    if not refusals:
        return None
    opening = Counter(tuple(answer[:length]) for answer in refusals).most_common(1)[0][0]
    logits = _logits(model, prompt_ids, opening)
    begun = Counter(answer[length] for answer in refusals if tuple(answer[:length]) == opening)
    likeliest = Counter(logits[~refused].argmax(-1).tolist())
    n_refused, n_answered = int(refused.sum()), int((~refused).sum())
    # A token that both sides use belongs to the side where its share is larger.
    refusal_set = [t for t, n in begun.most_common() if n / n_refused > likeliest[t] / n_answered][:LARGEST_SET]
    compliance_set = [t for t, n in likeliest.most_common() if t not in refusal_set][:LARGEST_SET]
    if not refusal_set or not compliance_set:
        return None
    scores = RefusalMetric(opening, tuple(refusal_set), tuple(compliance_set)).of(logits)
    auc = float(roc_auc_score(refused.numpy(), scores.float().cpu().numpy()))
    covered = min(
        sum(begun[t] for t in refusal_set) / n_refused, sum(likeliest[t] for t in compliance_set) / n_answered
    )
    note = "" if auc >= GOOD_AUC else f"AUC {auc:.2f} is below {GOOD_AUC}: the score separates refusals poorly"
    return Discovered(
        opening,
        tuple(refusal_set),
        tuple(compliance_set),
        coverage=covered,
        auc=auc,
        n_refused=n_refused,
        n_answered=n_answered,
        note=note,
    )


def _fallback(model, prompt_ids: Sequence[Sequence[int]], refused: Tensor, refusal: str) -> Discovered:
    token = model.tokenizer(refusal, add_special_tokens=False).input_ids[0]
    logits = _logits(model, prompt_ids, ()).clone()
    logits[:, token] = -torch.inf
    rows = logits[~refused] if (~refused).any() else logits
    likeliest = Counter(rows.argmax(-1).tolist())
    n_refused, n_answered = int(refused.sum()), int((~refused).sum())
    few = f"{n_refused} of {len(refused)} answers are refusals" if n_refused < FEWEST else f"only {n_answered} answers"
    return Discovered(
        (),
        (token,),
        tuple(t for t, _ in likeliest.most_common(LARGEST_SET)),
        kind="fallback",
        n_refused=n_refused,
        n_answered=n_answered,
        note=f"{few}: too few to discover an opening, so the first token of '{refusal}' stands for refusal",
    )


def _logits(model, prompt_ids: Sequence[Sequence[int]], opening: Sequence[int]) -> Tensor:
    batch = TokenBatch.of(
        [list(chain(prompt, opening)) for prompt in prompt_ids],
        pad=model.tokenizer.pad_token_id,
        device=str(model.cfg.device),
    )
    return last_logits(model, batch)[:, -1].float().cpu()
