"""Discover how a checkpoint opens its refusals, instead of picking first tokens by hand.

Hand-picked tokens break between checkpoints: one refuses with "Sorry", another with "I", and a model may open both
refusals and answers with "I". So the answers themselves are read: a forced opening (possibly empty), then the tokens
with which refusals go on and those with which answers do. Where these do not tell refusals from answers well enough,
whole openings of several tokens are teacher-forced instead.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.generation import Completions, complete
from mechrefusal.evaluation.judged_answers import JudgedAnswers, require_numbers
from mechrefusal.evaluation.judges import DEGENERATE, RULES, Judge, refuses
from mechrefusal.forward import ForcedOpenings, RefusalMetric, logits_after, opening_log_probabilities

GOOD_AUC = 0.9
FEWEST = 3
"""Refusals, and answers, below which nothing is discovered."""
LARGEST_SET = 20
FORCED_TOKENS = (6, 12)
"""Tokens of a teacher-forced opening; the second length where refusals and answers share all openings of the first."""
MOST_REFUSALS, MOST_ANSWERS = 4, 8
"""Teacher-forced openings of each side."""


@dataclass(frozen=True)
class Discovered(RefusalMetric):
    """A refusal metric and how well it tells refused from answered prompts. NaN where nothing could be discovered.

    coverage: the smaller of two shares, of refusals that start with opening + a refusal token, and of answered prompts
    whose likeliest token after the opening is a compliance token; where openings are teacher-forced, of refusals and of
    answers that start with one of them.

    auc: of the score, refused against answered, on the prompts it was discovered on. It overstates, as tokens and
    openings were taken from the very answers to these prompts. auc_held_out: mean of two, of what one half of the
    prompts gives on the other half (only the choice of how many tokens open an answer is made on both); NaN below
    `judged_answers.ENOUGH_TO_HOLD_OUT` refusals or answers, or where a half gives nothing.

    offset: the threshold that tells refused from answered prompts best (`zero.between`), on scores of prompts that were
    held out of what made them (`zero.cross_fitted`); 0 for a fallback, and where there is no such threshold.
    """

    coverage: float = float("nan")
    auc: float = float("nan")
    n_refused: int = 0
    n_answered: int = 0
    note: str = field(default="", compare=False)
    auc_held_out: float = field(default=float("nan"), compare=False)

    @property
    def reliable_auc(self) -> float:
        """The AUC to go by: held out, where there are enough prompts for it."""
        return self.auc if math.isnan(self.auc_held_out) else self.auc_held_out


def discover_refusal(
    model,
    contrast,
    *,
    completions: Completions | None = None,
    fallback: str = "Sorry, I can't do that.",
    judge: Judge = RULES,
    longest_opening: int = 3,
    max_new_tokens: int = 24,
) -> Discovered:
    """Find what separates refused from answered prompts best: an opening and two sets of tokens, or whole openings.

    Where the best token sets have an AUC (held out, if it is known) below `GOOD_AUC`, the teacher-forced
    log-probability of refusal openings minus that of the model's own answers is tried, and used if it separates better:
    by `auc_held_out` where both have one, by `auc` otherwise. "The model's own answers" are the commonest openings
    among all answers that this checkpoint gave to these prompts (those of answers to earlier prompts among equally
    common ones), the same for every prompt: the score is a fixed function of a prompt and needs no answer of its own.
    Openings on both sides are left out. Where the model thinks before it answers, answers are read as if they came
    after an empty thought, which is then part of every opening. The token sets stay in the metric, for what looks at
    one position only.

    Args:
        contrast: harmful and harmless prompts.
        completions: the model's answers to the harmful and then the harmless prompts, if they exist already.
        fallback: a refusal whose first token is the refusal token where the model refuses, or answers, fewer than
            `FEWEST` prompts, or where no first tokens tell them apart; the compliance tokens are then the
            model's own likeliest first tokens.
        judge: of refusal; by default the built-in rules, which read English.
        longest_opening: forced tokens before the token sets at most.

    Raises:
        MechrefusalError: no prompts, completions of other prompts, a prompt longer than the context, a fallback without
            tokens, or logits that are not numbers.
    """
    texts = [*contrast.harmful, *contrast.harmless]
    if not texts:
        raise MechrefusalError("the refusal metric is discovered on harmful and harmless prompts, but there are none")
    if completions is None:
        completions = complete(model, texts, max_new_tokens=max_new_tokens, description="generating for discovery")
    if len(completions) != len(texts):
        raise MechrefusalError(
            f"discovering the refusal metric needs one completion a prompt: got {len(completions)} for {len(texts)}"
        )
    # An answer that is no language is neither a refusal nor compliance.
    labels = judge.judge(texts, list(completions.texts))["label"].tolist()
    rows = [row for row, label in enumerate(labels) if label != DEGENERATE] or list(range(len(texts)))
    answers, n_lead = prompts.after_empty_thought(model.tokenizer, [completions.token_ids[row] for row in rows])
    judged = JudgedAnswers(
        prompts=prompts.prompt_ids(model.tokenizer, [texts[row] for row in rows]),
        answers=answers,
        refused=torch.tensor([refuses(labels[row]) for row in rows]),
        n_lead=n_lead,
    )
    n_refused, n_answered = judged.counts()
    if min(n_refused, n_answered) < FEWEST:
        few = f"{n_refused} of {len(rows)} answers are refusals" if n_refused < FEWEST else f"only {n_answered} answers"
        return _fallback(model, judged, fallback, f"{few}: too few to discover an opening")
    metric = _best_token_sets(model, judged, longest_opening)
    if metric is None:
        metric = _fallback(model, judged, fallback, "no first tokens tell refusals from answers")
    elif metric.reliable_auc >= GOOD_AUC:
        return metric
    return _with_forced_openings(model, judged, metric)


def _best_token_sets(model, judged: JudgedAnswers, longest_opening: int) -> Discovered | None:
    tried: list[Discovered] = []
    openings = [_opening(judged, judged.n_lead + length) for length in range(longest_opening + 1)]
    known = [opening for opening in openings if opening is not None]
    for opening, logits in zip(known, _logits(model, judged.prompts, known), strict=True):
        metric = _try_opening(judged, opening, logits)
        if metric is not None:
            tried.append(metric)
            if metric.auc >= 0.99 and metric.coverage >= 0.8:
                break
    return max(tried, key=lambda m: (round(m.auc, 3), m.coverage, -len(m.opening)), default=None)


def _opening(judged: JudgedAnswers, length: int) -> tuple[int, ...] | None:
    """The commonest first `length` tokens of refusals that go on after them."""
    longer = [refusal[:length] for refusal in judged.of_side(judged.rows, refused=True) if len(refusal) > length]
    return Counter(longer).most_common(1)[0][0] if longer else None


def _try_opening(
    judged: JudgedAnswers, opening: tuple[int, ...], logits: Float[Tensor, "prompt vocab"]
) -> Discovered | None:
    likeliest = logits.argmax(-1)

    def scores_by(rows: Tensor) -> Tensor | None:
        part = _token_sets(judged, opening, likeliest, rows)
        return None if part is None else part.of(logits)

    metric = _token_sets(judged, opening, likeliest, judged.rows)
    if metric is None:
        return None
    auc, held_out = judged.auc(metric.of(logits)), judged.held_out(scores_by)
    note, offset = _shortcoming(auc, held_out), judged.offset(scores_by)
    return replace(metric, auc=auc, auc_held_out=held_out, note=note, offset=offset)


def _token_sets(
    judged: JudgedAnswers, opening: tuple[int, ...], likeliest: Int[Tensor, " prompt"], rows: Tensor
) -> Discovered | None:
    """Tokens after the opening with which the refusals among `rows` go on and answers would, and their coverage."""
    length, (n_refused, n_answered) = len(opening), judged.counts(rows)
    begun: Counter[int] = Counter()
    for longer, n in judged.openings(rows, length + 1, refused=True).items():
        if longer[:length] == opening and len(longer) > length:
            begun[longer[length]] += n
    expected = Counter(likeliest[rows[~judged.refused[rows]]].tolist())
    # A token that both sides use belongs to the side where its share is larger.
    refusal_set = [t for t, n in begun.most_common() if n / n_refused > expected[t] / n_answered][:LARGEST_SET]
    compliance_set = [t for t, n in expected.most_common() if t not in refusal_set][:LARGEST_SET]
    if not refusal_set or not compliance_set:
        return None
    covered = min(sum(begun[t] for t in refusal_set) / n_refused, sum(expected[t] for t in compliance_set) / n_answered)
    sets = tuple(refusal_set), tuple(compliance_set)
    return Discovered(opening, *sets, coverage=covered, n_refused=n_refused, n_answered=n_answered)


def _with_forced_openings(model, judged: JudgedAnswers, metric: Discovered) -> Discovered:
    """`metric`, or the teacher-forced one with the token sets of `metric` where that separates better."""
    lengths = [judged.n_lead + n for n in FORCED_TOKENS]
    tried = ((_forced_openings(judged, judged.rows, length), length) for length in lengths)
    forced, length = next((each for each in tried if each[0] is not None), (None, lengths[-1]))
    if forced is None:
        return replace(metric, note=f"{metric.note}; no openings of {length} tokens are on each side alone")
    likelihoods = _Likelihoods(model, judged.prompts)

    def scores_by(rows: Tensor) -> Tensor | None:
        part = _forced_openings(judged, rows, length)
        return None if part is None else likelihoods.scores(part)

    auc, held_out = judged.auc(likelihoods.scores(forced)), judged.held_out(scores_by)
    both = not math.isnan(held_out + metric.auc_held_out)
    ours, theirs = (held_out, metric.auc_held_out) if both else (auc, metric.auc)
    if ours <= theirs:  # false where there are no token sets, whose AUC is NaN
        return replace(metric, note=f"{metric.note}; teacher-forced openings do no better: {_in_words(auc, held_out)}")
    why = "no first tokens tell refusals from answers"
    if not math.isnan(metric.auc):
        why = f"the token sets' {_in_words(metric.auc, metric.auc_held_out)} is below {GOOD_AUC}"
    listed = f"{len(forced.refusals)} of refusals, {len(forced.answers)} of answers"
    worth = _shortcoming(auc, held_out) or _in_words(auc, held_out)
    return replace(
        metric,
        kind="teacher_forced",
        forced=forced,
        offset=judged.offset(scores_by),
        coverage=min(judged.share(forced.refusals, refused=True), judged.share(forced.answers, refused=False)),
        auc=auc,
        auc_held_out=held_out,
        note=f"{why}: teacher-forced openings ({listed}) are used instead; their {worth}",
    )


def _forced_openings(judged: JudgedAnswers, rows: Tensor, length: int) -> ForcedOpenings | None:
    """The commonest openings of `length` tokens of refusals and of answers among `rows`, none of them on both sides.

    An answer that is shorter stands in full. Where an answer of the other side goes on from it, it says nothing and is
    left out; otherwise it counts those of its own side that go on from it, which need no place of their own.
    """
    sides = [judged.openings(rows, length, refused=refused) for refused in (True, False)]
    chosen = []
    for counts, other, most in zip(sides, sides[::-1], (MOST_REFUSALS, MOST_ANSWERS), strict=True):
        apart = [opening for opening, _ in counts.most_common() if not _begins_any(opening, other)]
        listed = [o for o in apart if not any(_begins_any(shorter, [o]) for shorter in apart if shorter != o)]
        chosen.append(tuple(listed[:most]))
    return ForcedOpenings(*chosen) if all(chosen) else None


def _begins_any(opening: tuple[int, ...], answers: Iterable[tuple[int, ...]]) -> bool:
    return any(answer[: len(opening)] == opening for answer in answers)


class _Likelihoods:
    """Log-probabilities of openings after prompts, each taken once."""

    def __init__(self, model, prompt_ids: Sequence[Sequence[int]]) -> None:
        self.model, self.prompt_ids = model, prompt_ids
        self.known: dict[tuple[int, ...], Tensor] = {}

    def scores(self, forced: ForcedOpenings) -> Float[Tensor, " prompt"]:
        new = [opening for opening in forced.all if opening not in self.known]
        if new:
            likelihoods = opening_log_probabilities(self.model, self.prompt_ids, new).cpu()
            self.known.update(zip(new, likelihoods, strict=True))
        return forced.of(torch.stack([self.known[opening] for opening in forced.all]))


def _fallback(model, judged: JudgedAnswers, refusal: str, why: str) -> Discovered:
    if not refusal.strip():
        raise MechrefusalError(f"the fallback refusal {refusal!r} has no tokens; give the start of a refusal")
    # What the template writes before an answer, such as an empty thought, is forced: the refusal's word comes after it.
    opening, (token, *_) = prompts.opening_ids(model.tokenizer, refusal)
    (logits,) = _logits(model, judged.prompts, [opening])
    logits[:, token] = -torch.inf
    n_refused, n_answered = judged.counts()
    likeliest = Counter((logits[~judged.refused] if n_answered else logits).argmax(-1).tolist())
    return Discovered(
        opening,
        (token,),
        tuple(t for t, _ in likeliest.most_common(LARGEST_SET)),
        kind="fallback",
        n_refused=n_refused,
        n_answered=n_answered,
        note=f"{why}, so the first token of '{refusal}' stands for refusal",
    )


def _shortcoming(auc: float, held_out: float) -> str:
    """What an AUC has to be known for; nothing where it is good."""
    if auc < GOOD_AUC:
        return f"{_in_words(auc, held_out)} is below {GOOD_AUC}: the score separates refusals poorly"
    if held_out < GOOD_AUC:
        return f"AUC {auc:.3f} is only {held_out:.3f} on prompts held out of the discovery"
    return ""


def _in_words(auc: float, held_out: float) -> str:
    return f"AUC {auc:.3f}" + ("" if math.isnan(held_out) else f" ({held_out:.3f} held out)")


def _logits(
    model, prompt_ids: Sequence[Sequence[int]], openings: Sequence[tuple[int, ...]]
) -> Iterator[Float[Tensor, "prompt vocab"]]:
    """Logits after every prompt and opening, in float32, opening by opening."""
    if not openings:
        return
    parts = logits_after(model, prompt_ids, openings, kept=1)
    for each in zip(*([each[:, -1].cpu() for each in part] for part in parts), strict=True):
        logits = torch.cat(each).float()
        require_numbers(logits.isnan().any(-1))
        yield logits
