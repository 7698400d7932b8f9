"""Where the zero of a refusal score lies: by hand, in a simulation of many answer openings, and on a taught model."""

import numpy as np
import pytest
import torch
from test_discovery import taught

from mechrefusal import evaluation, forward, geometry
from mechrefusal.evaluation import discovery, zero
from mechrefusal.evaluation.judged_answers import JudgedAnswers
from mechrefusal.geometry import carriers
from mechrefusal.prompts import PromptSet, Split, prompt_ids


def youden(refused, answered, threshold):
    return (refused > threshold).mean() - (answered > threshold).mean()


class TestBetween:
    def test_in_the_middle_of_what_separates_them(self):
        assert zero.between(np.array([3.0, 9.0, 40.0]), np.array([-5.0, 1.0, 0.0])) == 2.0

    def test_the_best_of_all_thresholds(self):
        random = np.random.default_rng(0)
        refused, answered = random.normal(2, 1, 40), random.normal(0, 1, 60)
        found = zero.between(refused, answered)
        tried = np.linspace(-5, 7, 2401)
        assert youden(refused, answered, found) == max(youden(refused, answered, each) for each in tried)
        assert found not in [*refused, *answered]

    def test_of_gaps_that_are_as_good_the_widest(self):
        # Above 1.5, or above 5: two of three refused each and none, or all and one of three answered.
        refused, answered = np.array([2.0, 8.0, 9.0]), np.array([0.0, 1.0, 4.0])
        assert youden(refused, answered, 1.5) == pytest.approx(youden(refused, answered, 6)) == pytest.approx(2 / 3)
        assert zero.between(refused, answered) == 6

    def test_scores_that_are_no_numbers_say_nothing(self):
        assert zero.between(np.array([np.inf, 3.0]), np.array([-np.inf, 1.0, np.nan])) == 2

    @pytest.mark.parametrize(
        ("refused", "answered"), [([], [1.0]), ([1.0], []), ([0.0, 1], [2.0, 3]), ([1.0, 1], [1.0])]
    )
    def test_nothing_tells_them_apart(self, refused, answered):
        assert np.isnan(zero.between(np.array(refused), np.array(answered)))


def test_prompts_are_scored_by_what_the_others_give():
    sides = torch.arange(0, 20, 2), torch.arange(1, 12, 2)  # 10 and 6: six folds
    given = []

    def scores_by(rows):
        given.append(set(rows.tolist()))
        return torch.arange(20.0) + 100 * len(given)

    refused, answered = zero.cross_fitted(scores_by, sides)
    assert len(given) == 6
    assert (len(refused), len(answered)) == (10, 6)
    for score in [*refused, *answered]:
        fold, row = divmod(int(score), 100)
        assert row not in given[fold - 1]
    assert zero.cross_fitted(lambda rows: None, sides)[0].size == 0


class Simulated:
    """Answers that open in 32 ways, refusals in 3: a prompt's own opening is likely, all others hardly are."""

    N, WAYS = 64, 32

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        answers = [(100 + way, way) for way in range(self.WAYS)]
        refusals = [(200 + way, way) for way in range(3)]
        self.known = [*refusals, *answers]
        likely, said = [], []
        for refused in [True] * self.N + [False] * self.N:
            share = np.full(self.WAYS, 0.05 / self.WAYS) * random.lognormal(0, 0.3, self.WAYS)
            own = random.choice(self.WAYS, p=np.arange(self.WAYS, 0, -1) / (self.WAYS * (self.WAYS + 1) / 2))
            share[own] += 0.9
            refuse = random.dirichlet([5, 3, 2])
            weights = (0.9, 0.1) if refused else (0.015, 0.985)
            likely.append(np.log(np.concatenate([weights[0] * refuse, weights[1] * share])))
            said.append(refusals[refuse.argmax()] if refused else answers[own])
        self.likely = torch.tensor(np.array(likely))
        self.said = JudgedAnswers([[0]] * 2 * self.N, said, torch.arange(2 * self.N) < self.N)

    def scores(self, forced):
        places = [self.known.index(opening) for opening in forced.all]
        return forced.of(self.likely[:, places].T)

    def metric(self, monkeypatch, most_answers):
        """As discovery makes it, of openings of two tokens."""
        monkeypatch.setattr(discovery, "MOST_ANSWERS", most_answers)
        monkeypatch.setattr(discovery, "FORCED_TOKENS", (2,))
        monkeypatch.setattr(discovery, "_Likelihoods", lambda model, prompts: self)
        nothing = evaluation.Discovered((), (1,), (2,), kind="fallback")
        return discovery._with_forced_openings(None, self.said, nothing)


@pytest.mark.parametrize("seed", range(3))
def test_half_of_the_answer_openings_change_nothing(monkeypatch, seed):
    simulated = Simulated(seed)
    kept, raw = [], []
    for most in (16, 8, 4):
        metric = simulated.metric(monkeypatch, most)
        assert len(metric.forced.answers) == most
        assert metric.auc > 0.99
        scores = simulated.scores(metric.forced).numpy()
        raw.append((scores[simulated.N :] > 0).mean())
        kept.append(np.concatenate([scores[: simulated.N] > metric.offset, scores[simulated.N :] < metric.offset]))
    assert raw[1] > 0.2, "at its own zero the score calls many answered prompts refused"
    assert raw[2] > raw[1] > raw[0]
    assert all(each.all() for each in kept)


SORRY = "Sorry, I can't do that."
SAID = ["Sure, here is how to do it.", "Of course, here it is.", "Yes, I will do it.", "Here is how to do it."]
THINGS = ["bomb", "bomb now", "bomb at home", "bomb today"]
VERBS = ["Make a", "Sell a", "Use a", "Buy a"]


@pytest.fixture(scope="module")
def asked():
    harmful = [f"{verb} {thing}" for verb in VERBS for thing in THINGS]
    return Split(
        PromptSet.from_texts("harmful", harmful),
        PromptSet.from_texts("harmless", [text.replace("bomb", "car") for text in harmful]),
    )


@pytest.fixture(scope="module")
def says_many(tmp_path_factory, asked):
    """Answers in four ways, one a verb."""
    lessons = dict.fromkeys(asked.harmful, SORRY)
    lessons |= {text: SAID[place // len(THINGS)] for place, text in enumerate(asked.harmless)}
    return taught(tmp_path_factory.mktemp("many") / "model", lessons)


def discovered(model, asked, monkeypatch, most):
    monkeypatch.setattr(discovery, "MOST_ANSWERS", most)
    monkeypatch.setattr(discovery, "_best_token_sets", lambda *given: None)  # teacher-forced openings then
    return evaluation.discover_refusal(model, asked)


def test_on_a_model_the_kept_prompts_and_the_candidates_stay(says_many, asked, monkeypatch):
    ids = prompt_ids(says_many.tokenizer, [*asked.harmful, *asked.harmless])
    directions = geometry.difference_in_means(says_many, asked)
    places = carriers.candidates(directions, layers=range(2))
    kept, admissible, raw = [], [], []
    for most in (4, 2):
        metric = discovered(says_many, asked, monkeypatch, most)
        assert metric.kind == "teacher_forced"
        assert len(metric.forced.answers) == most
        scores = forward.refusal_scores(says_many, ids, metric).numpy()
        kept.append((scores > 0).tolist())
        raw.append((scores[16:] + metric.offset > 0).sum())
        scored = geometry.score(says_many, directions, asked, metric, places=places, reference="zero")
        found = carriers.select(scored, 9, geometry.Admissible(kl=5))
        admissible.append(found.table["admissible"].tolist())
    assert kept[0] == kept[1] == [True] * 16 + [False] * 16
    assert admissible[0] == admissible[1]
    assert any(admissible[0])
    assert raw[0] == 0 < raw[1], "at the scores' own zero answered prompts would be lost"
