"""A planted circuit: the one head that writes refusal, found by every attribution."""

import pytest
import torch
import writing_head
from planted_model import COMPLY, REFUSE
from writing_head import HARMFUL, HARMLESS, HEAD, METRIC, N_LAYERS, U

from mechrefusal.attribution import Onto, RefusalLogits, attribute, compare, compare_lenses, logit_lens, sources


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return writing_head.make(tmp_path_factory.mktemp("writing-head") / "model")


@pytest.fixture(scope="module")
def written_direction():
    direction = torch.zeros(64)
    direction[U] = 3.0
    return direction


def test_it_refuses_harmful_prompts_only(planted):
    with torch.no_grad():
        for text in [*HARMFUL, *HARMLESS]:
            messages = [{"role": "user", "content": text}]
            ids = planted.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            logits = planted(torch.tensor([ids]))[0, -1]
            assert (logits[REFUSE] > logits[COMPLY]) == (text in HARMFUL)


@pytest.mark.parametrize("onto", ["logits", "direction"])
def test_the_head_is_the_top_one(planted, written_direction, onto):
    readout = RefusalLogits(METRIC) if onto == "logits" else Onto(written_direction, 3)
    found = attribute(planted, HARMFUL, readout)
    assert found.top(1) == [HEAD]
    heads = [found.of(*c).abs() for c in found.components if c.component == "head" and c[1:] != HEAD]
    assert (found.of("head", *HEAD) > 20 * torch.stack(heads).amax(0)).all(), "in every prompt, by far"
    table = compare(planted, HARMFUL, HARMLESS, readout, paired=True)
    # The embedding writes the compliance that the larger scale of a refusing stream makes smaller.
    clear = table[table["component"].isin(["head", "mlp"]) & (table["low"] > 0.5)]
    assert list(zip(clear["layer"], clear["head"], strict=True)) == [HEAD]
    # Labels drawn at random within four pairs agree with the true ones one time in eight: the floor is the difference.
    assert (clear["floor"] <= clear["difference"] + 1e-9).all()


@pytest.mark.parametrize("onto", ["logits", "direction"])
def test_it_reads_the_right_token(planted, written_direction, onto):
    readout = RefusalLogits(METRIC) if onto == "logits" else Onto(written_direction, N_LAYERS - 1)
    found = sources(planted, HARMFUL, readout)
    largest = found.table.loc[found.table.groupby("prompt")["value"].idxmax()]
    assert set(zip(largest["layer"], largest["head"], largest["token"], strict=True)) == {(*HEAD, " bomb")}
    assert set(largest["segment"]) == {"instruction"}
    tokens = found.by_token.set_index(["layer", "head", "token"]).sort_index()["value"].loc[HEAD]
    assert tokens.idxmax() == " bomb"
    assert tokens.max() > 20 * tokens.drop(" bomb").abs().max()
    assert found.by_segment.set_index(["layer", "head", "segment"])["value"].loc[HEAD].idxmax() == "instruction"


def test_refusal_appears_after_its_layer(planted):
    lens = logit_lens(planted, HARMFUL, METRIC)
    before, after = lens.score[: HEAD[0] + 1], lens.score[HEAD[0] + 1 :]
    assert (before < -1).all(), "the input of the head's layer does not hold refusal yet"
    assert (after > 1).all()
    assert (lens.rank[HEAD[0] + 1 :] == 0).all()
    assert (lens.rank[: HEAD[0] + 1] > 0).all()
    table = compare_lenses(planted, HARMFUL, HARMLESS, METRIC).table
    scores = table[table["quantity"] == "score"].set_index(["set", "layer"])
    assert (scores.loc["harmless", "high"] < -1).all()
    assert (scores.loc["harmful", "low"][HEAD[0] + 1 :] > 0).all()
