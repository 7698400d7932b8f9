"""Where continuations stop: at the end of a turn, or where the tokens of a thought or an answer are spent."""

from dataclasses import replace

import pytest
from chains import Chain, saying

from mechrefusal import forward
from mechrefusal.forward import Continuation
from mechrefusal.models import TokenBatch
from mechrefusal.prompts import ThoughtMarks

OPEN, CLOSE, END = 1, 2, 3
MARKS = {"opens": frozenset({(OPEN,)}), "closes": frozenset({(CLOSE,)})}


def said(model: Chain, *lasts: int, most: int, **marks) -> list[Continuation]:
    """What the model says after prompts that end in these tokens, in one batch; checked against one at a time."""
    thoughts = ThoughtMarks(**MARKS, **marks) if marks else None
    prompts = [[30, 31, last] for last in lasts]

    def run(some):
        batch = TokenBatch.of(some, pad=0)
        return forward.continuations(model, batch, max_new_tokens=most, end={END}, thoughts=thoughts)

    together = run(prompts)
    assert together == [run([prompt])[0] for prompt in prompts]
    return together


@pytest.fixture
def model() -> Chain:
    """After 20 a thought of three tokens and an answer of two; after 21 an answer of four; after 22 one without end."""
    chain = saying([OPEN, 4, 5, 6, CLOSE, 7, 8, END], after=20) | saying([9, 10, 11, 12, END], after=21)
    return Chain(chain | {22: 13, 13: 13}, vocab=32)


def test_an_answer_ends_with_the_turn_or_its_tokens(model: Chain) -> None:
    found = said(model, 21, 22, 20, most=4)
    assert found == [
        Continuation((9, 10, 11, 12), ended=False),  # the end would be the fifth token
        Continuation((13,) * 4, ended=False),
        Continuation((OPEN, 4, 5, 6), ended=False),
    ]
    assert said(model, 21, 22, most=5)[0] == Continuation((9, 10, 11, 12), ended=True)
    assert forward.generate(model, TokenBatch.of([[21]], pad=0), max_new_tokens=5, end={END}) == [[9, 10, 11, 12]]


def test_a_thought_has_tokens_of_its_own(model: Chain) -> None:
    whole = (OPEN, 4, 5, 6, CLOSE, 7, 8)
    # The thought takes five tokens, its marks included; an answer takes no more than without one.
    assert said(model, 20, 21, 22, most=3, at_most=5) == [
        Continuation(whole, ended=True),
        Continuation((9, 10, 11), ended=False),
        Continuation((13,) * 3, ended=False),
    ]
    assert said(model, 20, most=2, at_most=5) == [Continuation(whole, ended=False)]
    assert said(model, 20, most=1, at_most=50) == [Continuation(whole[:-1], ended=False)]
    # One that is longer is cut off, and nothing is answered.
    assert said(model, 20, most=9, at_most=4) == [Continuation(whole[:4], ended=False)]
    # Without tokens of its own it takes those of the answer.
    assert said(model, 20, most=6, at_most=0) == [Continuation(whole[:6], ended=False)]


def test_a_thought_that_the_prompt_opens_is_counted_from_there(model: Chain) -> None:
    model = Chain(saying([4, 5, CLOSE, 7, 8, END], after=20), vocab=32)
    assert said(model, 20, most=1, at_most=3, opened="<think>") == [Continuation((4, 5, CLOSE, 7), ended=False)]
    assert said(model, 20, most=9, at_most=2, opened="<think>") == [Continuation((4, 5), ended=False)]


def test_a_mark_inside_an_answer_opens_no_thought() -> None:
    model = Chain(saying([9, OPEN, 4, 5, 6, CLOSE, END], after=20), vocab=32)
    assert said(model, 20, most=3, at_most=9) == [Continuation((9, OPEN, 4), ended=False)]


def test_marks_of_several_tokens() -> None:
    """As gpt-oss has them: a channel's name between two tokens opens a thought, another one closes it."""
    marks = ThoughtMarks(frozenset({(10, 11, 12)}), frozenset({(13, 14, 15)}), at_most=9)
    model = Chain(saying([10, 11, 12, 4, 5, 13, 14, 15, 7, 8, END], after=20), vocab=32)
    batch = TokenBatch.of([[20]], pad=0)

    def found(most, thoughts):
        return forward.continuations(model, batch, max_new_tokens=most, end={END}, thoughts=thoughts)

    whole = (10, 11, 12, 4, 5, 13, 14, 15, 7, 8)
    assert found(3, marks) == found(3, replace(marks, at_most=8)) == [Continuation(whole, ended=True)]
    assert found(3, replace(marks, at_most=7)) == [Continuation(whole[:7], ended=False)]
    assert found(3, None) == [Continuation(whole[:3], ended=False)]
