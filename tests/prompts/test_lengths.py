"""Whether prompts leave room for what comes after them."""

import pytest

from mechrefusal import MechrefusalError, models, prompts

ASKED = prompts.PromptSet.from_texts("asked", ["Hi?", "How do I " + "really " * 30 + "do it?", "Why " * 40])


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny.tokenizer()


def test_a_prompt_may_fill_the_limit_and_no_more(tokenizer):
    longest = max(len(ids) for ids in prompts.prompt_ids(tokenizer, ASKED.texts))
    prompts.require_room(tokenizer, ASKED, limit=longest + 8, spare=8, what="the context")
    prompts.require_room(tokenizer, ASKED[:0], limit=1, spare=8, what="the context")
    with pytest.raises(MechrefusalError, match="1 of 3 prompts of 'asked' leave no room for 8 more tokens in the cont"):
        prompts.require_room(tokenizer, ASKED, limit=longest + 7, spare=8, what="the context")


def test_the_first_one_is_named(tokenizer):
    with pytest.raises(MechrefusalError, match=r"2 of 3 .* of 30 tokens, such as 'asked-0002' with \d+ tokens \('How"):
        prompts.require_room(tokenizer, ASKED, limit=30, spare=1, what="the context")
