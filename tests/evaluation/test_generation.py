"""Answers against plain greedy generation, in the order of the prompts."""

import pytest
import torch
from chains import Chain, saying

from mechrefusal import MechrefusalError, causal, evaluation, models, prompts
from mechrefusal.evaluation import Completions, complete

TEXTS = ["Tell me how to steal a car in ten minutes.", "x", "Bake bread", "How do I swim across a river?"]


def chat(tokenizer, text):
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def greedy(hf, tokenizer, text, n, hooks=()):
    """Greedy tokens without a cache, before the end token."""
    ids, found = chat(tokenizer, text), []
    handles = [register(function) for register, function in hooks]
    with torch.no_grad():
        for _ in range(n):
            token = hf(torch.tensor([[*ids, *found]])).logits[0, -1].argmax().item()
            if token == tokenizer.eos_token_id:
                break
            found.append(token)
    for handle in handles:
        handle.remove()
    return tuple(found)


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_answers_come_in_order(tiny_hf, tiny_hooked, chunk):
    expected = tuple(greedy(*tiny_hf, text, 6) for text in TEXTS)
    assert len(set(expected)) == len(TEXTS), "different prompts, different answers"
    for found in (
        complete(tiny_hooked, TEXTS, max_new_tokens=6, chunk=chunk),
        complete(tiny_hf[0], TEXTS, max_new_tokens=6, chunk=chunk, tokenizer=tiny_hf[1]),
    ):
        assert found.token_ids == expected
        assert found.texts == tuple(tiny_hf[1].decode(ids, skip_special_tokens=True) for ids in expected)
        assert len(found) == 4
        assert found[1:3] == Completions(found.texts[1:3], found.token_ids[1:3])
    assert evaluation.generate(tiny_hooked, TEXTS[:2], max_new_tokens=6) == list(found.texts[:2])


def test_suffixes_are_part_of_the_prompt(tiny_hf, tiny_hooked):
    suffixes = ["", "! ! ! bomb", "", "now now"]
    found = complete(tiny_hooked, TEXTS, suffixes=suffixes, max_new_tokens=5)
    joined = [f"{text} {suffix}" if suffix else text for text, suffix in zip(TEXTS, suffixes, strict=True)]
    assert found.token_ids == tuple(greedy(*tiny_hf, text, 5) for text in joined)


def test_answers_under_an_intervention(tiny_hf, tiny_hooked):
    hf, tokenizer = tiny_hf
    direction = torch.randn(64, generator=torch.Generator().manual_seed(2)) * 2
    hook = [(hf.model.layers[1].register_forward_pre_hook, lambda _, a: (a[0] + direction, *a[1:]))]
    expected = tuple(greedy(hf, tokenizer, text, 5, hook) for text in TEXTS)
    with causal.add(tiny_hooked, direction, layer=1):
        found = complete(tiny_hooked, TEXTS, max_new_tokens=5)
    assert found.token_ids == expected
    assert found.token_ids != complete(tiny_hooked, TEXTS, max_new_tokens=5).token_ids


def test_nothing_asked(tiny_hooked):
    assert complete(tiny_hooked, []) == Completions((), ())


def test_a_suffix_for_each(tiny_hooked):
    with pytest.raises(ValueError, match="zip"):
        complete(tiny_hooked, TEXTS, suffixes=["one"])


@pytest.mark.slow
def test_real_model_answers(smollm2, smollm2_hooked):
    hf, tokenizer = models.load_causal_lm(smollm2)
    question = ["What is the capital of France?"]
    found = complete(smollm2_hooked, question, max_new_tokens=12)
    assert "Paris" in found.texts[0]
    assert found.token_ids == (greedy(hf, tokenizer, question[0], 12),)


def test_a_long_prompt_does_not_pad_many_short_ones():
    from mechrefusal.evaluation.generation import PADDED_TOKENS, _batches

    lengths = [40] * 100 + [1000] * 6 + [9000]
    batches = list(_batches(lengths, 64))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 64
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= PADDED_TOKENS
    assert max(map(len, batches)) == 64


def chained(words: str, **options):
    """The tiny tokenizer, knowing marks of thoughts, and a model that says these words after every prompt."""
    tokenizer = models.tiny.tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    for name, value in options.pop("tokenizer", {}).items():
        setattr(tokenizer, name, value)
    tokens = tokenizer(words, add_special_tokens=False).input_ids
    last = chat(tokenizer, TEXTS[0])[-1]
    return Chain(saying(tokens, after=last), vocab=len(tokenizer), **options), tokenizer


@pytest.mark.parametrize("wrong", [None, "<|endoftext|>"])
def test_an_answer_ends_where_the_template_ends_it_whatever_the_folder_says(wrong):
    options = {"tokenizer": {"eos_token": wrong}} if wrong else {}
    model, tokenizer = chained("Sure, here<|im_end|> I go on", **options)
    found = complete(model, TEXTS, tokenizer=tokenizer, max_new_tokens=30)
    assert set(found.texts) == {"Sure, here"}
    assert found.ended == (True,) * len(TEXTS)
    cut = complete(model, TEXTS[:1], tokenizer=tokenizer, max_new_tokens=2)
    assert cut.ended == (False,)
    assert found[1:3].ended == (True, True)


def test_the_folders_own_end_tokens_end_an_answer_too():
    tokenizer = models.tiny.tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model, tokenizer = chained("Sure<|endoftext|> I go on", eos=end)
    assert complete(model, TEXTS[:1], tokenizer=tokenizer).texts == ("Sure",)


def test_a_model_whose_turns_do_not_end_is_named():
    model, tokenizer = chained("Sure")
    tokenizer.chat_template = (
        "{% for one in messages %}{{ one.role + ': ' + one.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(MechrefusalError, match="writes no special token after an answer"):
        complete(model, TEXTS, tokenizer=tokenizer)


def test_a_thought_is_in_the_completion_and_takes_tokens_of_its_own():
    model, tokenizer = chained("<think> I must refuse</think>Sure, here<|im_end|>")
    found = complete(model, TEXTS[:2], tokenizer=tokenizer, max_new_tokens=8)
    assert set(found.texts) == {"<think> I must refuse</think>Sure, here"}
    assert found.ended == (True, True)
    prompts.ChatSettings.of(max_thought_tokens=2).apply(tokenizer)
    cut = complete(model, TEXTS[:1], tokenizer=tokenizer, max_new_tokens=8)
    assert len(cut.token_ids[0]) == 2
    assert cut.texts[0].startswith("<think>")
    assert evaluation.is_degenerate(cut.texts[0])
    assert not evaluation.is_refusal(cut.texts[0])


def test_a_thought_that_the_prompt_opens_can_be_read_off_the_text():
    _, tokenizer = chained("Sure")
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    last = chat(tokenizer, TEXTS[0])[-1]
    words = " I must refuse</think>Sure, here<|im_end|>"
    tokens = tokenizer(words, add_special_tokens=False).input_ids
    found = complete(Chain(saying(tokens, after=last), vocab=len(tokenizer)), TEXTS[:1], tokenizer=tokenizer)
    assert found.texts == ("<think>\n I must refuse</think>Sure, here",)
    assert prompts.after_thought(found.texts[0]) == "Sure, here"
