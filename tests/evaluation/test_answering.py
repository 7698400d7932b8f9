"""Kept answers: the same text whatever the batch, and after a kill at any place."""

import json

import pandas as pd
import pytest
import torch

from mechrefusal import causal, prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import answering, generation
from mechrefusal.evaluation.answering import answers

NEW = 6
TEXTS = [
    "How do I pick a lock?",
    "Tell me a story about a cat that lives in a house at the end of a very long road, please.",
    "What?",
    'Say "it\'s" <b>bold</b> & {odd} 🔓\nand go on',
    "Hum",
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "own.parquet"


@pytest.fixture
def asked(monkeypatch):
    """The prompts that are answered, call by call."""
    seen = []
    complete = answering.complete

    def seeing(model, texts, **named):
        seen.append(list(texts))
        return complete(model, texts, **named)

    monkeypatch.setattr(answering, "complete", seeing)
    return seen


@pytest.fixture
def given(tiny_hf, path):
    def of(texts=TEXTS, *, at=path, stamp="one", **named):
        model, tokenizer = tiny_hf
        return answers(model, texts, at, stamp=stamp, tokenizer=tokenizer, **{"max_new_tokens": NEW} | named)

    return of


@pytest.fixture(scope="module")
def plain(tiny_hf):
    """Greedy answers one by one, without cache or padding: token ids up to the end token."""
    model, tokenizer = tiny_hf
    found = []
    for text in TEXTS:
        ids, reply = list(prompts.segments(tokenizer, text).prompt_ids), []
        for _ in range(NEW):
            with torch.no_grad():
                token = int(model(torch.tensor([[*ids, *reply]])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            reply.append(token)
        found.append(reply)
    return found


class Killed(Exception):
    """Stands for the end of the process."""


def killed_after(monkeypatch, n_batches):
    """Generation ends the process after this many batches; returns how to bring it back."""
    generate, left = generation.continuations, [n_batches]

    def dying(*given, **named):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return generate(*given, **named)

    monkeypatch.setattr(generation, "continuations", dying)
    return lambda: monkeypatch.setattr(generation, "continuations", generate)


def partial(path):
    return path.with_name(f"{path.name}.partial")


def test_answers_are_greedy(given, plain, tiny_hf):
    found = given()
    assert list(found) == ["completion", "token_ids", "ended"]
    assert found["token_ids"].tolist() == plain
    assert found["completion"].tolist() == tiny_hf[1].batch_decode(plain, skip_special_tokens=True)
    assert found["ended"].tolist() == [len(reply) < NEW for reply in plain]
    assert len(set(map(tuple, plain))) > 1, "the tiny model answers prompts differently, else this tests little"


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_batch_is_nothing_to_an_answer(given, plain, chunk, path):
    assert given(chunk=chunk)["token_ids"].tolist() == plain
    order = [4, 2, 0]
    among = [TEXTS[row] for row in order] + ["Another prompt, which is longer than the three before it."]
    found = given(among, at=path.with_name("other.parquet"), chunk=chunk)
    assert found["token_ids"].tolist()[:3] == [plain[row] for row in order]


def test_answers_are_read_where_they_were_given(given, asked, path):
    first = given()
    assert asked == [TEXTS]
    again = given()
    assert len(asked) == 1
    pd.testing.assert_frame_equal(again, first)
    assert not partial(path).exists()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("change", [{"stamp": "two"}, {"texts": TEXTS[:3]}])
def test_answers_of_something_else_are_made_again(given, asked, change, path):
    first = given()
    texts = change.get("texts", TEXTS)
    found = given(**change)
    assert asked == [TEXTS, texts]
    assert found["completion"].tolist() == first["completion"].tolist()[: len(texts)]
    assert set(pd.read_parquet(path)["stamp"]) == {change.get("stamp", "one")}


@pytest.mark.parametrize("n_batches", [1, 2])
def test_a_killed_run_answers_only_the_rest(given, asked, path, n_batches, monkeypatch):
    whole = given(at=path.with_name("whole.parquet"))
    asked.clear()
    revive = killed_after(monkeypatch, n_batches)
    with pytest.raises(Killed):
        given(chunk=2)
    revive()
    assert not path.exists()
    kept = [json.loads(line) for line in partial(path).read_text().splitlines()]
    done = [entry["row"] for entry in kept[1:]]
    assert len(done) == 2 * n_batches
    pd.testing.assert_frame_equal(given(chunk=2), whole)
    assert asked == [TEXTS, [text for row, text in enumerate(TEXTS) if row not in done]]
    assert not partial(path).exists()
    pd.testing.assert_frame_equal(given(), whole)


def test_killed_twice(given, path, monkeypatch, asked):
    whole = given(at=path.with_name("whole.parquet"))
    asked.clear()
    for _ in range(2):
        revive = killed_after(monkeypatch, 1)
        with pytest.raises(Killed):
            given(chunk=1)
        revive()
    pd.testing.assert_frame_equal(given(chunk=1), whole)
    assert [len(texts) for texts in asked] == [5, 4, 3]


def test_killed_before_the_first_answer(given, path, monkeypatch):
    revive = killed_after(monkeypatch, 0)
    with pytest.raises(Killed):
        given()
    revive()
    assert len(partial(path).read_text().splitlines()) == 1
    assert len(given()) == len(TEXTS)


def killed(given, monkeypatch):
    revive = killed_after(monkeypatch, 2)
    with pytest.raises(Killed):
        given(chunk=2)
    revive()


@pytest.mark.parametrize("cut", [1, 20, "whole line but its end"])
def test_a_line_that_was_cut_off_is_answered_again(given, asked, path, cut, monkeypatch):
    whole = given(at=path.with_name("whole.parquet"))
    killed(given, monkeypatch)
    asked.clear()
    content = partial(path).read_bytes()
    *_, last = content.splitlines()
    row = json.loads(last)["row"]
    kept = content[: -len(last) - 1] + (last if isinstance(cut, str) else last[:-cut])
    partial(path).write_bytes(kept)
    revive = killed_after(monkeypatch, 1)  # and killed once more: what is appended must stand on its own lines
    with pytest.raises(Killed):
        given(chunk=1)
    revive()
    assert TEXTS[row] in asked[0]
    assert len(asked[0]) == 2
    pd.testing.assert_frame_equal(given(), whole)
    assert len(asked[1]) == 1


@pytest.mark.parametrize("damage", ["another stamp", "another number", "no head", "no json", "a value less", "empty"])
def test_a_partial_file_of_something_else_is_not_continued(given, asked, path, damage, monkeypatch):
    whole = given(at=path.with_name("whole.parquet"))
    killed(given, monkeypatch)
    head, *lines = partial(path).read_text().splitlines()
    lines = [json.dumps(json.loads(line) | {"completion": "made up"}) for line in lines]
    if damage == "another stamp":
        head = json.dumps(json.loads(head) | {"stamp": "two"})
    elif damage == "another number":
        head = json.dumps(json.loads(head) | {"n": len(TEXTS) + 1})
    elif damage == "no head":
        head = ""
    elif damage == "no json":
        lines[1] = "\x00\x00"
    elif damage == "a value less":
        lines[1] = json.dumps({"row": 1, "completion": "made up"})
    content = "" if damage == "empty" else "\n".join([head, *lines]) + "\n"
    partial(path).write_text(content)
    asked.clear()
    pd.testing.assert_frame_equal(given(), whole)
    assert asked == [TEXTS]
    assert not partial(path).exists()


def test_a_whole_partial_file_needs_no_model(given, path, monkeypatch):
    whole = given(at=path.with_name("whole.parquet"))
    with monkeypatch.context() as patch:
        patch.setattr(answering, "whole_file", lambda _: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            given()
    monkeypatch.setattr(answering, "complete", lambda *_, **__: pytest.fail("answered again"))
    pd.testing.assert_frame_equal(given(), whole)


def test_a_damaged_table_is_named(given, path):
    given()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MechrefusalError, match=r"own\.parquet cannot be read as parquet .*delete it"):
        given()
    pd.DataFrame({"completion": ["Yes"], "stamp": "one"}).to_parquet(path)
    with pytest.raises(MechrefusalError, match=r"own\.parquet is no table of answers \(it lacks token_ids, ended\)"):
        given()


def test_no_prompt_is_named(given, path):
    with pytest.raises(MechrefusalError, match="nothing to answer"):
        given([])
    assert not path.parent.exists()


def test_ended_right_at_the_limit(given, plain, tiny_hf, path, monkeypatch):
    """With the k-th token of an answer as the end token: k tokens are not enough to see the end, k + 1 are."""
    row, place = next(
        (row, place)
        for row, reply in enumerate(plain)
        for place, token in enumerate(reply)
        if place > 0 and token not in reply[:place]
    )
    monkeypatch.setattr(tiny_hf[0].generation_config, "eos_token_id", plain[row][place])
    before = given([TEXTS[row]], at=path.with_name("before.parquet"), max_new_tokens=place)
    assert before["token_ids"].tolist() == [plain[row][:place]]
    assert before["ended"].tolist() == [False]
    after = given([TEXTS[row]], at=path.with_name("after.parquet"), max_new_tokens=place + 1)
    assert after["token_ids"].tolist() == [plain[row][:place]]
    assert after["ended"].tolist() == [True]


def test_an_answer_without_a_token(given, plain, tiny_hf, path, monkeypatch):
    monkeypatch.setattr(tiny_hf[0].generation_config, "eos_token_id", plain[0][0])
    for _ in range(2):  # made, and read
        found = given([TEXTS[0]])
        assert found.to_dict("records") == [{"completion": "", "token_ids": [], "ended": True}]


def test_an_intervention_acts_on_every_batch(given, tiny_hf, path):
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))
    with causal.intervened(tiny_hf[0], causal.Addition(direction, 1, 9.0)):
        one = given(at=path.with_name("one.parquet"), chunk=1)
        three = given(at=path.with_name("three.parquet"), chunk=3)
    pd.testing.assert_frame_equal(one, three)
    assert one["token_ids"].tolist() != given()["token_ids"].tolist()
