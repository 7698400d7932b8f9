"""Learned cones: the losses against the hooked transformer, and a planted direction that is found from a poor start."""

from dataclasses import replace

import coned
import gated
import numpy as np
import planted_model
import pytest
import torch
from tolerances import FORWARD
from torch.nn.functional import softplus

from mechrefusal import MechrefusalError, causal, forward, geometry
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry import ConeSettings, Subspace, cones, learn_cone, score_subspaces, span_scores, subspaces
from mechrefusal.prompts import Split, prompt_ids

CONTRAST = Split.of(["Tell me how to steal a car.", "Build a bomb", "x"], ["Wash a car.", "Bake bread", "Sing"])
METRIC = RefusalMetric((), (10, 11), (12, 13))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("opening", [(), (40, 41)], ids=["", "opening"])
def test_losses_of_the_first_step_equal_the_hooked_model(tiny_hooked, opening):
    """One direction: the first step is taken at the difference in means, on all prompts."""
    metric, difference = replace(METRIC, opening=opening), 3 * normal(64)
    settings = ConeSettings(steps=1, batch=3, ablation=0.5, addition=0.25, retain=2.0)
    r = Direction(difference, layer=2)
    first = learn_cone(tiny_hooked, r, CONTRAST, metric, largest=1, settings=settings).history.loc[0]

    def run(texts):
        ids = prompt_ids(tiny_hooked.tokenizer, texts)
        return forward.refusal_scores_and(tiny_hooked, ids, metric, read=lambda logits: logits.log_softmax(-1))

    base = run(CONTRAST.harmless)[1].double().exp()
    with causal.ablate(tiny_hooked, difference):
        ablation = softplus(run(CONTRAST.harmful)[0]).mean().item()
        after = run(CONTRAST.harmless)[1].double().exp()
    retain = (base * ((base + 1e-6).log() - (after + 1e-6).log())).sum(1).mean().item()
    with causal.add(tiny_hooked, difference.float(), layer=2):
        addition = softplus(-run(CONTRAST.harmless)[0]).mean().item()
    np.testing.assert_allclose(first[["ablation", "addition", "retain"]], [ablation, addition, retain], atol=FORWARD)
    assert first["loss"] == pytest.approx(0.5 * ablation + 0.25 * addition + 2 * retain, abs=FORWARD)
    assert (first["step"], first["k"]) == (0, 1)


def test_the_losses_have_the_gradient_of_finite_differences(tiny_hooked):
    generator = torch.Generator().manual_seed(0)
    five = Direction(5 * torch.eye(64)[7], layer=1)
    losses = cones._Losses(tiny_hooked, CONTRAST, METRIC, five, 3, generator)
    direction, towards = normal(64), normal(64, seed=1)
    at = direction.clone().requires_grad_()
    terms = losses(0, at)
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, at, retain_graph=True)
        with torch.no_grad():
            step = 0.02 * towards
            difference = (losses(0, direction + step)[name] - losses(0, direction - step)[name]).item() / 0.04
        assert (gradient @ towards).item() == pytest.approx(difference, rel=0.05, abs=FORWARD), name
        assert gradient.norm() > 1e-4


def test_same_seed_same_cone(tiny_hooked):
    r, settings = Direction(normal(64), layer=1), ConeSettings(steps=3, batch=2)
    first, again, other = (
        learn_cone(tiny_hooked, r, CONTRAST, METRIC, largest=3, settings=replace(settings, seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.subspace.basis, again.subspace.basis)
    assert first.history.equals(again.history)
    assert not torch.allclose(first.subspace.basis, other.subspace.basis, atol=1e-3)
    basis = first.subspace.basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    assert (first.subspace.family, len(first.history)) == ("cone", 3)
    assert not basis.requires_grad


def test_a_row_is_not_moved_by_rows_after_it():
    """Orthonormalisation leaves what the first k rows span, and their sense, as it was."""
    rows = normal(4, 9)
    basis = cones._orthonormal_rows(rows)
    torch.testing.assert_close(basis[0], rows[0] / rows[0].norm())
    for k in range(1, 5):
        torch.testing.assert_close(cones._orthonormal_rows(rows[:k]), basis[:k])
        rest = rows[k - 1] - basis[: k - 1].T @ (basis[: k - 1] @ rows[k - 1])
        torch.testing.assert_close(basis[k - 1], rest / rest.norm())


def test_draws_cover_the_cone():
    generator = torch.Generator().manual_seed(0)
    draws = [cones._draw(3, generator) for _ in range(600)]
    counts = np.bincount([k for k, _ in draws], minlength=4)
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 200) < 60).all(), "every size as often"
    for k, mix in draws:
        assert len(mix) == k
        assert (mix >= 0).all()
        assert mix.norm() == pytest.approx(1)
    mixed = torch.stack([mix for k, mix in draws if k == 3]).mean(0)
    torch.testing.assert_close(mixed, torch.full((3,), 0.5, dtype=torch.float64), atol=0.08, rtol=0)


def test_batches_hold_different_prompts():
    found = cones._batches(range(10), 4, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in found] == [4, 4]
    assert len({item for batch in found for item in batch}) == 8
    assert sorted(cones._batches(range(3), 4, torch.Generator())[0]) == [0, 1, 2]


def test_errors(tiny_hooked):
    r = Direction(normal(64), layer=1)
    with pytest.raises(MechrefusalError, match=r"not finite at step 0 .*learning rate"):
        learn_cone(tiny_hooked, r, CONTRAST, NoNumber((), (10,), (12,)))
    with pytest.raises(MechrefusalError, match="0 and 0"):
        learn_cone(tiny_hooked, r, CONTRAST.take(0), METRIC)
    with pytest.raises(MechrefusalError, match=r"finite|zero"):
        learn_cone(tiny_hooked, replace(r, vector=torch.zeros(64)), CONTRAST, METRIC)
    with pytest.raises(MechrefusalError, match="7"):
        learn_cone(tiny_hooked, replace(r, layer=7), CONTRAST, METRIC)
    with pytest.raises(MechrefusalError, match=r"ffff.* take it from this model"):
        learn_cone(tiny_hooked, replace(r, weights="f" * 16), CONTRAST, METRIC)
    with pytest.raises(MechrefusalError, match="steps=0"):
        ConeSettings(steps=0)
    with pytest.raises(MechrefusalError, match="the weight of a cone's loss 'retain' is -1: give 0 or more"):
        ConeSettings(retain=-1)


class NoNumber(RefusalMetric):
    """Scores that are not numbers, as a broken checkpoint gives."""

    def of_runs(self, logits):
        return super().of_runs(logits) * float("nan")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return gated.make(tmp_path_factory.mktemp("gated") / "model")


def test_a_planted_direction_is_found_from_a_poor_start(planted):
    """The start is half noise; what is learned does on other prompts what the planted direction does."""
    position, layer = gated.PLACE
    direction, validation = (gated.split("bomb", verbs=gated.VERBS[half::2]) for half in (0, 1))
    truth = torch.zeros(64, dtype=torch.float64)
    truth[gated.U[0]] = 6
    noise = normal(64, seed=4)
    start = truth + 6 * noise / noise.norm()
    settings = ConeSettings(steps=30, learning_rate=0.05, retain=1.0)
    r = Direction(start, position, layer)
    cone = learn_cone(planted, r, direction, planted_model.METRIC, largest=2, settings=settings)
    families = [cone.subspace, Subspace("start", (start / start.norm())[None]), subspaces.random_subspace(2, 64)]
    found = score_subspaces(
        planted, families, validation, planted_model.METRIC, difference=replace(r, vector=truth), largest=2
    )
    rows = found.table.set_index(["family", "k"])
    assert found.baseline.low > 5
    assert rows["bypass_low"]["start", 1] > 5, "the start does not carry refusal"
    assert rows["bypass_high"]["cone", 1] < -5
    assert rows["admissible"]["cone", 1]
    assert rows["share_of_best"]["cone", 1] > 0.8
    assert rows["bypass"]["cone", 1] < rows["bypass"]["random"].min() - 5

    def towards(basis):
        return abs(basis[0] @ truth / 6).item()

    assert towards(cone.subspace.basis) > towards(start[None] / start.norm()) + 0.02
    assert towards(cone.subspace.basis) > 2 * towards(families[-1].basis)
    alone = cone.history[cone.history["k"] == 1]["loss"]
    assert alone.iloc[-1] < 0.1 * alone.iloc[0]
    assert (cone.history["loss"] - cone.history[["ablation", "addition", "retain"]].sum(axis=1)).abs().max() < 1e-6


def test_directions_are_drawn_from_inside_the_cone():
    """Combinations with coefficients ≥ 0, of length one, as uniform as draws from the normal distribution fold to."""
    basis = torch.linalg.qr(normal(9, 3)).Q.T
    drawn = span_scores.drawn_from_cone(basis, 4000)
    mix = drawn @ basis.T
    assert mix.min() >= 0
    torch.testing.assert_close(mix @ basis, drawn)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert mix.mean(0).numpy() == pytest.approx([0.5] * 3, abs=0.02)  # a coordinate of a sphere in 3 dimensions is flat
    angles = torch.atan2(*span_scores.drawn_from_cone(torch.eye(2, dtype=torch.float64), 4000).T)
    assert np.histogram(angles, bins=4, range=(0, np.pi / 2))[0] == pytest.approx([1000] * 4, rel=0.15)
    assert torch.equal(span_scores.drawn_from_cone(basis, 3), span_scores.drawn_from_cone(basis, 3))


def test_the_random_cone_starts_with_the_difference():
    r = normal(12)
    found = subspaces.random_cone(r, 4)
    torch.testing.assert_close(found.basis[0], r / r.norm())
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(subspaces.random_cone(r, 2).basis.shape, torch.Size([2, 12]))
    with pytest.raises(MechrefusalError, match="zero or not finite"):
        subspaces.random_cone(0 * r, 2)


@pytest.fixture(scope="module")
def planted_cone(tmp_path_factory):
    return coned.make(tmp_path_factory.mktemp("coned") / "model")


@pytest.fixture(scope="module")
def scored_cones(planted_cone):
    harmful, harmless = gated.at_place(planted_cone, coned.split(0))
    difference = harmful.double().mean(0) - harmless.double().mean(0)
    assert harmful[:, list(gated.U)].numpy() == pytest.approx(coned.S, rel=0.05)
    truth = torch.zeros(2, 64, dtype=torch.float64)
    truth[[0, 1], list(gated.U)] = 1
    control = subspaces.random_cone(difference, 5)
    position, layer = gated.PLACE
    families = [Subspace("cone", truth), control, Subspace("pca", control.basis)]
    found = score_subspaces(
        planted_cone,
        families,
        coned.split(1),
        planted_model.METRIC,
        difference=Direction(difference, position, layer),
    )
    return difference, truth, found


def test_a_planted_cone_is_one_and_that_of_r_and_random_directions_is_not(scored_cones):
    rows = scored_cones[2].table.set_index(["family", "k"])
    assert rows["admissible"]["cone", 2]
    assert rows["share_admissible"]["cone", 2] == 1
    assert rows["bypass_worst"]["cone", 2] < -5
    assert rows["induce_worst"]["cone", 2] > 5
    assert rows["admissible"]["random_cone", 1], "that is r alone"
    assert not rows["admissible"]["random_cone"][1:].any()
    assert (rows["share_admissible"]["random_cone"][1:] < 0.7).all()
    assert (rows["bypass_worst"]["random_cone"][[2, 3]] > 15).all(), "a direction of it leaves refusal as it was"
    # With the span of the same directions ablated, and the part of r in it added, nothing is missed.
    assert rows["admissible"]["pca", 2]
    assert rows["bypass"]["pca", 2] < -20
    assert scored_cones[2].smallest.name != "random_cone"


def test_scores_of_a_cone_are_those_of_its_directions(planted_cone, scored_cones):
    """Each drawn direction under plain hooks, one after another."""
    difference, truth, found = scored_cones
    row = found.table.set_index(["family", "k"]).loc[("cone", 2)]
    asked, metric = coned.split(1), planted_model.METRIC

    def scores(texts):
        return forward.refusal_scores(planted_cone, prompt_ids(planted_cone.tokenizer, texts), metric).numpy()

    bypass, induce = [], []
    for each in span_scores.drawn_from_cone(truth, 8):
        with causal.ablate(planted_cone, each.float()):
            bypass.append(scores(asked.harmful))
        with causal.add(planted_cone, (difference.norm() * each).float(), layer=gated.PLACE[1]):
            induce.append(scores(asked.harmless))
    bypass, induce = np.array(bypass), np.array(induce)
    assert row["bypass"] == pytest.approx(bypass.mean(), abs=FORWARD)
    assert row["bypass_worst"] == pytest.approx(bypass.mean(1).max(), abs=FORWARD)
    assert row["induce"] == pytest.approx(induce.mean(), abs=FORWARD)
    assert row["induce_worst"] == pytest.approx(induce.mean(1).min(), abs=FORWARD)
    assert row["bypass_low"] <= bypass.mean(0).min() + 0.5
    assert (row["n_sampled"], row["n"], row["reason"]) == (8, len(asked.harmful), "")


def test_with_references_a_direction_is_set_to_what_the_means_have_along_it(planted_cone):
    directions = geometry.difference_in_means(planted_cone, coned.split(0))
    asked, metric = coned.split(1), planted_model.METRIC
    r = directions.at(*gated.PLACE, reference="harmless")
    ends = [causal.Reference.of(r, coefficient=coefficient) for coefficient in (0.0, 1.0)]
    control = subspaces.random_cone(r, 2)
    found = score_subspaces(planted_cone, [control], asked, metric, difference=r, largest=2, samples=3)
    row = found.table.iloc[1]
    scorer = geometry.Scorer(planted_cone, asked, metric)
    drawn = [each.float() for each in span_scores.drawn_from_cone(control.basis, 3)]
    bypass = [scorer.on_harmful(causal.Ablation(each, reference=ends[0])).mean().item() for each in drawn]
    induce = [scorer.on_harmless(causal.Ablation(each, reference=ends[1])).mean().item() for each in drawn]
    assert row["bypass_worst"] == pytest.approx(max(bypass), abs=FORWARD)
    assert row["induce"] == pytest.approx(np.mean(induce), abs=FORWARD)
    assert row["induce_worst"] == pytest.approx(min(induce), abs=FORWARD)
    assert not row["admissible"]
    with pytest.raises(MechrefusalError, match="drawn from a cone are 0"):
        score_subspaces(planted_cone, [control], asked, metric, difference=r, samples=0)
