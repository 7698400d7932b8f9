"""Discover how a checkpoint opens its refusals, instead of picking first tokens by hand.

Hand-picked tokens break between checkpoints: one refuses with "Sorry", another with "I", and a model may open both
refusals and answers with "I". So the answers themselves are read: a forced opening (possibly empty), then the tokens
with which refusals go on and those with which answers do. Where these do not tell refusals from answers well enough,
whole openings of several tokens are teacher-forced instead.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import zero
from mechrefusal.evaluation.generation import Completions, complete
from mechrefusal.evaluation.judges import DEGENERATE, RULES, Judge, refuses
from mechrefusal.forward import ForcedOpenings, RefusalMetric, logits_after, opening_log_probabilities

GOOD_AUC = 0.9
FEWEST = 3
"""Refusals, and answers, below which nothing is discovered."""
ENOUGH_TO_HOLD_OUT = 8
"""Refusals, and answers, from which on half of the prompts is held out to measure AUC on."""
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
    `ENOUGH_TO_HOLD_OUT` refusals or answers, or where a half gives nothing.

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
    refused = [refuses(label) for label in labels]
    rows = [row for row, label in enumerate(labels) if label != DEGENERATE]
    if not rows:
        rows = list(range(len(texts)))
    answers, n_lead = prompts.after_empty_thought(model.tokenizer, [completions.token_ids[row] for row in rows])
    said = _Said(
        prompts=prompts.prompt_ids(model.tokenizer, [texts[row] for row in rows]),
        answers=answers,
        refused=torch.tensor([refused[row] for row in rows]),
        n_lead=n_lead,
    )
    n_refused, n_answered = said.counts()
    if min(n_refused, n_answered) < FEWEST:
        few = f"{n_refused} of {len(rows)} answers are refusals" if n_refused < FEWEST else f"only {n_answered} answers"
        return _fallback(model, said, fallback, f"{few}: too few to discover an opening")
    found = _best_token_sets(model, said, longest_opening)
    if found is None:
        found = _fallback(model, said, fallback, "no first tokens tell refusals from answers")
    elif found.reliable_auc >= GOOD_AUC:
        return found
    return _with_forced_openings(model, said, found)


@dataclass(frozen=True)
class _Said:
    """Prompts (token ids), what was said to them, and which of that are refusals.

    Where the model thinks, all answers begin with the same `n_lead` tokens, an empty thought in place of their own.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[tuple[int, ...]]
    refused: Bool[Tensor, " prompt"]
    n_lead: int = 0

    def counts(self, rows: Tensor | None = None) -> tuple[int, int]:
        """Refusals and answers, among `rows` or all."""
        refused = self.refused if rows is None else self.refused[rows]
        return int(refused.sum()), int((~refused).sum())

    def openings(self, rows: Tensor, length: int, *, refused: bool) -> Counter[tuple[int, ...]]:
        """How often refusals, or answers, begin with which (up to) `length` tokens."""
        told = [self.answers[row][:length] for row in rows.tolist() if bool(self.refused[row]) is refused]
        return Counter(opening for opening in told if opening)

    def share(self, openings: Sequence[tuple[int, ...]], *, refused: bool) -> float:
        """Of refusals, or answers: how many begin with one of `openings`."""
        told = [answer for answer, flag in zip(self.answers, self.refused.tolist(), strict=True) if flag is refused]
        return sum(any(answer[: len(o)] == o for o in openings) for answer in told) / len(told)

    def auc(self, scores: Float[Tensor, " prompt"], rows: Tensor | None = None) -> float:
        """Share of pairs of a refused and an answered prompt (of `rows`, or all) in the right order, ties as half."""
        rows = torch.arange(len(scores)) if rows is None else rows
        values = scores.double().cpu()[rows]
        _require_numbers(values.isnan())
        values = values.nan_to_num()  # infinities: only the order counts
        return float(roc_auc_score(self.refused[rows].numpy(), values.numpy()))

    def sides(self) -> tuple[Tensor, Tensor]:
        """Rows of the refused and of the answered prompts."""
        return self.refused.nonzero()[:, 0], (~self.refused).nonzero()[:, 0]

    def offset(self, scores_by: Callable[[Tensor], Tensor | None]) -> float:
        """Where the zero of scores belongs that all prompts together make, from what parts of them make of others."""
        found = zero.between(*zero.cross_fitted(scores_by, self.sides()))
        return 0.0 if math.isnan(found) else found

    def held_out(self, scores_by: Callable[[Tensor], Tensor | None]) -> float:
        """Mean AUC on each half of the prompts of scores (of all prompts) made by what the other half gives."""
        sides = self.sides()
        if min(len(side) for side in sides) < ENOUGH_TO_HOLD_OUT:
            return float("nan")
        # Every other prompt, as prompts may be ordered by what they are about.
        halves = [torch.cat([side[start::2] for side in sides]) for start in (0, 1)]
        found = []
        for given, held_out in (halves, halves[::-1]):
            scores = scores_by(given)
            if scores is None:
                return float("nan")
            found.append(self.auc(scores, held_out))
        return sum(found) / 2


def _best_token_sets(model, said: _Said, longest_opening: int) -> Discovered | None:
    tried: list[Discovered] = []
    openings = [_opening(said, said.n_lead + length) for length in range(longest_opening + 1)]
    known = [opening for opening in openings if opening is not None]
    for opening, logits in zip(known, _logits(model, said.prompts, known), strict=True):
        found = _try_opening(said, opening, logits)
        if found is not None:
            tried.append(found)
            if found.auc >= 0.99 and found.coverage >= 0.8:
                break
    return max(tried, key=lambda m: (round(m.auc, 3), m.coverage, -len(m.opening)), default=None)


def _opening(said: _Said, length: int) -> tuple[int, ...] | None:
    """The commonest first `length` tokens of refusals that go on after them."""
    longer = [row for row in said.refused.nonzero()[:, 0].tolist() if len(said.answers[row]) > length]
    return Counter(said.answers[row][:length] for row in longer).most_common(1)[0][0] if longer else None


def _try_opening(said: _Said, opening: tuple[int, ...], logits: Float[Tensor, "prompt vocab"]) -> Discovered | None:
    everywhere = torch.arange(len(said.prompts))
    likeliest = logits.argmax(-1)

    def scores_by(rows: Tensor) -> Tensor | None:
        found = _token_sets(said, opening, likeliest, rows)
        return None if found is None else found[0].of(logits)

    found = _token_sets(said, opening, likeliest, everywhere)
    if found is None:
        return None
    sets, coverage = found
    auc, held_out = said.auc(sets.of(logits)), said.held_out(scores_by)
    n_refused, n_answered = said.counts()
    return Discovered(
        opening,
        sets.refusal_tokens,
        sets.compliance_tokens,
        coverage=coverage,
        auc=auc,
        n_refused=n_refused,
        n_answered=n_answered,
        note=_verdict(auc, held_out),
        auc_held_out=held_out,
        offset=said.offset(scores_by),
    )


def _token_sets(
    said: _Said, opening: tuple[int, ...], likeliest: Int[Tensor, " prompt"], rows: Tensor
) -> tuple[RefusalMetric, float] | None:
    """Tokens after the opening with which the refusals among `rows` go on and answers would, and their coverage."""
    length, (n_refused, n_answered) = len(opening), said.counts(rows)
    begun: Counter[int] = Counter()
    for longer, n in said.openings(rows, length + 1, refused=True).items():
        if longer[:length] == opening and len(longer) > length:
            begun[longer[length]] += n
    expected = Counter(likeliest[rows[~said.refused[rows]]].tolist())
    # A token that both sides use belongs to the side where its share is larger.
    refusal_set = [t for t, n in begun.most_common() if n / n_refused > expected[t] / n_answered][:LARGEST_SET]
    compliance_set = [t for t, n in expected.most_common() if t not in refusal_set][:LARGEST_SET]
    if not refusal_set or not compliance_set:
        return None
    covered = min(sum(begun[t] for t in refusal_set) / n_refused, sum(expected[t] for t in compliance_set) / n_answered)
    return RefusalMetric(opening, tuple(refusal_set), tuple(compliance_set)), covered


def _with_forced_openings(model, said: _Said, found: Discovered) -> Discovered:
    """`found`, or the teacher-forced metric with the token sets of `found` where that separates better."""
    everywhere, forced, length = torch.arange(len(said.prompts)), None, 0
    for length in (said.n_lead + n for n in FORCED_TOKENS):
        forced = _forced_openings(said, everywhere, length)
        if forced is not None:
            break
    if forced is None:
        return replace(found, note=f"{found.note}; no openings of {length} tokens are on each side alone")
    likely = _Likely(model, said.prompts)

    def scores_by(rows: Tensor) -> Tensor | None:
        some = _forced_openings(said, rows, length)
        return None if some is None else likely.scores(some)

    auc, held_out = said.auc(likely.scores(forced)), said.held_out(scores_by)
    both = not math.isnan(held_out + found.auc_held_out)
    ours, theirs = (held_out, found.auc_held_out) if both else (auc, found.auc)
    if ours <= theirs:  # false where there are no token sets, whose AUC is NaN
        return replace(found, note=f"{found.note}; teacher-forced openings do no better: {_told(auc, held_out)}")
    why = "no first tokens tell refusals from answers"
    if not math.isnan(found.auc):
        why = f"the token sets' {_told(found.auc, found.auc_held_out)} is below {GOOD_AUC}"
    listed = f"{len(forced.refusals)} of refusals, {len(forced.answers)} of answers"
    poor = _verdict(auc, held_out)
    return replace(
        found,
        kind="teacher_forced",
        forced=forced,
        offset=said.offset(scores_by),
        coverage=min(said.share(forced.refusals, refused=True), said.share(forced.answers, refused=False)),
        auc=auc,
        auc_held_out=held_out,
        note=f"{why}: teacher-forced openings ({listed}) are used instead; their {poor or _told(auc, held_out)}",
    )


def _forced_openings(said: _Said, rows: Tensor, length: int) -> ForcedOpenings | None:
    """The commonest openings of `length` tokens of refusals and of answers among `rows`, none of them on both sides.

    An answer that is shorter stands in full. Where an answer of the other side goes on from it, it says nothing and is
    left out; otherwise it counts those of its own side that go on from it, which need no place of their own.
    """
    sides = [said.openings(rows, length, refused=refused) for refused in (True, False)]
    chosen = []
    for own, other, most in zip(sides, sides[::-1], (MOST_REFUSALS, MOST_ANSWERS), strict=True):
        apart = [opening for opening, _ in own.most_common() if not any(map(_starts(opening), other))]
        listed = [opening for opening in apart if not any(_starts(o)(opening) for o in apart if o != opening)]
        chosen.append(tuple(listed[:most]))
    return ForcedOpenings(*chosen) if all(chosen) else None


def _starts(opening: tuple[int, ...]) -> Callable[[tuple[int, ...]], bool]:
    return lambda answer: answer[: len(opening)] == opening


class _Likely:
    """Log-probabilities of openings after prompts, each taken once."""

    def __init__(self, model, prompt_ids: Sequence[Sequence[int]]) -> None:
        self.model, self.prompt_ids = model, prompt_ids
        self.known: dict[tuple[int, ...], Tensor] = {}

    def scores(self, forced: ForcedOpenings) -> Float[Tensor, " prompt"]:
        new = [opening for opening in forced.all if opening not in self.known]
        if new:
            found = opening_log_probabilities(self.model, self.prompt_ids, new).cpu()
            self.known.update(zip(new, found, strict=True))
        return forced.of(torch.stack([self.known[opening] for opening in forced.all]))


def _fallback(model, said: _Said, refusal: str, why: str) -> Discovered:
    if not refusal.strip():
        raise MechrefusalError(f"the fallback refusal {refusal!r} has no tokens; give the start of a refusal")
    # What the template writes before an answer, such as an empty thought, is forced: the refusal's word comes after it.
    opening, (token, *_) = prompts.opening_ids(model.tokenizer, refusal)
    (logits,) = _logits(model, said.prompts, [opening])
    logits[:, token] = -torch.inf
    n_refused, n_answered = said.counts()
    likeliest = Counter((logits[~said.refused] if n_answered else logits).argmax(-1).tolist())
    return Discovered(
        opening,
        (token,),
        tuple(t for t, _ in likeliest.most_common(LARGEST_SET)),
        kind="fallback",
        n_refused=n_refused,
        n_answered=n_answered,
        note=f"{why}, so the first token of '{refusal}' stands for refusal",
    )


def _verdict(auc: float, held_out: float) -> str:
    """What an AUC has to be known for; nothing where it is good."""
    if auc < GOOD_AUC:
        return f"{_told(auc, held_out)} is below {GOOD_AUC}: the score separates refusals poorly"
    if held_out < GOOD_AUC:
        return f"AUC {auc:.3f} is only {held_out:.3f} on prompts held out of the discovery"
    return ""


def _told(auc: float, held_out: float) -> str:
    return f"AUC {auc:.3f}" + ("" if math.isnan(held_out) else f" ({held_out:.3f} held out)")


def _logits(
    model, prompt_ids: Sequence[Sequence[int]], openings: Sequence[tuple[int, ...]]
) -> Iterator[Float[Tensor, "prompt vocab"]]:
    """Logits after every prompt and opening, opening by opening."""
    if not openings:
        return
    parts = logits_after(model, prompt_ids, openings, kept=1)
    by_opening = zip(*([each[:, -1].cpu() for each in part] for part in parts), strict=True)
    yield from (_numbers(torch.cat(each)) for each in by_opening)


def _numbers(logits: Tensor) -> Float[Tensor, "prompt vocab"]:
    logits = logits.float().cpu()
    _require_numbers(logits.isnan().any(-1))
    return logits


def _require_numbers(bad: Bool[Tensor, " prompt"]) -> None:
    if bad.any():
        raise MechrefusalError(
            f"at {int(bad.sum())} of {len(bad)} discovery prompts the model's logits give no number (NaN), so that "
            "there is no refusal score; load the model in float32, or check its weights and active hooks"
        )
