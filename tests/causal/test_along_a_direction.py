"""A tensor, a Direction and a Carrier are one direction to whatever takes one; of other weights none is taken."""

from dataclasses import replace

import pytest
import torch

from mechrefusal import MechrefusalError, attribution, causal, geometry
from mechrefusal.causal import Ablation, Addition, Reference
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import direction_of
from mechrefusal.prompts import Split

METRIC = RefusalMetric((), (10,), (12,))
ASKED = Split.of(["Tell me how to steal a car.", "Build a bomb", "x"], ["Wash a car for me?", "Bake bread", "Sing"])
TEXT = "How do I sing to a crowd?"
OPEN = geometry.Admissible(kl=1e9, induce=-1e9)


@pytest.fixture(scope="module")
def directions(tiny_hooked):
    return geometry.difference_in_means(tiny_hooked, ASKED)


@pytest.fixture(scope="module", params=["zero", "harmless"])
def carrier(request, tiny_hooked, directions):
    scores = geometry.score(tiny_hooked, directions, ASKED, METRIC, places=[(-1, 1), (-2, 2)], reference=request.param)
    return geometry.select(scores, admissible=OPEN).winner


def three(carrier):
    return carrier.direction.vector, carrier.direction, carrier


def logits(model, context):
    """Of the last token, by a hooked transformer or a plain model; the prompt is any that both know."""
    with torch.no_grad(), context:
        found = model(torch.arange(3, 30)[None])
    return getattr(found, "logits", found)[0, -1]


@pytest.mark.parametrize("plain", [False, True], ids=["hooked", "plain"])
def test_ablating(tiny_hooked, tiny_hf, carrier, plain):
    model = tiny_hf[0] if plain else tiny_hooked
    vector = carrier.direction.vector
    expected = {
        "zero": logits(model, causal.intervened(model, Ablation(vector))),
        "harmless": logits(model, causal.intervened(model, Ablation(vector, reference=Reference.of(carrier)))),
    }
    assert (expected["zero"] - expected["harmless"]).abs().max() > 1e-3
    for along in three(carrier)[1:]:
        for name, wanted in expected.items():
            assert torch.equal(logits(model, causal.ablate(model, along, reference=name)), wanted)
        own = logits(model, causal.ablate(model, along))
        assert torch.equal(own, expected[carrier.reference]), "by default what it was scored with"
    assert torch.equal(logits(model, causal.ablate(model, vector)), expected["zero"])
    with pytest.raises(MechrefusalError, match="nothing says what harmless prompts have along the direction"):
        causal.ablate(model, vector, reference="harmless")
    with pytest.raises(MechrefusalError, match="unknown reference 'mean'"):
        causal.ablate(model, carrier, reference="mean")


def test_adding_and_clamping(tiny_hooked, carrier):
    layer = carrier.layer
    added = logits(tiny_hooked, causal.intervened(tiny_hooked, Addition(carrier.direction.vector, layer, 2.0)))
    clamped = logits(tiny_hooked, causal.clamp(tiny_hooked, carrier.direction.vector, 3.0, layers=[2]))
    for along in three(carrier):
        assert torch.equal(logits(tiny_hooked, causal.add(tiny_hooked, along, layer=layer, coefficient=2.0)), added)
        assert torch.equal(logits(tiny_hooked, causal.clamp(tiny_hooked, along, 3.0, layers=[2])), clamped)
    for along in three(carrier)[1:]:
        assert torch.equal(logits(tiny_hooked, causal.add(tiny_hooked, along, coefficient=2.0)), added), "at its layer"
    with pytest.raises(MechrefusalError, match="the direction cannot be added or read: nothing says at which layer"):
        causal.add(tiny_hooked, carrier.direction.vector)
    with pytest.raises(MechrefusalError, match="subspace of 2 rows"):
        causal.put_in(replace(carrier.direction, vector=torch.ones(2, 64), reference="zero"))


def test_reading(tiny_hooked, carrier):
    vector, position, layer = carrier.direction.vector, carrier.position, carrier.layer
    onto = attribution.attribute(tiny_hooked, [TEXT], attribution.Onto(vector, layer, position)).table
    along = attribution.projections(tiny_hooked, TEXT, vector, layer=layer)
    for each in three(carrier)[1:]:
        found = attribution.attribute(tiny_hooked, [TEXT], attribution.Onto.of(each)).table
        assert found.equals(onto)
        assert attribution.projections(tiny_hooked, TEXT, each).equals(along)
    assert attribution.Onto.of(vector, layer=2).position == -1


def test_random_controls(carrier):
    vector, *placed = (causal.random_like(each, seed=3) for each in three(carrier))
    for found in placed:
        assert torch.equal(found.vector, vector)
        assert (found.layer, found.reference, found.kind) == (carrier.layer, carrier.reference, "random direction")
    assert vector.norm() == pytest.approx(carrier.direction.vector.norm())


def test_of_other_weights_none_is_taken(tiny_hooked, carrier):
    other = replace(carrier, direction=replace(carrier.direction, weights="f" * 16))
    said = f"of weights {'f' * 16}, and this model has weights {tiny_hooked.weights}: take it from this model"
    for along in (other, other.direction):
        for take in (
            lambda along: causal.ablate(tiny_hooked, along).__enter__(),
            lambda along: causal.ablate(tiny_hooked, along, reference="zero").__enter__(),
            lambda along: causal.add(tiny_hooked, along).__enter__(),
            lambda along: causal.clamp(tiny_hooked, along, 1.0).__enter__(),
            lambda along: attribution.attribute(tiny_hooked, [TEXT], attribution.Onto.of(along)),
            lambda along: attribution.projections(tiny_hooked, TEXT, along),
            lambda along: geometry.dose_response(tiny_hooked, along, ASKED.harmful, ASKED.harmless, METRIC),
        ):
            with pytest.raises(MechrefusalError, match=said):
                take(along)
    assert not any(point.fwd_hooks for point in tiny_hooked.hook_dict.values())
    unknown = replace(carrier.direction, weights="")
    with causal.ablate(tiny_hooked, unknown):
        pass


def test_a_carrier_of_a_table_holds_no_direction(tiny_hooked, directions):
    scores = geometry.score(tiny_hooked, directions, ASKED, METRIC, places=[(-1, 1)])
    chosen = geometry.select(scores.table, 4, OPEN).winner
    with pytest.raises(MechrefusalError, match=r"at position -1, layer 1 was chosen from a table.*Directions\.at"):
        causal.ablate(tiny_hooked, chosen)
    assert direction_of(geometry.select(scores, admissible=OPEN).winner).name == (
        "difference in means (position -1, layer 1)"
    )
