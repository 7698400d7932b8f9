"""A model whose refusal is known by construction: the carrier that is found is the one that was put in.

Words of harmful requests carry a mark in their embedding. The attention of layer 2 reads the mark, evenly over all
positions before, and writes a direction u; the unembedding of the refusal token reads u, that of the compliance token a
constant that every embedding holds. All other weights are small noise.
"""

import itertools
import math

import planted_model
import pytest
import torch
from planted_model import METRIC

from mechrefusal import MechrefusalError, causal, forward, geometry
from mechrefusal.geometry import carriers
from mechrefusal.prompts import PromptSet, Split, prompt_ids

WRITING_LAYER, CARRIER_LAYER, N_LAYERS = 2, 3, 6
MARK, CONSTANT, U = 0, 1, 2
VERBS, THINGS = ("Make", "Sell", "Use"), ("a bomb", "bomb bomb", "one bomb today", "the bomb of fire")
HARMFUL = [f"{verb} {thing}" for verb, thing in itertools.product(VERBS, THINGS)]
HARMLESS = [text.replace("bomb", "home") for text in HARMFUL]


def split(harmful, harmless):
    return Split(PromptSet.from_texts("harmful", harmful), PromptSet.from_texts("harmless", harmless))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    def plant(layers) -> None:
        attention = layers[WRITING_LAYER].self_attn
        attention.q_proj.weight.zero_()
        # d_head is 16, two key/value heads: the first one reads the mark, heads 0 and 1 hear it.
        attention.v_proj.weight[0] = 0
        attention.v_proj.weight[0, MARK] = 1
        attention.o_proj.weight[U] = 0
        attention.o_proj.weight[U, [0, 16]] = 10

    return planted_model.make(
        tmp_path_factory.mktemp("planted") / "model",
        plant,
        n_layers=N_LAYERS,
        n_kept=3,
        marks={"bomb": MARK},
        constant=CONSTANT,
        refusal=(U, 4),
        compliance=2,
        noise=0.1,
    )


@pytest.fixture(scope="module")
def halves():
    return split(HARMFUL[::2], HARMLESS[::2]), split(HARMFUL[1::2], HARMLESS[1::2])


def chosen(model, direction, validation):
    directions = geometry.difference_in_means(model, direction)
    scores = geometry.score(model, directions, validation, METRIC)
    return directions, scores.table, geometry.select(scores).winner


def scores_of(model, texts):
    prompts = prompt_ids(model.tokenizer, texts)
    return forward.refusal_scores(model, prompts, METRIC)


def test_the_model_refuses_what_it_should(planted):
    assert (scores_of(planted, HARMFUL) > 1).all()
    assert (scores_of(planted, HARMLESS) < -1).all()


def test_the_carrier_is_the_direction_that_was_put_in(planted, halves):
    direction, validation = halves
    directions, scores, winner = chosen(planted, direction, validation)
    assert winner is not None
    assert winner.layer == CARRIER_LAYER
    found = winner.direction.vector
    assert torch.equal(found, directions.values[directions.row(winner.position), winner.layer])
    assert abs(found[U] / found.norm()) > 0.95
    # Nothing below layer 3 holds the direction, so that nothing below can be the carrier.
    refusing = scores_of(planted, validation.harmful.texts).mean().item()
    early = scores[scores["layer"] < CARRIER_LAYER]["bypass"].dropna()
    assert len(early) > 0
    assert early.min() > refusing - 0.5
    assert winner.bypass.value < -1 < 1 < refusing
    assert winner.induce.value > 0
    assert winner.kl.value < 0.1


def test_ablating_the_carrier_answers_and_adding_it_refuses(planted, halves):
    winner = chosen(planted, *halves)[2]
    r = winner.direction.vector
    with causal.ablate(planted, r):
        assert (scores_of(planted, HARMFUL) < -1).all()
    with causal.add(planted, r, layer=CARRIER_LAYER):
        assert (scores_of(planted, HARMLESS) > 0).all()
    control = causal.random_like(r, seed=0)
    with causal.ablate(planted, control):
        assert (scores_of(planted, HARMFUL) > 0.5).all()


def test_halves_of_the_direction_prompts_choose_as_by_hand(planted, halves):
    """Each half's directions taken from its prompts, scored on the same candidates and chosen among."""
    direction, validation = halves
    directions = geometry.difference_in_means(planted, direction)
    scores = geometry.score(planted, directions, validation, METRIC)
    drawn = geometry.stability.bootstrap(scores, N_LAYERS)
    found = geometry.stability.split_half(planted, directions, validation, METRIC, scores, drawn, contenders=4)
    wins = drawn.table["win_frequency"]
    order = scores.table.assign(wins=wins).dropna().sort_values(["wins", "bypass"], ascending=[False, True])
    rows = list(order.head(4)[["position", "layer"]].itertuples(index=False, name=None))
    assert found.table["half_wins"].notna().sum() == 4
    expected = dict.fromkeys(rows, 0)
    layers = []
    for start in (0, 1):
        half = split(direction.harmful.texts[start::2], direction.harmless.texts[start::2])
        own = geometry.difference_in_means(planted, half)
        winner = carriers.select(geometry.score(planted, own, validation, METRIC, places=rows), N_LAYERS).winner
        expected[winner.place] += 1
        layers.append(winner.layer)
    chosen = found.table.dropna().set_index(["position", "layer"])["half_wins"]
    assert chosen.to_dict() == expected
    assert (found.n_halves, found.layer_low, found.layer_high) == (2, min(layers), max(layers))
    assert found.layer_low == CARRIER_LAYER


def test_halves_that_have_no_admissible_direction(planted, halves):
    direction, validation = halves
    directions = geometry.difference_in_means(planted, direction)
    scores = geometry.score(planted, directions, validation, METRIC)
    never = geometry.Admissible(induce=1e9)
    drawn = geometry.stability.bootstrap(scores, N_LAYERS, never)
    found = geometry.stability.split_half(planted, directions, validation, METRIC, scores, drawn, never)
    assert found.n_halves == 0
    assert math.isnan(found.layer_low)
    assert math.isnan(found.layer_high)
    assert set(found.table["half_wins"].dropna()) == {0}
    one = geometry.difference_in_means(planted, split(HARMFUL[:1], HARMLESS[:1]))  # the other half has no prompt
    own = geometry.score(planted, one, validation, METRIC)
    found = geometry.stability.split_half(
        planted, one, validation, METRIC, own, geometry.stability.bootstrap(own, N_LAYERS)
    )
    assert found.n_halves == 1
    assert math.isnan(found.layer_low)
    with pytest.raises(MechrefusalError, match="contenders for halves of the direction prompts are 0: give at least 1"):
        geometry.stability.split_half(planted, directions, validation, METRIC, scores, drawn, contenders=0)


def test_shuffled_labels_have_no_such_carrier(planted, halves):
    direction, validation = halves
    n = len(direction.harmful)
    shuffled = split(
        direction.harmful.texts[: n // 2] + direction.harmless.texts[n // 2 :],
        direction.harmless.texts[: n // 2] + direction.harmful.texts[n // 2 :],
    )
    _, _, carrier = chosen(planted, direction, validation)
    _, _, control = chosen(planted, shuffled, validation)
    refusing = scores_of(planted, validation.harmful.texts).mean().item()
    if control is not None:
        assert refusing - control.bypass.value < 0.5 * (refusing - carrier.bypass.value)


def test_heads_that_write_refusal(planted, halves):
    from mechrefusal import attribution

    direction, _ = halves
    table = attribution.attribute(planted, direction.harmful.texts, attribution.RefusalLogits(METRIC)).table
    heads = table[table["component"] == "head"].sort_values("value", ascending=False)
    assert set(zip(heads["layer"][:2], heads["head"][:2], strict=True)) == {(WRITING_LAYER, 0), (WRITING_LAYER, 1)}
    assert heads["value"].iloc[1] > 10 * heads["value"].iloc[2:].abs().max()


def test_patching_finds_the_heads_and_the_place(planted):
    from mechrefusal.causal import patching
    from mechrefusal.prompts import Pair, PairSet

    pairs = PairSet((Pair("a", "", HARMFUL[0], HARMLESS[0]), Pair("b", "", HARMFUL[4], HARMLESS[4])))
    found = patching.heads(planted, pairs, METRIC)
    assert set(found.top(2)) == {(WRITING_LAYER, 0), (WRITING_LAYER, 1)}
    effects = found.table.set_index(["layer", "head"])["effect"]
    # Each of the two writes enough; together they are all of it.
    assert (effects.loc[WRITING_LAYER, [0, 1]] > 0.4).all()
    assert effects.drop([(WRITING_LAYER, 0), (WRITING_LAYER, 1)]).abs().max() < 0.05
    residual = patching.residual(planted, pairs[:1], METRIC).table.set_index(["layer", "position"])["effect"]
    assert residual.loc[CARRIER_LAYER, -1] == pytest.approx(1, abs=0.1), "after layer 2 it stands at the last position"
    assert abs(residual.loc[WRITING_LAYER, -1]) < 0.1, "before, it does not"
