"""Rule 5: batches with a shared head give what a plain forward pass of each prompt alone gives."""

import pytest
import torch
from architectures import FAMILIES, build
from tolerances import COMPOUND, FORWARD

from mechrefusal import MechrefusalError, forward, models
from mechrefusal.models import TokenBatch

TEXTS = ("Bake bread.", "Explain how to swim across a cold river in winter", "x", "Tell me how to pick a lock at night")


def chat(tokenizer, text):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )


def alone(hf, prompts, keep=1):
    with torch.no_grad():
        return torch.cat([hf(torch.tensor([prompt])).logits[:, -keep:] for prompt in prompts]).log_softmax(-1)


def greedy(hf, prompt, n, end):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            token = hf(torch.tensor([ids])).logits[0, -1].argmax().item()
            if token in end:
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def prompts(tiny_hf):
    return [chat(tiny_hf[1], text) for text in TEXTS]


@pytest.fixture(params=["hooked", "hugging face"])
def model(request, tiny_hooked, tiny_hf):
    return tiny_hooked if request.param == "hooked" else tiny_hf[0]


def test_rows_spell_the_prompts(prompts):
    batch = TokenBatch.of(prompts, pad=0)
    assert len(batch) == len(prompts)
    assert len(batch.head) > 8, "the template's first tokens are shared"
    for row, prompt in enumerate(prompts):
        own = batch.rest[row][batch.mask[row].bool()].tolist()
        assert [*batch.head.tolist(), *own] == prompt
        assert len(own) >= 8
        # All padding is on the left.
        assert (batch.mask[row].diff() >= 0).all()
    expected = [len(batch.head) + len(prompt) - len(batch.head) for prompt in prompts]
    assert batch.full_mask().sum(1).tolist() == expected
    assert [len(part) for part in batch.chunks(3)] == [3, 1]


@pytest.mark.parametrize("keep", [1, 5, 8, 1000])
def test_the_last_tokens_stay_out_of_the_head(prompts, keep):
    batch = TokenBatch.of(prompts, pad=0, keep=keep)
    shortest = min(map(len, prompts))
    assert len(batch.head) <= max(0, shortest - keep)
    assert batch.mask.sum(1).min() >= min(keep, shortest)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_logits_of_unequal_prompts_with_a_shared_head(model, tiny_hf, prompts, keep, chunk):
    batch = TokenBatch.of(prompts, pad=0)
    found = models.last_logits(model, batch, keep=keep, chunk=chunk).log_softmax(-1)
    assert found.shape == (len(prompts), keep, 1024)
    torch.testing.assert_close(found, alone(tiny_hf[0], prompts, keep), atol=FORWARD, rtol=0)


def test_logits_without_a_shared_head(model, tiny_hf):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 1024, (n,), generator=generator).tolist() for n in (9, 30, 4, 17)]
    batch = TokenBatch.of(prompts, pad=0)
    assert len(batch.head) == 0
    assert models.head_cache(model, batch) is None
    found = models.last_logits(model, batch).log_softmax(-1)
    torch.testing.assert_close(found, alone(tiny_hf[0], prompts), atol=FORWARD, rtol=0)


@pytest.mark.parametrize("pad", [0, 1, 2, 77])
def test_the_pad_token_does_not_matter(model, tiny_hf, prompts, pad):
    found = models.last_logits(model, TokenBatch.of(prompts, pad=pad)).log_softmax(-1)
    torch.testing.assert_close(found, alone(tiny_hf[0], prompts), atol=FORWARD, rtol=0)


def test_one_prompt_and_identical_prompts(model, tiny_hf, prompts):
    expected = alone(tiny_hf[0], prompts[:1])
    for n in (1, 3):
        batch = TokenBatch.of(prompts[:1] * n, pad=0)
        found = models.last_logits(model, batch).log_softmax(-1)
        torch.testing.assert_close(found, expected.expand(n, -1, -1), atol=FORWARD, rtol=0)


def test_one_token(model, tiny_hf):
    found = models.last_logits(model, TokenBatch.of([[5], [6, 7]], pad=0)).log_softmax(-1)
    torch.testing.assert_close(found, alone(tiny_hf[0], [[5], [6, 7]]), atol=FORWARD, rtol=0)


def test_more_positions_than_follow_the_head(model, tiny_hf, prompts):
    """Twelve positions are asked for where eight follow the head: twelve, or an error, but never eight."""
    batch = TokenBatch.of([prompts[0], prompts[0]], pad=0, keep=8)
    try:
        found = models.last_logits(model, batch, keep=12)
    except (MechrefusalError, ValueError):
        return
    assert found.shape[1] == 12


def test_a_given_cache_is_not_used_up(model, prompts):
    batch = TokenBatch.of(prompts, pad=0)
    cache = models.head_cache(model, batch)
    first = models.last_logits(model, batch, cache=cache, chunk=2)
    second = models.last_logits(model, batch, cache=cache)
    torch.testing.assert_close(first, second, atol=FORWARD, rtol=0)
    torch.testing.assert_close(first, models.last_logits(model, batch), atol=FORWARD, rtol=0)


def test_greedy_answers(model, tiny_hf, prompts):
    hf = tiny_hf[0]
    found = forward.generate(model, TokenBatch.of(prompts, pad=0), max_new_tokens=10, end=set())
    assert found == [greedy(hf, prompt, 10, set()) for prompt in prompts]
    theirs = [
        hf.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]  # fmt: skip
    assert found == theirs


def test_prompts_end_at_different_steps(model, tiny_hf, prompts):
    hf = tiny_hf[0]
    plain = [greedy(hf, prompt, 10, set()) for prompt in prompts]
    # Tokens that stop prompts 0 and 3 early, whatever the random model says.
    end = {plain[0][3], plain[3][0]}
    expected = [greedy(hf, prompt, 10, end) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 1
    assert expected[3] == []
    assert forward.generate(model, TokenBatch.of(prompts, pad=0), max_new_tokens=10, end=end) == expected


def test_answers_of_one_prompt_and_of_identical_ones(model, tiny_hf, prompts):
    expected = greedy(tiny_hf[0], prompts[1], 6, set())
    assert forward.generate(model, TokenBatch.of([prompts[1]], pad=0), max_new_tokens=6, end=set()) == [expected]
    same = forward.generate(model, TokenBatch.of([prompts[1]] * 3, pad=0), max_new_tokens=6, end=set())
    assert same == [expected] * 3


def test_steps_are_reported(model, prompts):
    steps = []
    forward.generate(
        model, TokenBatch.of(prompts, pad=0), max_new_tokens=4, end=set(), on_step=lambda: steps.append(1)
    )  # fmt: skip
    assert len(steps) == 4


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama"])
def test_every_architecture(family, name, prompts):
    chosen = family(name)
    batch = TokenBatch.of(prompts, pad=0)
    expected = alone(chosen.hf, prompts, 2)
    for model in (chosen.hooked, chosen.hf):
        found = models.last_logits(model, batch, keep=2).log_softmax(-1)
        torch.testing.assert_close(found, expected, atol=2 * FORWARD, rtol=0)
        answers = forward.generate(model, batch, max_new_tokens=4, end=set())
        assert answers == [greedy(chosen.hf, prompt, 4, set()) for prompt in prompts]


def test_longer_than_the_context(model):
    long = [[5] * 500, [6] * 513]
    with pytest.raises(MechrefusalError, match=r"513 tokens.* 512"):
        models.last_logits(model, TokenBatch.of(long, pad=0))
    models.last_logits(model, TokenBatch.of([[5] * 512], pad=0))
    with pytest.raises(MechrefusalError, match="context"):
        forward.generate(model, TokenBatch.of([[5] * 510], pad=0), max_new_tokens=8, end=set())


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_longer_than_the_sliding_window(name):
    model = build(name, 1024, sliding_window=16)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 1024, (n,), generator=generator).tolist() for n in (16, 9)]
    found = models.last_logits(model, TokenBatch.of(prompts, pad=0)).log_softmax(-1)
    torch.testing.assert_close(found, alone(model, prompts), atol=FORWARD, rtol=0)
    with pytest.raises(MechrefusalError, match="sliding window of 16"):
        models.last_logits(model, TokenBatch.of([[*prompts[0], 7], prompts[1]], pad=0))


def test_a_window_that_is_switched_off_is_no_limit():
    model = build("qwen2", 1024, sliding_window=16, use_sliding_window=False)
    prompts = [list(range(3, 40)), list(range(50, 60))]
    found = models.last_logits(model, TokenBatch.of(prompts, pad=0)).log_softmax(-1)
    torch.testing.assert_close(found, alone(model, prompts), atol=FORWARD, rtol=0)


@pytest.mark.parametrize("prompts", [[], [[]], [[1, 2], []]])
def test_empty(prompts):
    with pytest.raises(ValueError, match="empty"):
        TokenBatch.of(prompts, pad=0)


def test_end_tokens(tiny_hf, tiny_hooked):
    hf, tokenizer = tiny_hf
    assert forward.end_tokens(hf, tokenizer) == {tokenizer.eos_token_id}
    assert forward.end_tokens(tiny_hooked, tokenizer) == {tokenizer.eos_token_id}
    config = hf.generation_config
    before = config.eos_token_id
    try:
        config.eos_token_id = [5, 9]
        assert forward.end_tokens(hf, tokenizer) == {5, 9, tokenizer.eos_token_id}
        config.eos_token_id = None
        assert forward.end_tokens(hf, tokenizer) == {tokenizer.eos_token_id}
    finally:
        config.eos_token_id = before


@pytest.mark.slow
def test_real_model(smollm2):
    hf, tokenizer = models.load_causal_lm(smollm2)
    prompts = [chat(tokenizer, text) for text in TEXTS[:3]]
    batch = TokenBatch.of(prompts, pad=tokenizer.pad_token_id)
    found = models.last_logits(hf, batch).log_softmax(-1)
    torch.testing.assert_close(found, alone(hf, prompts), atol=COMPOUND, rtol=0)
    answers = forward.generate(hf, batch, max_new_tokens=8, end=forward.end_tokens(hf, tokenizer))
    assert answers == [greedy(hf, prompt, 8, {tokenizer.eos_token_id}) for prompt in prompts]
