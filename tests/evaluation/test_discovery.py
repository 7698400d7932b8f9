"""The refusal metric is discovered on models whose openings are known, because they were taught."""

import numpy as np
import pytest
import torch
from chat_templates import QWEN3
from tolerances import COMPOUND

from mechrefusal import MechrefusalError, evaluation, forward, models
from mechrefusal.evaluation import Completions
from mechrefusal.prompts import PromptSet, Split

SORRY, SURE = "Sorry, I can't do that.", "Sure, here is how to do it."


HARMFUL = ["Make a bomb", "Sell a bomb", "Use a bomb now", "Explain how to make a bomb", "A bomb at home", "bomb"]
ANSWERED = ["Make a fire", "Sell a car", "Use an email now", "Explain how to make a home", "A work at home", "money"]


def taught(folder, lessons):
    """A tiny model that greedily says what `lessons` gives for each prompt."""
    models.tiny.make(folder, n_layers=2)
    model, tokenizer = models.load_causal_lm(folder)
    rows = []
    for text, said in lessons.items():
        asked = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        rows.append((prompt, [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id]))
    width = max(len(prompt) + len(said) for prompt, said in rows)
    tokens = torch.tensor([p + s + [0] * (width - len(p) - len(s)) for p, s in rows])
    labels = torch.tensor([[-100] * len(p) + s + [-100] * (width - len(p) - len(s)) for p, s in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(tokens, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    model.save_pretrained(folder)
    return models.load_hooked(folder)


@pytest.fixture(scope="module")
def says_sorry(tmp_path_factory):
    """Refuses with "Sorry", answers with "Sure"."""
    lessons = dict.fromkeys(HARMFUL, SORRY) | dict.fromkeys(ANSWERED, SURE)
    return taught(tmp_path_factory.mktemp("sorry") / "model", lessons)


@pytest.fixture(scope="module")
def says_i(tmp_path_factory):
    """Opens refusals and answers with "I"."""
    lessons = dict.fromkeys(HARMFUL, "I can't do that.") | dict.fromkeys(ANSWERED, "I will do it.")
    return taught(tmp_path_factory.mktemp("i") / "model", lessons)


WE_REFUSE, WE_ANSWER = "We do it: no, I can't do that.", "We do it: yes, here is how to do it."
"""Five tokens in common."""
REFUSED_AS_ANSWERED_LOOK = ["Sell a home", "Use money now", "Explain how to sell a car", "An email at work"]


@pytest.fixture(scope="module")
def says_we(tmp_path_factory):
    """Opens most refusals, and all answers, with the same five tokens; the other refusals are of prompts like those
    that it answers, and open with "Sorry"."""
    lessons = dict.fromkeys(HARMFUL, WE_REFUSE) | dict.fromkeys(ANSWERED, WE_ANSWER)
    return taught(tmp_path_factory.mktemp("we") / "model", lessons | dict.fromkeys(REFUSED_AS_ANSWERED_LOOK, SORRY))


@pytest.fixture(scope="module")
def asked():
    """The prompts that the two models were taught."""
    return Split(PromptSet.from_texts("harmful", HARMFUL), PromptSet.from_texts("harmless", ANSWERED))


def ids_of(model, text):
    return tuple(model.tokenizer(text, add_special_tokens=False).input_ids)


def said(model, *texts):
    return Completions(tuple(texts), tuple(ids_of(model, text) for text in texts))


def auc(positive, negative):
    """Share of (refused, answered) pairs in the right order; ties count half."""
    return np.mean([(a > b) + 0.5 * (a == b) for a in positive for b in negative])


def scores(model, metric, texts):
    found = []
    for text in texts:
        asked = [{"role": "user", "content": text}]
        prompt = model.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            p = model(torch.tensor([[*prompt, *metric.opening]]))[0, -1].double().softmax(-1)
        refusal, compliance = p[list(metric.refusal_tokens)].sum(), p[list(metric.compliance_tokens)].sum()
        found.append((refusal / compliance).log().item())
    return np.array(found)


def test_refusals_and_answers_open_differently(says_sorry, asked):
    metric = evaluation.discover_refusal(says_sorry, asked)
    assert metric.kind == "discovered"
    assert metric.opening == ()
    assert metric.refusal_tokens == ids_of(says_sorry, SORRY)[:1]
    assert metric.compliance_tokens == ids_of(says_sorry, SURE)[:1]
    assert (metric.n_refused, metric.n_answered) == (6, 6)
    assert (metric.auc, metric.coverage, metric.note) == (1.0, 1.0, "")
    assert (scores(says_sorry, metric, asked.harmful) > 1).all()
    assert (scores(says_sorry, metric, asked.harmless) < -1).all()


def test_refusals_and_answers_open_alike(says_i, asked):
    metric = evaluation.discover_refusal(says_i, asked)
    refusal, answer = ids_of(says_i, "I can't do that."), ids_of(says_i, "I will do it.")
    assert refusal[0] == answer[0]
    assert refusal[1] != answer[1]
    assert metric.opening == refusal[:1]
    assert metric.refusal_tokens == refusal[1:2]
    assert metric.compliance_tokens == answer[1:2]
    assert (metric.auc, metric.coverage) == (1.0, 1.0)
    assert (scores(says_i, metric, asked.harmful) > 1).all()
    assert (scores(says_i, metric, asked.harmless) < -1).all()


def test_given_completions_are_used(says_sorry, asked):
    """The model's own answers say the contrary: what was refused is what the given texts refuse."""
    given = said(says_sorry, *[SURE] * 6, *[SORRY] * 6)
    metric = evaluation.discover_refusal(says_sorry, asked, completions=given)
    assert (metric.n_refused, metric.n_answered) == (6, 6)
    # What the model would say opens no refusal more often than an answer: no token sets.
    assert (metric.kind, metric.auc) == ("teacher_forced", 0.0)
    assert "AUC 0.000 is below 0.9" in metric.note


@pytest.mark.parametrize("swapped", [1, 2, 3])
def test_auc_and_coverage_by_hand(says_sorry, asked, swapped):
    """Some harmless prompts are given a refusal that the model itself does not want to start."""
    given = said(says_sorry, *[SORRY] * 6, *["I can't do that."] * swapped, *[SURE] * (6 - swapped))
    metric = evaluation.discover_refusal(says_sorry, asked, completions=given)
    found = scores(says_sorry, metric, [*asked.harmful, *asked.harmless])
    refused = np.array([True] * (6 + swapped) + [False] * (6 - swapped))
    assert metric.kind == "discovered"
    assert metric.auc == pytest.approx(auc(found[refused], found[~refused]), abs=1e-9)
    assert (metric.n_refused, metric.n_answered) == (6 + swapped, 6 - swapped)
    starts = [[*metric.opening, token] for token in metric.refusal_tokens]
    tokens = [list(ids) for ids in given.token_ids[: 6 + swapped]]
    share = np.mean([any(ids[: len(start)] == start for start in starts) for ids in tokens])
    assert metric.coverage <= share + 1e-9
    assert not set(metric.refusal_tokens) & set(metric.compliance_tokens)


@pytest.mark.parametrize("n_refused", [0, 1, 2])
def test_too_few_refusals(tiny_hooked, asked, n_refused):
    given = said(tiny_hooked, *[SORRY] * n_refused, *[SURE] * (12 - n_refused))
    metric = evaluation.discover_refusal(tiny_hooked, asked, completions=given)
    assert metric.kind == "fallback"
    assert metric.opening == ()
    assert metric.refusal_tokens == ids_of(tiny_hooked, SORRY)[:1]
    assert np.isnan([metric.auc, metric.coverage]).all()
    assert (metric.n_refused, metric.n_answered) == (n_refused, 12 - n_refused)
    assert f"{n_refused} of 12" in metric.note
    assert metric.refusal_tokens[0] not in metric.compliance_tokens


def test_fallback_compliance_tokens_are_the_likeliest_first_tokens(tiny_hf, tiny_hooked, asked):
    hf, tokenizer = tiny_hf
    given = said(tiny_hooked, SORRY, SORRY, *[SURE] * 10)
    fallback = "I will not."
    metric = evaluation.discover_refusal(tiny_hooked, asked, completions=given, fallback=fallback)
    token = ids_of(tiny_hooked, fallback)[0]
    expected = []
    for text in [*asked.harmful, *asked.harmless][2:]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            logits = hf(torch.tensor([prompt])).logits[0, -1].clone()
        logits[token] = -torch.inf
        expected.append(logits.argmax().item())
    assert metric.refusal_tokens == (token,)
    assert set(metric.compliance_tokens) == set(expected)


@pytest.mark.parametrize("n_answered", [0, 2])
def test_too_few_answers(tiny_hooked, asked, n_answered):
    given = said(tiny_hooked, *[SORRY] * (12 - n_answered), *[SURE] * n_answered)
    metric = evaluation.discover_refusal(tiny_hooked, asked, completions=given)
    assert metric.kind == "fallback"
    assert f"{n_answered} answers" in metric.note
    assert metric.compliance_tokens


def test_three_of_each_are_enough(says_sorry):
    few = Split(PromptSet.from_texts("a", ["Make a bomb", "Sell a bomb", "bomb"]),
                PromptSet.from_texts("b", ["Make a fire", "Sell a car", "money"]))  # fmt: skip
    metric = evaluation.discover_refusal(says_sorry, few)
    assert (metric.kind, metric.n_refused, metric.n_answered) == ("discovered", 3, 3)


def test_refusals_that_are_empty_or_shorter_than_the_opening(says_i, asked):
    """A refusal of one token has no second one: it cannot show how refusals go on."""
    i = ids_of(says_i, "I")
    given = said(says_i, *["I can't do that."] * 6, *["I will do it."] * 6)
    given = Completions(("Sorry", *given.texts[1:]), (i, *given.token_ids[1:]))
    metric = evaluation.discover_refusal(says_i, asked, completions=given)
    assert metric.opening == i
    assert metric.coverage == pytest.approx(5 / 6)


def test_zero_lies_midway_between_refused_and_answered_prompts(says_sorry, asked):
    """Each left out of the discovery in turn; here that gives the same token sets every time."""
    metric = evaluation.discover_refusal(says_sorry, asked)
    found = scores(says_sorry, metric, [*asked.harmful, *asked.harmless])
    assert metric.offset == pytest.approx((found[:6].min() + found[6:].max()) / 2, abs=COMPOUND)


@pytest.mark.parametrize(("held_out", "relied_on"), [(float("nan"), 0.95), (0.8, 0.8), (0.99, 0.99)])
def test_the_auc_to_go_by_is_the_one_held_out(held_out, relied_on):
    metric = evaluation.Discovered((), (1,), (2,), auc=0.95, auc_held_out=held_out)
    assert metric.reliable_auc == relied_on


def test_lists_of_strings_will_do(says_sorry, asked):
    class Bare:
        harmful = asked.harmful.texts
        harmless = asked.harmless.texts

    assert evaluation.discover_refusal(says_sorry, Bare) == evaluation.discover_refusal(says_sorry, asked)


def split(harmful, harmless=ANSWERED):
    return Split(PromptSet.from_texts("harmful", harmful), PromptSet.from_texts("harmless", harmless))


def log_probability(model, text, opening):
    """Of the whole opening after the prompt, by one plain pass in float64."""
    asked = [{"role": "user", "content": text}]
    prompt = model.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *opening]]))[0].double().numpy()[len(prompt) - 1 : -1]
    return sum(row[token] - np.logaddexp.reduce(row) for row, token in zip(logits, opening, strict=True))


def forced_scores(model, forced, texts):
    def likely(text, openings):
        return np.logaddexp.reduce([log_probability(model, text, opening) for opening in openings])

    return np.array([likely(text, forced.refusals) - likely(text, forced.answers) for text in texts])


def test_the_same_first_tokens_need_forced_openings(says_we):
    """No set of tokens within reach is on one side only."""
    refusal, answer = ids_of(says_we, WE_REFUSE), ids_of(says_we, WE_ANSWER)
    assert refusal[:5] == answer[:5]
    assert refusal[5] != answer[5]
    metric = evaluation.discover_refusal(says_we, split(HARMFUL))
    assert metric.kind == "teacher_forced"
    assert metric.forced.refusals == (refusal[:6],)
    assert metric.forced.answers == (answer[:6],)
    assert (metric.auc, metric.coverage, metric.n_refused, metric.n_answered) == (1.0, 1.0, 6, 6)
    assert "no first tokens tell refusals from answers" in metric.note
    assert "(1 of refusals, 1 of answers)" in metric.note
    found = forced_scores(says_we, metric.forced, [*HARMFUL, *ANSWERED])
    assert (found[:6] > 1).all()
    assert (found[6:] < -1).all()
    prompt_ids = [says_we.tokenizer.apply_chat_template([{"role": "user", "content": text}],
                  add_generation_prompt=True, return_dict=False) for text in [*HARMFUL, *ANSWERED]]  # fmt: skip
    scored = forward.refusal_scores(says_we, prompt_ids, metric)
    np.testing.assert_allclose(scored.numpy(), found - metric.offset, atol=COMPOUND)
    # The token sets, for what looks at one position, are those of the fallback.
    assert metric.refusal_tokens == ids_of(says_we, SORRY)[:1]
    assert metric.compliance_tokens == answer[:1]


def test_token_sets_that_separate_poorly_give_way(says_we):
    harmful = [*HARMFUL, *REFUSED_AS_ANSWERED_LOOK]
    metric = evaluation.discover_refusal(says_we, split(harmful))
    sorry, refusal, answer = (ids_of(says_we, text) for text in (SORRY, WE_REFUSE, WE_ANSWER))
    # "We" is said to all answered and to some refused prompts: the one token that tells a refusal is "Sorry".
    assert (metric.opening, metric.refusal_tokens, metric.compliance_tokens) == ((), sorry[:1], answer[:1])
    found = scores(says_we, metric, [*harmful, *ANSWERED])
    poor = auc(found[:10], found[10:])
    assert poor < 0.9
    assert metric.kind == "teacher_forced"
    assert metric.forced.refusals == (refusal[:6], sorry[:6])
    assert metric.forced.answers == (answer[:6],)
    forced = forced_scores(says_we, metric.forced, [*harmful, *ANSWERED])
    assert metric.auc == pytest.approx(auc(forced[:10], forced[10:]), abs=1e-9)
    assert metric.auc > poor
    assert metric.coverage == 1.0
    assert f"token sets' AUC {poor:.3f}" in metric.note


def test_token_sets_that_separate_well_stay(says_i, asked):
    metric = evaluation.discover_refusal(says_i, asked)
    assert metric.auc >= evaluation.GOOD_AUC
    assert (metric.kind, metric.forced) == ("discovered", None)


def test_forced_openings_that_do_no_better_are_not_used(says_sorry):
    """The same prompts on both sides: every score has an AUC of one half."""
    texts = ["Make a fire"] * 3
    completions = said(says_sorry, *[SORRY] * 3, *[SURE] * 3)
    metric = evaluation.discover_refusal(says_sorry, split(texts, texts), completions=completions)
    assert (metric.kind, metric.forced, metric.auc) == ("discovered", None, 0.5)
    assert metric.note == (
        "AUC 0.500 is below 0.9: the score separates refusals poorly; teacher-forced openings do no better: AUC 0.500"
    )


NO_TOKEN_SETS = -1
"""As `longest_opening`: no opening is tried, as if all of them were shared."""


def given(refusals, answers):
    """Completions whose tokens are given, whatever they read."""
    return Completions((SORRY,) * len(refusals) + (SURE,) * len(answers), (*map(tuple, refusals), *map(tuple, answers)))


BOTH = (30, 31, 32, 33, 34, 35)


def test_openings_on_both_sides_are_left_out(tiny_hooked, asked):
    refusals = [BOTH, BOTH, BOTH, (*BOTH[:5], 40, 41), (*BOTH[:5], 40, 42), (*BOTH[:5], 43, 44)]
    answers = [BOTH, (*BOTH[:5], 50, 51), BOTH[:3], (*BOTH[:5], 52), (*BOTH[:5], 50, 99), BOTH]
    metric = evaluation.discover_refusal(
        tiny_hooked, asked, completions=given(refusals, answers), longest_opening=NO_TOKEN_SETS
    )
    assert metric.kind == "teacher_forced"
    # The commonest first. Three tokens that refusals go on from, said in full as an answer, tell nothing either.
    assert metric.forced.refusals == ((*BOTH[:5], 40), (*BOTH[:5], 43))
    assert metric.forced.answers == ((*BOTH[:5], 50), (*BOTH[:5], 52))
    assert metric.coverage == pytest.approx(3 / 6)  # of both refusals and answers


def test_the_smaller_share_is_the_coverage(tiny_hooked, asked):
    refusals = [BOTH, *[(*BOTH[:5], 40)] * 5]
    answers = [BOTH] * 4 + [(*BOTH[:5], 50)] * 2
    metric = evaluation.discover_refusal(
        tiny_hooked, asked, completions=given(refusals, answers), longest_opening=NO_TOKEN_SETS
    )
    assert metric.coverage == pytest.approx(2 / 6)


def test_a_short_answer_counts_those_that_go_on_from_it(tiny_hooked, asked):
    refusals = [BOTH, BOTH, BOTH[:2], BOTH, BOTH, (40, 41, 42, 43, 44, 45)]
    answers = [(50, 51)] * 3 + [(60, 61, 62, 63, 64, 65, 66)] * 3
    metric = evaluation.discover_refusal(
        tiny_hooked, asked, completions=given(refusals, answers), longest_opening=NO_TOKEN_SETS
    )
    assert metric.forced.refusals == (BOTH[:2], (40, 41, 42, 43, 44, 45))
    assert metric.forced.answers == ((50, 51), (60, 61, 62, 63, 64, 65))
    assert metric.coverage == 1.0


def test_at_most_four_refusals_and_eight_answers_the_commonest_and_the_first(tiny_hooked):
    """Equally common ones in the order of the prompts."""
    texts = [f"Question {i}" for i in range(20)]
    refusals = [(40 + i,) * 6 for i in (0, 1, 2, 3, 4, 5, 5)]
    answers = [(60 + i,) * 6 for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 8)]
    metric = evaluation.discover_refusal(
        tiny_hooked,
        split(texts[:7], texts[7:]),
        completions=given(refusals, answers),
        longest_opening=NO_TOKEN_SETS,
    )
    assert [opening[0] for opening in metric.forced.refusals] == [45, 40, 41, 42]
    assert [opening[0] for opening in metric.forced.answers] == [69, 68, 60, 61, 62, 63, 64, 65]
    assert metric.coverage == pytest.approx(5 / 7)


def test_openings_that_differ_late_only(tiny_hooked, asked):
    """The first six tokens are common to all: twelve are forced."""
    refusals, answers = [(*BOTH, 1, 2, 3, 4, 5, 6, 7)] * 6, [(*BOTH, 8, 9, 10, 11, 12, 13, 14)] * 6
    metric = evaluation.discover_refusal(
        tiny_hooked, asked, completions=given(refusals, answers), longest_opening=NO_TOKEN_SETS
    )
    assert metric.kind == "teacher_forced"
    assert metric.forced.refusals == (refusals[0][:12],)
    assert metric.forced.answers == (answers[0][:12],)


def test_refusals_and_answers_that_are_all_alike(tiny_hooked, asked):
    metric = evaluation.discover_refusal(tiny_hooked, asked, completions=given([BOTH] * 6, [BOTH] * 6),
                                         longest_opening=NO_TOKEN_SETS)  # fmt: skip
    assert (metric.kind, metric.forced) == ("fallback", None)
    assert np.isnan([metric.auc, metric.coverage]).all()
    assert "no first tokens tell refusals from answers" in metric.note
    assert "no openings of 12 tokens" in metric.note


def test_auc_of_ties_counts_half(tiny_hooked):
    """The same prompt refused and answered has the same score."""
    texts = ["Make a bomb"] * 3
    metric = evaluation.discover_refusal(
        tiny_hooked,
        split(texts, texts),
        completions=given([BOTH] * 3, [(40, 41, 42, 43, 44, 45)] * 3),
        longest_opening=NO_TOKEN_SETS,
    )
    assert metric.kind == "teacher_forced"
    assert metric.auc == 0.5
    assert "AUC 0.500 is below 0.9" in metric.note


def test_held_out_auc_by_hand(tiny_hooked):
    """Each half of the prompts is scored by the openings of the other half: every other refusal and answer."""
    texts = [f"Question {'of art ' * (i % 5)}{i}" for i in range(18)]
    refusals = [(40 + i % 3, 50, 51) for i in range(8)]
    answers = [(60 + i % 4, 70, 71) for i in range(10)]
    metric = evaluation.discover_refusal(
        tiny_hooked, split(texts[:8], texts[8:]), completions=given(refusals, answers), longest_opening=NO_TOKEN_SETS
    )
    halves = []
    for start in (0, 1):
        some = slice(start, None, 2)
        openings = forward.ForcedOpenings(tuple(dict.fromkeys(refusals[some])), tuple(dict.fromkeys(answers[some])))
        others = slice(1 - start, None, 2)
        halves.append(
            auc(
                forced_scores(tiny_hooked, openings, texts[:8][others]),
                forced_scores(tiny_hooked, openings, texts[8:][others]),
            )
        )
    assert metric.auc_held_out == pytest.approx(np.mean(halves), abs=1e-9)
    whole = forced_scores(tiny_hooked, metric.forced, texts)
    assert metric.auc == pytest.approx(auc(whole[:8], whole[8:]), abs=1e-9)
    assert metric.auc != pytest.approx(metric.auc_held_out, abs=1e-6)


def test_held_out_auc_of_token_sets(says_sorry):
    """Eight of each are enough; the openings of either half tell the other half."""
    harmful, harmless = (
        [*HARMFUL, "Make a bomb now", "Sell a bomb now"],
        [*ANSWERED, "Sell a car now", "Make a fire now"],
    )
    answers = said(says_sorry, *[SORRY] * 8, *[SURE] * 8)
    metric = evaluation.discover_refusal(says_sorry, split(harmful, harmless), completions=answers)
    assert (metric.kind, metric.auc, metric.auc_held_out, metric.note) == ("discovered", 1.0, 1.0, "")
    few = evaluation.discover_refusal(says_sorry, split(harmful[:7], harmless), completions=said(
        says_sorry, *[SORRY] * 7, *[SURE] * 8))  # fmt: skip
    assert few.auc == 1.0
    assert np.isnan(few.auc_held_out)


def test_no_prompts(tiny_hooked):
    with pytest.raises(MechrefusalError, match="there are none"):
        evaluation.discover_refusal(tiny_hooked, split(HARMFUL).take(0))


def test_one_prompt(tiny_hooked, asked):
    metric = evaluation.discover_refusal(tiny_hooked, split(HARMFUL[:1], []), completions=said(tiny_hooked, SORRY))
    assert metric.kind == "fallback"
    assert (metric.n_refused, metric.n_answered) == (1, 0)
    assert "1 of 1 answers are refusals" in metric.note
    assert metric.compliance_tokens


def test_completions_of_other_prompts(tiny_hooked, asked):
    with pytest.raises(MechrefusalError, match="got 3 for 12"):
        evaluation.discover_refusal(tiny_hooked, asked, completions=said(tiny_hooked, SORRY, SURE, SURE))


def test_the_fallback_is_what_stands_in_the_template(tiny_hf, tiny_hooked, asked, monkeypatch):
    """An empty thought that the template writes before an answer is forced; a space belongs to the first word."""
    hf, tokenizer = tiny_hf
    given = said(tiny_hooked, SORRY, SORRY, *[SURE] * 10)
    spaced = QWEN3.replace("'\n</think>\n\n'", "'\n</think>'").replace("{{ content.lstrip('\n')", "{{ ' ' + content")
    for template, lead, word in (
        (QWEN3, "<think>\n\n</think>\n\n", "Sorry"),
        (spaced, "<think>\n\n</think>", " Sorry"),
    ):
        monkeypatch.setattr(tiny_hooked.tokenizer, "chat_template", template)
        metric = evaluation.discover_refusal(tiny_hooked, asked, completions=given, fallback=SORRY)
        assert metric.kind == "fallback"
        assert tokenizer.decode(metric.opening) == lead
        assert word.startswith(tokenizer.decode(metric.refusal_tokens))
        likeliest = set()
        for text in [*asked.harmful, *asked.harmless][2:]:
            prompt = tiny_hooked.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            with torch.no_grad():
                logits = hf(torch.tensor([[*prompt, *metric.opening]])).logits[0, -1].clone()
            logits[list(metric.refusal_tokens)] = -torch.inf
            likeliest.add(int(logits.argmax()))
        assert set(metric.compliance_tokens) == likeliest


@pytest.mark.parametrize("opens", [True, False])
def test_openings_of_a_model_that_thinks_are_those_of_its_answers(tiny, tmp_path, asked, opens):
    """Every thought is another one; refusals and answers differ in what comes after it."""
    hf, tokenizer = models.load_causal_lm(tiny)
    tokenizer.add_tokens(["<think>", "</think>"])
    hf.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    begun = QWEN3.replace("' }}{% if enable_thinking", "<think>\n' }}{% if enable_thinking")
    tokenizer.chat_template = QWEN3 if opens else begun
    for part in (hf, tokenizer):
        part.save_pretrained(tmp_path / "thinker")
    model = models.load_hooked(tmp_path / "thinker")
    thoughts = [f"{'<think>' if opens else ''}\nThe user wants number {n}.\n</think>\n\n" for n in range(12)]
    texts = [thought + (SORRY if n < 6 else SURE) for n, thought in enumerate(thoughts)]
    ids = tuple(tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
    metric = evaluation.discover_refusal(model, asked, completions=Completions(tuple(texts), ids))
    assert (metric.n_refused, metric.n_answered) == (6, 6)
    assert metric.kind in ("discovered", "teacher_forced")
    lead = ("<think>" if opens else "") + "\n\n</think>"
    refusals = {tokenizer.decode((*metric.opening, token)) for token in metric.refusal_tokens}
    assert all(told.lstrip("\n").startswith(lead.lstrip("\n")) for told in refusals)
    assert all(f"{lead}\n\n{SORRY}".lstrip("\n").startswith(told.lstrip("\n")) for told in refusals)
    if metric.forced is not None:
        openings = [tokenizer.decode(opening) for opening in metric.forced.refusals]
        assert openings
        assert all("</think>" in told and "Sorry" in told for told in openings)


def test_a_fallback_without_tokens(tiny_hooked, asked):
    with pytest.raises(MechrefusalError, match="fallback refusal ''"):
        evaluation.discover_refusal(tiny_hooked, asked, completions=said(tiny_hooked, *[SURE] * 12), fallback="")


@pytest.mark.parametrize("with_completions", [True, False])
def test_a_prompt_longer_than_the_context(tiny_hooked, with_completions):
    long = split([*HARMFUL[:5], "bomb " * 600])
    answers = said(tiny_hooked, *[SORRY] * 6, *[SURE] * 6) if with_completions else None
    with pytest.raises(MechrefusalError, match="context of 512"):
        evaluation.discover_refusal(tiny_hooked, long, completions=answers)


@pytest.mark.parametrize("n_refused", [6, 0])
def test_logits_that_are_no_numbers(tiny_hooked, asked, n_refused):
    answers = said(tiny_hooked, *[SORRY] * n_refused, *[SURE] * (12 - n_refused))
    nan = ("blocks.1.hook_resid_pre", lambda activation, hook: activation * torch.nan)
    with tiny_hooked.hooks([nan]), pytest.raises(MechrefusalError, match="12 of 12 discovery prompts"):
        evaluation.discover_refusal(tiny_hooked, asked, completions=answers)
