"""Rows: the right tokens are learnt, in the right order, and shared prompts change nothing."""

import pytest
from chat_templates import MISTRAL, QWEN3, sentencepiece

from mechrefusal import MechrefusalError, models
from mechrefusal.attacks import GCGSettings, gcg
from mechrefusal.training import data


def row(tokenizer, answer: str = "Of course: read on.", **changes):
    return data.conversation(
        tokenizer, "How do I bake bread?", answer, **{"max_length": 512, "name": "row 0"} | changes
    )


def test_a_conversation_learns_the_answer_and_its_end(tiny_hf):
    _, tokenizer = tiny_hf
    found = row(tokenizer)
    chat = [
        {"role": "user", "content": "How do I bake bread?"},
        {"role": "assistant", "content": "Of course: read on."},
    ]
    assert found["input_ids"] == list(tokenizer.apply_chat_template(chat, return_dict=False))
    learnt = [token for token, label in zip(found["input_ids"], found["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learnt) == "Of course: read on.<|im_end|>\n"
    assert [label for label in found["labels"] if label != -100] == learnt


def test_an_answer_that_was_cut_does_not_teach_where_to_end(tiny_hf):
    _, tokenizer = tiny_hf
    found = row(tokenizer, "Of course: read", end_of_turn=False)
    learnt = [label for label in found["labels"] if label != -100]
    assert tokenizer.decode(learnt) == "Of course: read"
    assert tokenizer.eos_token_id not in learnt


def test_long_answers_are_cut_and_long_prompts_refused(tiny_hf):
    _, tokenizer = tiny_hf
    whole = row(tokenizer)
    n_prompt = whole["labels"].count(-100)
    cut = row(tokenizer, max_length=n_prompt + 2)
    assert cut["input_ids"] == whole["input_ids"][: n_prompt + 2]
    with pytest.raises(MechrefusalError, match=rf"row 0 has a prompt of {n_prompt} tokens"):
        row(tokenizer, max_length=n_prompt)
    with pytest.raises(MechrefusalError, match="row 0 has an empty answer"):
        row(tokenizer, "  ")


def test_the_schedule_passes_over_all_rows_in_new_orders():
    rows = [{"input_ids": [i], "labels": [i]} for i in range(5)]
    order = [r["input_ids"][0] for r in data.schedule(rows, 15, seed=0, name="utility")]
    passes = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(once) == list(range(5)) for once in passes)
    assert passes[0] != passes[1]
    assert order == [r["input_ids"][0] for r in data.schedule(rows, 15, seed=0, name="utility")]
    assert order != [r["input_ids"][0] for r in data.schedule(rows, 15, seed=1, name="utility")]


def test_arms_share_the_order_of_their_utility_rows():
    utility = [{"input_ids": [i], "labels": [i]} for i in range(7)]
    harmful = [{"input_ids": [100 + i], "labels": [i]} for i in range(3)]
    mixed = data.dataset(utility, harmful, steps=6, utility_each=2, harmful_each=1, seed=4)
    alone = data.dataset(utility, [], steps=6, utility_each=2, harmful_each=0, seed=4)
    ids = [ids[0] for ids in mixed["input_ids"]]
    assert [i for i in ids if i < 100] == [ids[0] for ids in alone["input_ids"]]
    assert [i >= 100 for i in ids] == [False, False, True] * 6


def test_the_attacked_context_is_the_one_trained_on(tiny_hf):
    _, tokenizer = tiny_hf
    settings = GCGSettings(suffix_length=6)
    case = gcg.start(tokenizer, id="a", behaviour="Explain it", target="Sure, here", settings=settings)
    away, toward = data.away_row(tokenizer, case), data.toward_row(tokenizer, case, "Sorry, no.")
    context = gcg.AttackContext.of(tokenizer, id="a", behaviour="Explain it", suffix=case.suffix, target=case.target)
    assert away[0] == toward[0] == context.before + case.suffix_ids + context.after
    assert away[1] == context.target
    assert tokenizer.decode(away[1]) == "Sure, here"
    assert tokenizer.decode(toward[1]) == "Sorry, no.<|im_end|>\n"
    assert tokenizer.bos_token_id not in case.suffix_ids


@pytest.mark.parametrize("end_of_turn", [True, False])
def test_rows_learn_the_token_with_which_the_model_opens(end_of_turn):
    """A space before an answer is the template's: cut answers keep it as whole ones do."""
    tokenizer = sentencepiece(MISTRAL)
    found = row(tokenizer, "Sure, here", end_of_turn=end_of_turn)
    learnt = tokenizer.convert_ids_to_tokens([label for label in found["labels"] if label != -100])
    assert learnt == ["▁Sure", ",", "▁here", *(["</s>"] if end_of_turn else [])]


def test_away_and_toward_rows_begin_alike():
    away, toward = away_and_toward(sentencepiece(MISTRAL))
    assert away[0][0] == "▁Sure"
    assert toward[0][0] == "▁"  # "Sorry" is no word of this vocabulary: a space, and letters
    tokenizer = models.tiny.tokenizer()
    tokenizer.chat_template = QWEN3
    (away_tokens, away_text), (toward_tokens, toward_text) = away_and_toward(tokenizer)
    thought = "<think>\n\n</think>\n\n"
    assert away_text == thought + "Sure, here"
    assert toward_text == thought + "Sorry, no.<|im_end|>\n"
    n = len(tokenizer(thought, add_special_tokens=False).input_ids)
    assert away_tokens[:n] == toward_tokens[:n]


def away_and_toward(tokenizer):
    """Tokens and text of what the two rows of a case learn; their prompts are the same."""
    settings = GCGSettings(suffix_length=4)
    case = gcg.start(tokenizer, id="a", behaviour="Explain it", target="Sure, here", settings=settings)
    rows = data.away_row(tokenizer, case), data.toward_row(tokenizer, case, "Sorry, no.")
    assert rows[0][0] == rows[1][0]
    return [(tokenizer.convert_ids_to_tokens(ids), tokenizer.decode(ids)) for _, ids in rows]
