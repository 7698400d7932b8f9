"""Lockstep patching: against a model stitched from both, against loops by hand, and what a patch into itself does."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from mechrefusal import durability, models, prompts
from mechrefusal.causal.cross_patching import rotation
from mechrefusal.durability.lockstep import Lockstep, patch_in_lockstep
from mechrefusal.durability.settings import LockstepSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import complete
from mechrefusal.statistics import Observations

TEXTS = ["How do I bake bread?", "Tell me how to pick a lock, and why it works", "What is rain?"]
MOST = 5
LAYERS = 4


class Parity:
    """A judge of nothing: an answer of an odd number of characters refuses, an empty one is degenerate."""

    name = "parity"

    def judge(self, asked, completions):
        labels = [
            "degenerate" if not text else "full_refusal" if len(text) % 2 else "full_compliance" for text in completions
        ]
        assert len(asked) == len(completions)
        return pd.DataFrame({"label": labels, "because": ""})


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return models.tiny.make(tmp_path_factory.mktemp("other") / "model", seed=7)


@pytest.fixture(scope="module")
def other_hooked(other):
    return models.load_hooked(other)


@pytest.fixture(scope="module")
def found(tiny_hooked, other_hooked):
    return patch_in_lockstep(other_hooked, tiny_hooked, TEXTS, Parity(), LockstepSettings(3, 1, 2, MOST))


def said(found, layer, draw=-1):
    rows = found.answers[(found.answers["layer"] == layer) & (found.answers["draw"] == draw)]
    assert list(rows["prompt"]) == TEXTS
    return tuple(rows["completion"])


def greedy(logits_of, tokenizer):
    """Answers by whole passes over one prompt at a time, without a cache; `logits_of` tokens, those after the last."""
    ends, answers = {tokenizer.eos_token_id}, []
    for ids in prompts.prompt_ids(tokenizer, TEXTS):
        ids, new = list(ids), []
        while len(new) < MOST:
            token = int(logits_of(torch.tensor([ids + new])).argmax())
            if token in ends:
                break
            new.append(token)
        answers.append(tokenizer.decode(new))
    return tuple(answers)


def test_a_patch_into_itself_changes_nothing(tiny_hooked):
    found = patch_in_lockstep(tiny_hooked, tiny_hooked, TEXTS, Parity(), LockstepSettings(3, 1, 1, MOST))
    own = complete(tiny_hooked, TEXTS, max_new_tokens=MOST).texts
    for layer in range(LAYERS):
        assert said(found, layer) == said(found, layer, 0) == own
    assert (found.observations.values == found.source[:, None]).all()
    assert "no side to change to" in found.depth.reason


def test_it_is_the_model_of_the_sources_layers_below_and_the_targets_above(
    found, tiny, other, tiny_hooked, other_hooked
):
    (lower, tokenizer), (upper, _) = models.load_causal_lm(other), models.load_causal_lm(tiny)
    answers = {}
    for layer in range(LAYERS):
        stitched = copy.deepcopy(upper)
        stitched.config.tie_word_embeddings = False
        stitched.model.embed_tokens = lower.model.embed_tokens
        for number in range(layer + 1):
            stitched.model.layers[number] = lower.model.layers[number]
        answers[layer] = greedy(lambda ids, model=stitched: model(ids).logits[0, -1], tokenizer)
        assert said(found, layer) == answers[layer]
    assert len(set(answers.values())) > 2, "the layers do not differ, and nothing was tested"
    own = complete(tiny_hooked, TEXTS, max_new_tokens=MOST).texts
    assert own not in answers.values()
    assert list(found.target) == [len(text) % 2 for text in own]
    assert list(found.source) == [len(text) % 2 for text in complete(other_hooked, TEXTS, max_new_tokens=MOST).texts]


def test_the_control_is_the_same_change_turned(found, tiny, other):
    (source, tokenizer), (target, _) = models.load_causal_lm(other), models.load_causal_lm(tiny)
    for layer, draw in ((0, 0), (2, 1)):
        turn, kept = rotation(64, 0, draw), {}

        def keep(_, __, output, kept=kept):
            kept["stream"] = output

        def put(_, __, output, kept=kept, turn=turn):
            return output + (kept["stream"] - output) @ turn

        hooks = [source.model.layers[layer].register_forward_hook(keep)]
        hooks.append(target.model.layers[layer].register_forward_hook(put))
        with torch.no_grad():
            answers = greedy(lambda ids: (source(ids), target(ids).logits[0, -1])[1], tokenizer)
        for hook in hooks:
            hook.remove()
        assert said(found, layer, draw) == answers
    assert said(found, 0, 0) != said(found, 0, 1)


def test_prompts_in_batches_are_as_prompts_alone(tiny_hooked, other_hooked, found, monkeypatch):
    monkeypatch.setattr("mechrefusal.durability.lockstep.ROWS", 2)
    settings = LockstepSettings(3, 3, 0, MOST)
    again = patch_in_lockstep(other_hooked, tiny_hooked, TEXTS, Parity(), settings)
    assert again.layers == [0, 3]
    assert [said(again, layer) for layer in (0, 3)] == [said(found, layer) for layer in (0, 3)]
    assert again.table["n_draws"].tolist() == [0, 0]
    assert again.table["control"].isna().all()


def test_the_table_counts_what_was_judged():
    cells = pd.DataFrame([{"layer": layer, "draw": draw} for layer in (0, 1, 2) for draw in (-1, 0, 1)])
    own = {0: [0, 0, 0, 1], 1: [1, 1, np.nan, 1], 2: [1, 1, 1, 1]}
    controls = {0: [0, 0, 0, 0], 1: [1, 0, 0, 0]}
    values = np.array([own[c.layer] if c.draw < 0 else controls[c.draw] for c in cells.itertuples()], float).T
    broken = np.zeros_like(values)
    broken[0, 4] = 1  # layer 1, the first control, of one prompt
    units = tuple("abcd")
    found = Lockstep(
        Observations(values, cells, units), Observations(broken, cells, units),
        np.ones(4), np.array([0.0, 0, 0, 0]), 3, pd.DataFrame(),
    )  # fmt: skip
    table = found.table.set_index("layer")
    assert table.loc[0, ["refused", "n", "control", "control_least", "control_most", "n_draws"]].tolist() == [
        0.25,
        4,
        0.125,
        0,
        0.25,
        2,
    ]
    assert table.loc[1, ["refused", "n", "control_degenerate", "source_refused", "target_refused"]].tolist() == [
        1,
        3,
        0.125,
        1,
        0,
    ]
    assert (table.loc[0, "low"], table.loc[0, "high"]) == pytest.approx((0.0456, 0.6994), abs=1e-4)  # Wilson, 1 of 4
    assert (found.depth.depth.value, found.depth.gap.value) == (1, 1)


def test_what_cannot_be_patched_is_named(tiny_hooked, tmp_path):
    with pytest.raises(MechrefusalError, match="no prompt to answer in lockstep"):
        durability.patch_in_lockstep(tiny_hooked, tiny_hooked, [], Parity())
    with pytest.raises(MechrefusalError, match="layer 4 is not in this model"):
        patch_in_lockstep(tiny_hooked, tiny_hooked, TEXTS, Parity(), layers=[4])
    deeper = models.load_hooked(models.tiny.make(tmp_path / "deeper", n_layers=5))
    with pytest.raises(MechrefusalError, match="differ in n_layers: 5 and 4"):
        patch_in_lockstep(deeper, tiny_hooked, TEXTS, Parity())
