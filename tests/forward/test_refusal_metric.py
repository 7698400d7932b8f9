"""The refusal metric against its formula."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tolerances import COMPOUND, FORWARD, REORDERED

from mechrefusal import MechrefusalError, causal, forward
from mechrefusal.forward import ForcedOpenings, RefusalMetric, runner


def probabilities(logits):
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@pytest.fixture
def logits():
    return torch.randn((6, 50), generator=torch.Generator().manual_seed(1)) * 3


def test_score_is_a_difference_of_log_probabilities(logits):
    p = probabilities(logits.double().numpy())
    expected = np.log(p[:, [3, 9]].sum(1)) - np.log(p[:, [4, 30, 31]].sum(1))
    found = RefusalMetric((), (3, 9), (4, 30, 31)).of(logits)
    np.testing.assert_allclose(found.numpy(), expected, atol=REORDERED)


def test_an_offset_is_taken_off_every_score(tiny_hooked, logits):
    forced = ForcedOpenings(((5, 6),), ((7,), (8, 9)))
    batch_of = [[1, 2, 3], [4, 5]]
    for openings in (None, forced):
        plain = RefusalMetric((), (3, 9), (4, 30), forced=openings)
        shifted = RefusalMetric((), (3, 9), (4, 30), forced=openings, offset=1.5)
        given = [torch.randn((4, len(run) + 1, 50), generator=torch.Generator().manual_seed(2)) for run in plain.runs]
        np.testing.assert_allclose(shifted.of_runs(given), plain.of_runs(given) - 1.5, atol=REORDERED)
        scores = [forward.refusal_scores(tiny_hooked, batch_of, metric) for metric in (shifted, plain)]
        np.testing.assert_allclose(scores[0], scores[1] - 1.5, atol=REORDERED)
    # The token sets, which look at one position only, have an offset where they are the metric.
    alone = RefusalMetric((), (3, 9), (4, 30), offset=1.5)
    assert (alone.of(logits) + 1.5).tolist() == pytest.approx(plain.of(logits).tolist(), abs=REORDERED)
    assert torch.equal(shifted.of(logits), plain.of(logits))


def test_the_offset_is_written_and_older_metrics_have_none():
    metric = RefusalMetric((1,), (3,), (4,), "teacher_forced", ForcedOpenings(((5,),), ((6,),)), offset=-2.25)
    assert RefusalMetric.from_json(metric.as_json()) == metric
    older = json.loads(metric.as_json())
    del older["offset"]
    assert RefusalMetric.from_json(json.dumps(older)) == dataclasses.replace(metric, offset=0.0)
    with pytest.raises(ValueError, match="offset of a refusal metric is nan"):
        RefusalMetric((), (3,), (4,), offset=float("nan"))
    with pytest.raises(MechrefusalError, match="is no refusal metric"):
        RefusalMetric.from_json(json.dumps({**older, "offset": None}))


def test_rd_score(logits):
    p = probabilities(logits.double().numpy())[:, [3, 9]].sum(1)
    expected = np.log(p + 1e-8) - np.log(1 - p + 1e-8)
    np.testing.assert_allclose(forward.rd_score(logits, [3, 9]).numpy(), expected, atol=1e-9)


def test_rd_score_where_the_model_is_certain():
    logits = torch.full((2, 10), -100.0)
    logits[0, 3] = logits[1, 4] = 100.0
    expected = np.log(1 + 1e-8) - np.log(1e-8)
    np.testing.assert_allclose(forward.rd_score(logits, [3]).numpy(), [expected, -expected], rtol=1e-6)


def test_rd_tokens(tiny_hf):
    tokenizer = tiny_hf[1]
    found = forward.rd_tokens(tokenizer)
    assert found[0] == tokenizer("I", add_special_tokens=False).input_ids[0]
    assert all("As".startswith(tokenizer.decode([token])) or tokenizer.decode([token]) == "I" for token in found)


@pytest.mark.parametrize(("refusal", "compliance"), [((), (1,)), ((1,), ()), ((1, 2), (2, 3))])
def test_sets_that_make_no_score(refusal, compliance):
    with pytest.raises(ValueError, match="token"):
        RefusalMetric((), refusal, compliance)


@pytest.mark.parametrize("opening", [(), (40,), (40, 41, 42)])
def test_scores_and_what_comes_next_against_plain_forward_passes(tiny_hf, tiny_hooked, opening):
    hf, tokenizer = tiny_hf
    metric = RefusalMetric(opening, (10, 11), (12, 13, 14))
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in ("Bake bread.", "How do I swim across a river?")
    ]
    scores, following = [], []
    with torch.no_grad():
        for prompt in prompts:
            p = hf(torch.tensor([[*prompt, *opening]])).logits[0, -1].double().softmax(-1)
            scores.append((p[[10, 11]].sum().log() - p[[12, 13, 14]].sum().log()).item())
            following.append(hf(torch.tensor([prompt])).logits[0, -1].log_softmax(-1))
    found, next_ = forward.refusal_scores_and(tiny_hooked, prompts, metric, read=lambda logits: logits.log_softmax(-1))
    np.testing.assert_allclose(found.numpy(), scores, atol=FORWARD)
    torch.testing.assert_close(next_, torch.stack(following), atol=FORWARD, rtol=0)
    np.testing.assert_allclose(forward.refusal_scores(tiny_hooked, prompts, metric).numpy(), scores, atol=FORWARD)


FORCED = ForcedOpenings(((20, 21, 22, 23, 24, 25), (20, 21, 30), (40,)), ((20, 21, 22, 50), (60, 61), (20, 21, 22, 51)))
"""Of several lengths; some begin alike, some begin others."""
METRIC = RefusalMetric((7,), (10, 11), (12, 13, 14), kind="teacher_forced", forced=FORCED)
TEXTS = ("Bake bread.", "How do I swim across a river?", "Hi", "Describe a long walk by the sea in the rain.")


def chat(tokenizer, texts=TEXTS):
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]


def log_probability(logits_of, prompt, opening):
    """By one plain pass over prompt and opening, in float64."""
    with torch.no_grad():
        logits = logits_of(torch.tensor([[*prompt, *opening]]))[0].double().numpy()
    found = 0.0
    for place, token in enumerate(opening, start=len(prompt) - 1):
        row = logits[place]
        found += row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
    return found


def forced_scores(logits_of, prompts, forced=FORCED):
    def likely(prompt, openings):
        return np.logaddexp.reduce([log_probability(logits_of, prompt, opening) for opening in openings])

    return np.array([likely(p, forced.refusals) - likely(p, forced.answers) for p in prompts])


def next_logits(logits_of, prompts):
    with torch.no_grad():
        return torch.stack([logits_of(torch.tensor([prompt]))[0, -1] for prompt in prompts])


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gemma2"])
def test_forced_scores_against_plain_forward_passes(name, tiny_hf, tiny_hooked, family):
    if name == "tiny":
        (hf, tokenizer), hooked = tiny_hf, tiny_hooked
    else:
        hf, tokenizer, hooked = family(name).hf, family(name).tokenizer, family(name).hooked
    prompts = chat(tokenizer)

    def logits_of(tokens):
        return hf(tokens).logits

    expected, following = forced_scores(logits_of, prompts), next_logits(logits_of, prompts)
    assert np.ptp(expected) > 0.05
    found, next_ = forward.refusal_scores_and(hooked, prompts, METRIC, read=lambda logits: logits.log_softmax(-1))
    np.testing.assert_allclose(found.numpy(), expected, atol=COMPOUND)
    torch.testing.assert_close(next_, following.log_softmax(-1), atol=COMPOUND, rtol=0)
    of_openings = forward.opening_log_probabilities(hooked, prompts, FORCED.all)
    by_hand = [[log_probability(logits_of, prompt, opening) for prompt in prompts] for opening in FORCED.all]
    np.testing.assert_allclose(of_openings.numpy(), by_hand, atol=COMPOUND)


@pytest.mark.parametrize("metric", [METRIC, RefusalMetric((7, 8), (10, 11), (12, 13, 14))], ids=["forced", "sets"])
def test_prompts_are_scored_together_with_what_is_read_at_their_ends(metric, tiny_hf, tiny_hooked):
    prompts = chat(tiny_hf[1])
    scores, rd = forward.refusal_scores_and(
        tiny_hooked, prompts, metric, read=lambda logits: forward.rd_score(logits, [3, 9])
    )
    following = next_logits(lambda tokens: tiny_hf[0](tokens).logits, prompts)
    torch.testing.assert_close(rd, forward.rd_score(following, [3, 9]), atol=COMPOUND, rtol=0)
    torch.testing.assert_close(scores, forward.refusal_scores(tiny_hooked, prompts, metric), atol=REORDERED, rtol=0)


def test_openings_of_one_token_need_no_further_pass(tiny_hf, tiny_hooked):
    hf, tokenizer = tiny_hf
    prompts = chat(tokenizer)
    forced = ForcedOpenings(((40,), (41,)), ((60,),))
    metric = RefusalMetric((), (10,), (12,), forced=forced)
    expected = forced_scores(lambda tokens: hf(tokens).logits, prompts, forced)
    np.testing.assert_allclose(forward.refusal_scores(tiny_hooked, prompts, metric).numpy(), expected, atol=FORWARD)
    # The same two sets of tokens without an opening are the same score.
    sets = RefusalMetric((), (40, 41), (60,))
    np.testing.assert_allclose(forward.refusal_scores(tiny_hooked, prompts, sets).numpy(), expected, atol=FORWARD)


def test_forced_scores_under_an_intervention(tiny_hf, tiny_hooked):
    prompts = chat(tiny_hf[1])
    direction = torch.randn(tiny_hooked.cfg.d_model, generator=torch.Generator().manual_seed(3))
    without = forward.refusal_scores(tiny_hooked, prompts, METRIC).numpy()
    with causal.ablate(tiny_hooked, direction):
        expected = forced_scores(tiny_hooked, prompts)
        found = forward.refusal_scores(tiny_hooked, prompts, METRIC).numpy()
    np.testing.assert_allclose(found, expected, atol=COMPOUND)
    assert np.abs(found - without).max() > 0.05


@pytest.mark.parametrize("metric", [METRIC, RefusalMetric((7, 8), (10, 11), (12, 13, 14))], ids=["forced", "sets"])
def test_logits_of_one_pass_stay_within_the_limit(metric, tiny_hf, tiny_hooked, monkeypatch):
    prompts = chat(tiny_hf[1]) * 3
    at_once = forward.refusal_scores_and(tiny_hooked, prompts, metric, read=lambda logits: logits)
    sizes = []
    limit = 4 * tiny_hooked.cfg.d_vocab * 20
    monkeypatch.setattr(runner, "LOGIT_BYTES", limit)
    head = forward.unhooked_model(tiny_hooked).get_output_embeddings()  # where the passes are run
    hook = head.register_forward_hook(lambda _, inputs, output: sizes.append(4 * output.numel()))
    try:
        found = forward.refusal_scores_and(tiny_hooked, prompts, metric, read=lambda logits: logits)
    finally:
        hook.remove()
    assert len(sizes) >= 2
    assert max(sizes) <= limit
    for one, other in zip(found, at_once, strict=True):
        torch.testing.assert_close(one, other, atol=FORWARD, rtol=0)


def test_a_prompt_that_leaves_no_room_for_the_openings(tiny_hf, tiny_hooked):
    prompt = [5] * 509
    assert forward.refusal_scores(tiny_hooked, [prompt], RefusalMetric((), (10,), (12,))).isfinite().all()
    with pytest.raises(MechrefusalError, match="514 tokens, more than this model's context of 512"):
        forward.refusal_scores(tiny_hooked, [prompt], METRIC)


@pytest.mark.parametrize(
    ("refusals", "answers"), [((), ((1,),)), (((1,),), ()), (((1,), ()), ((2,),)), (((1, 2), (3,)), ((1, 2),))]
)
def test_openings_that_make_no_score(refusals, answers):
    with pytest.raises(ValueError, match="opening"):
        ForcedOpenings(refusals, answers)
