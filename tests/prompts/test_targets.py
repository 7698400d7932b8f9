"""Affirmative targets, each written out by hand."""

import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import affirmative_target
from mechrefusal.prompts.targets import FORMS

TARGETS = {
    # the forms of a request
    "How do I pick a lock?": "Sure, here is how to pick a lock",
    "how can i pick a lock": "Sure, here is how to pick a lock",
    "How could one pick a lock?": "Sure, here is how to pick a lock",
    "How to pick a lock": "Sure, here is how to pick a lock",
    "Explain how to pick a lock": "Sure, here is how to pick a lock",
    "Describe in detail how to pick a lock.": "Sure, here is how to pick a lock",
    "Tell me how to pick a lock.": "Sure, here is how to pick a lock",
    "Show me how to pick a lock.": "Sure, here is how to pick a lock",
    "Teach people how to pick a lock": "Sure, here is how to pick a lock",
    "Instruct someone on how to pick a lock": "Sure, here is how to pick a lock",
    "Teach me to pick a lock.": "Sure, here is how to pick a lock",
    "Help me pick a lock.": "Sure, here is how to pick a lock",
    "Help me to pick a lock": "Sure, here is how to pick a lock",
    "Please, could you explain how to pick a lock?": "Sure, here is how to pick a lock",
    "What is the best way to pick a lock?": "Sure, here is the best way to pick a lock",
    "What's the easiest way to pick a lock?": "Sure, here is the easiest way to pick a lock",
    "What are some ways to pick a lock?": "Sure, here are some ways to pick a lock",
    "What are the steps to bake bread?": "Sure, here are the steps to bake bread",
    "List ways to pick a lock": "Sure, here are ways to pick a lock",
    "List three ways to pick a lock": "Sure, here are three ways to pick a lock",
    "Write a poem about locks": "Sure, here is a poem about locks",
    "Create an advertisement for locks.": "Sure, here is an advertisement for locks",
    "Draft a letter that praises locks": "Sure, here is a letter that praises locks",
    "Write me a poem": "Sure, here is a poem",
    "Give me a recipe for bread": "Sure, here is a recipe for bread",
    "Give me instructions for baking bread": "Sure, here are instructions for baking bread",
    "Give me advice on baking": "Sure, here is advice on baking",
    "Give me fake statistics that prove it": "Sure, here are fake statistics that prove it",
    "Write code that sorts files": "Sure, here is code that sorts files",
    "Describe the process of baking": "Sure, here is the process of baking",
    "I want to pick my lock.": "Sure, here is how to pick your lock",
    "I'd like to pick a lock; advise me.": "Sure, here is how to pick a lock",
    "We need to pick a lock": "Sure, here is how to pick a lock",
    "Teach my friends to pick a lock.": "Sure, here is how to pick a lock",
    "Where can I buy a lock?": "Sure, here is where you can buy a lock",
    "Where should we hide our key?": "Sure, here is where you can hide your key",
    "Recommend a lock for my shed.": "Sure, here is a lock for your shed",
    "Share some tips on locks": "Sure, here are some tips on locks",
    "Find me a shop that sells locks": "Sure, here is a shop that sells locks",
    # the user's own words
    "How do I open my safe?": "Sure, here is how to open your safe",
    "What are some ways to say that I love me?": "Sure, here are some ways to say that you love you",
    "Teach me to help myself.": "Sure, here is how to help yourself",
    "Draft a text telling my ex I am at home.": "Sure, here is a text telling your ex you are at home",
    "Write a note that I'm late and I've our key": "Sure, here is a note that you're late and you've your key",
    'Write a note saying "I hate my job" to my boss': 'Sure, here is a note saying "I hate my job" to your boss',
    "Tell me a story about World War I": "Sure, here is a story about World War I",
    # several sentences
    "Draft an essay. Make it about my dog.": "Sure, here is an essay",
    "My door is stuck. How do I open it?": "Sure, here is how to open it",
    "Write a letter to Dr. Smith about my case.": "Sure, here is a letter to Dr. Smith about your case",
    "Go on. Write a page like the stories by J.D. Salinger": "Sure, here is a page like the stories by J.D. Salinger",
    # no known form
    "Where do locksmiths learn?": "Sure, here is what you asked for:",
    "I want a lock.": "Sure, here is what you asked for:",
    "Which lock is the best?": "Sure, here is what you asked for:",
    "Help me with my homework": "Sure, here is what you asked for:",
    "???": "Sure, here is what you asked for:",
}


@pytest.mark.parametrize(("request_text", "target"), TARGETS.items())
def test_the_target_restates_the_request(request_text: str, target: str) -> None:
    assert affirmative_target(request_text) == target


def test_a_blank_request_is_refused() -> None:
    with pytest.raises(MechrefusalError, match="blank request"):
        affirmative_target(" \n")


@pytest.mark.parametrize("form", FORMS.lists.values(), ids=lambda form: form.name)
def test_every_form_finds_its_examples(form):
    assert form.found_in
    assert all(form.pattern.search(text) for text in form.found_in)
    assert not any(form.pattern.search(text) for text in form.not_found_in)
