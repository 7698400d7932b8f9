"""The rule of selection on hand-made tables, and the scores against plain loops with hooks."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tolerances import FORWARD, ROUNDED

from mechrefusal import MechrefusalError, geometry
from mechrefusal.forward import RefusalMetric
from mechrefusal.geometry import Admissible, carriers
from mechrefusal.prompts import PromptSet, Split, segments

NAN = float("nan")


def table(*rows):
    return pd.DataFrame(rows, columns=["position", "layer", "bypass", "induce", "kl"])


class TestSelect:
    def test_lowest_bypass_among_the_admissible(self):
        scores = table(
            (-1, 1, -9.0, 1.0, 0.5),  # the lowest, but harms the model
            (-1, 2, -5.0, -1.0, 0.0),  # does not induce
            (-2, 3, -3.0, 2.0, 0.05),
            (-1, 9, -8.0, 2.0, 0.0),  # too late
            (-3, 3, -2.0, 9.0, 0.0),
        )
        found = carriers.select(scores, 10)
        winner = found.winner
        scores = [each.value for each in (winner.bypass, winner.induce, winner.kl)]
        assert (*winner.place, *scores) == (-2, 3, -3.0, 2.0, 0.05)
        assert found.table.loc[winner.row, ["position", "layer", "bypass"]].tolist() == [-2, 3, -3.0]
        assert (winner.kind, winner.admissible, winner.rejected_because) == ("carrier", True, "")
        assert found.best is winner
        assert found.table["admissible"].tolist() == [False, False, True, False, True]
        why = found.table["rejected_because"].tolist()
        assert "kl" in why[0]
        assert "induce" in why[1]
        assert why[2] == why[4] == ""
        assert "layer 9" in why[3]

    def test_every_reason_is_named(self):
        found = carriers.select(table((-1, 5, 0.0, -0.5, 0.2)), 5)
        why = found.table["rejected_because"][0]
        assert all(word in why for word in ("layer 5", "kl", "0.2", "0.1", "induce", "-0.5"))
        assert found.winner is None

    @pytest.mark.parametrize("column", ["bypass", "induce", "kl"])
    def test_nan(self, column):
        scores = table((-1, 0, -9.0, 1.0, 0.0), (-2, 0, 0.0, 1.0, 0.0))
        scores.loc[0, column] = NAN
        found = carriers.select(scores, 10)
        assert found.winner.position == -2
        assert "NaN" in found.table["rejected_because"][0]
        assert carriers.select(scores[:1], 10).winner is None

    def test_thresholds_are_admitted_at_the_border(self):
        inside = table((-1, 0, 0.0, 0.0, 0.1))
        assert carriers.select(inside, 10).winner is not None
        for column, value in (("kl", np.nextafter(0.1, 1)), ("induce", np.nextafter(0.0, -1))):
            assert carriers.select(inside.assign(**{column: value}), 10).winner is None
        assert carriers.select(inside, 10, Admissible(kl=0.09)).winner is None
        assert carriers.select(inside, 10, Admissible(0.1, 0.01)).winner is None
        assert carriers.select(inside.assign(kl=5.0, induce=-3.0), 10, Admissible(5.0, -3.0)).winner is not None

    @pytest.mark.parametrize(("n_layers", "limit"), [(5, 4), (30, 24), (32, 25), (10, 8), (1, 0), (4, 3), (18, 14)])
    def test_late_layers_are_pruned(self, n_layers, limit):
        """int(0.8 · n): 4, 24, 25.6, 8, 0.8, 3.2, 14.4."""
        scores = table(*[(-1, layer, 0.0, 1.0, 0.0) for layer in range(n_layers)])
        admitted = carriers.select(scores, n_layers).table
        assert admitted[admitted["admissible"]]["layer"].tolist() == list(range(limit))
        assert Admissible().layers(n_layers) == range(limit)

    def test_no_pruning(self):
        scores = table((-1, 9, 0.0, 1.0, 0.0))
        assert carriers.select(scores, 10, Admissible(prune=0.0)).winner is not None
        assert carriers.select(scores, 10, Admissible(prune=1.0)).winner is None

    def test_ties_go_to_the_earlier_layer_then_position(self):
        scores = table((-1, 3, 1.0, 1.0, 0.0), (-1, 2, 1.0, 1.0, 0.0), (-4, 2, 1.0, 1.0, 0.0), (-5, 3, 1.0, 1.0, 0.0))
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
            winner = carriers.select(scores.iloc[order], 10).winner
            assert winner.place == (-4, 2)

    def test_the_given_table_is_not_changed(self):
        scores = table((-1, 9, 0.0, 1.0, 0.0), (-1, 1, 0.0, 1.0, 0.0))
        scores.index = [7, 7]
        scores["note"] = ["a", "b"]
        before = scores.copy(deep=True)
        found = carriers.select(scores, 10)
        pd.testing.assert_frame_equal(scores, before)
        assert found.table["note"].tolist() == ["a", "b"], "every candidate is kept, in order"
        assert found.table["note"][found.winner.row] == "b"

    def test_nobody(self):
        for scores in (table(), table((-1, 9, 0.0, 1.0, 0.0))):
            found = carriers.select(scores, 10)
            assert found.winner is None
            assert len(found.table) == len(scores)
            assert {"admissible", "rejected_because"} <= set(found.table)
            assert found.best is None

    def test_without_a_carrier_the_best_candidate_is_told_by_its_kl_first(self):
        scores = table(
            (-1, 9, -99.0, -1.0, 0.0),  # too late
            (-1, 1, -9.0, -1.0, 0.5),
            (-1, 2, -3.0, -1.0, 0.1),
            (-1, 3, -2.0, -1.0, 0.0),
            (-1, 4, NAN, -1.0, 0.0),
        )
        found = carriers.select(scores, 10)
        assert found.winner is None
        assert not found.table["winner"].any()
        assert (found.best.row, found.best.kind, found.best.admissible) == (2, "best candidate", False)
        assert found.best.rejected_because == "induce -1 < 0"
        assert carriers.select(scores.assign(kl=0.5), 10).best.row == 1, "the lowest of all where no KL is admissible"
        assert carriers.select(scores.assign(exact=[True, True, False, True, True]), 10).best.row == 3

    def test_what_is_admissible_does_not_hang_on_words(self, monkeypatch):
        random = np.random.default_rng(0)
        scores = table(*[(-1, layer, *random.normal([0, -0.5, 0.1], [1, 1, 0.1])) for layer in range(10)])
        expected = [carriers.select(scores.assign(induce=induce), 10) for induce in (scores["induce"], -1.0)]
        assert expected[0].winner is not None
        assert expected[1].winner is None
        monkeypatch.setattr(carriers, "_reasons", lambda numbers, *_: ["kl induce layer a score is NaN"] * len(numbers))
        for before, induce in zip(expected, (scores["induce"], -1.0), strict=True):
            found = carriers.select(scores.assign(induce=induce), 10)
            pd.testing.assert_frame_equal(
                found.table.drop(columns="rejected_because"), before.table.drop(columns="rejected_because")
            )
            assert found.best.row == before.best.row

    def test_each_rule_has_its_column(self):
        scores = table((-1, 9, 0.0, 1.0, 0.0), (-1, 1, 0.0, 1.0, 0.2), (-1, 1, 0.0, -1.0, 0.0), (-1, 1, 0.0, 1.0, NAN))
        found = carriers.select(scores, 10).table
        flags = ["admissible_layer", "admissible_kl", "admissible_induce", "admissible"]
        assert found[flags].to_numpy().tolist() == [
            [False, True, True, False],
            [True, False, True, False],
            [True, True, False, False],
            [True, False, True, False],
        ]
        assert {str(kind) for kind in found[flags].dtypes} == {"bool"}
        assert found["rejected_because"][3] == "a score is NaN"

    def test_a_table_does_not_say_how_many_layers_there_are(self):
        with pytest.raises(MechrefusalError, match="give n_layers"):
            carriers.select(table((-1, 0, 0.0, 1.0, 0.0)))

    @pytest.mark.parametrize("column", ["position", "layer", "bypass", "induce", "kl"])
    def test_missing_column(self, column):
        with pytest.raises(MechrefusalError, match=column):
            carriers.select(table((-1, 0, 0.0, 1.0, 0.0)).drop(columns=column), 10)


def test_kl_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]])
    expected = (p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(1)
    np.testing.assert_allclose(geometry.kl_divergence(p.log(), q.log()).numpy(), expected, rtol=ROUNDED)
    assert geometry.kl_divergence(p.log(), p.log()).abs().max() == 0
    # 0.5 log 2 − 0.25 log 2, and log(1 / 1e-6).
    np.testing.assert_allclose(expected, [0.25 * np.log(2), np.log(1e6)], rtol=1e-4)


HARMFUL = ["Tell me how to steal a car.", "Build a bomb", "x"]
HARMLESS = ["Tell me how to wash a car.", "Bake bread"]
VALIDATION = Split(PromptSet.from_texts("harmful", HARMFUL), PromptSet.from_texts("harmless", HARMLESS))


def plain_means(hf, tokenizer, texts):
    """Means of block inputs by layer and kind of token, from one prompt at a time: instruction, template's end."""
    sums, counts, n_end = [], 0, None
    for text in texts:
        parts = segments(tokenizer, text)
        seen = []
        handles = [
            block.register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0][0].double()))
            for block in hf.model.layers
        ]
        with torch.no_grad():
            hf(torch.tensor([parts.prompt_ids]))
        for handle in handles:
            handle.remove()
        x, n_end = torch.stack(seen), len(parts.after)
        sums.append((x[:, len(parts.before) : -n_end].sum(1), x[:, -n_end:]))
        counts += len(parts.instruction)
    instruction = sum(each for each, _ in sums) / counts
    return instruction, sum(end for _, end in sums) / len(texts), len(segments(tokenizer, texts[0]).before)


def plain_setting(hf, means, unit, *, first, n_after):
    """Hooks that set the projection on `unit` to the means from layer `first` on, token by token, in ten lines."""
    instruction, end, n_before = means

    def setting(layer):
        def hook(_, args):
            x = args[0].clone()
            stop = x.shape[1] - n_after
            wanted = x[0] @ unit
            wanted[n_before : stop - end.shape[1]] = (instruction[layer] @ unit.double()).float()
            wanted[stop - end.shape[1] : stop] = (end[layer] @ unit.double()).float()
            wanted[stop:] = (end[layer, -1] @ unit.double()).float()
            x[0] += (wanted - x[0] @ unit)[:, None] * unit
            return (x, *args[1:])

        return hook

    return [
        (block.register_forward_pre_hook, setting(layer))
        for layer, block in enumerate(hf.model.layers)
        if layer >= first
    ]


@pytest.mark.parametrize("reference", ["zero", "harmless"])
@pytest.mark.parametrize("opening", [(), (40, 41)], ids=["", "opening"])
def test_scores_equal_a_plain_loop(tiny_hf, tiny_hooked, opening, reference):
    hf, tokenizer = tiny_hf
    metric = RefusalMetric(opening, (10, 11), (12, 13))
    directions = geometry.difference_in_means(tiny_hooked, VALIDATION)
    places = [(-1, 2), (-5, 1), (-3, 3)]
    scores = geometry.score(tiny_hooked, directions, VALIDATION, metric, places=places, reference=reference)
    found = scores.table.set_index(["position", "layer"])
    means = {side: plain_means(hf, tokenizer, texts) for side, texts in (("no", HARMLESS), ("yes", HARMFUL))}

    def run(text, *, forced, hooks=()):
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        handles = [register(function) for register, function in hooks]
        with torch.no_grad():
            p = hf(torch.tensor([[*ids, *forced]])).logits[0, -1].double().softmax(-1)
        for handle in handles:
            handle.remove()
        return p

    def refusal(p):
        return (p[[10, 11]].sum().log() - p[[12, 13]].sum().log()).item()

    for position, layer in places:
        r = directions.values[directions.positions.index(position), layer].float()
        unit = r / r.norm()
        out = lambda x, unit=unit: x - (x @ unit)[..., None] * unit  # noqa: E731
        ablation = []
        for block in hf.model.layers:
            ablation += [
                (block.register_forward_pre_hook, lambda _, a, out=out: (out(a[0]), *a[1:])),
                (block.self_attn.register_forward_hook, lambda _m, _a, o, out=out: (out(o[0]), *o[1:])),
                (block.mlp.register_forward_hook, lambda _m, _a, o, out=out: out(o)),
            ]
        block = hf.model.layers[layer]
        addition = [(block.register_forward_pre_hook, lambda _, a, r=r: (a[0] + r, *a[1:]))]
        if reference == "harmless":
            ablation, addition = (
                plain_setting(hf, means[side], unit, first=layer, n_after=len(opening)) for side in ("no", "yes")
            )
        bypass = np.mean([refusal(run(text, forced=opening, hooks=ablation)) for text in HARMFUL])
        induce = np.mean([refusal(run(text, forced=opening, hooks=addition)) for text in HARMLESS])
        divergences = []
        for text in HARMLESS:
            if reference == "harmless":
                ablation = plain_setting(hf, means["no"], unit, first=layer, n_after=0)
            p, q = run(text, forced=()), run(text, forced=(), hooks=ablation)
            divergences.append((p * ((p + 1e-6).log() - (q + 1e-6).log())).sum().item())
        scored = found.loc[(position, layer)]
        assert scored["bypass"] == pytest.approx(bypass, abs=FORWARD)
        assert scored["induce"] == pytest.approx(induce, abs=FORWARD)
        assert scored["kl"] == pytest.approx(np.mean(divergences), abs=FORWARD)
    assert found["bypass"].std() > 1e-2


def test_every_candidate_that_could_win_is_scored(tiny_hooked):
    directions = geometry.difference_in_means(tiny_hooked, VALIDATION)
    directions.values[1, 2] = NAN
    scores = geometry.score(tiny_hooked, directions, VALIDATION, RefusalMetric((), (10,), (12,)))
    found = carriers.select(scores, 4)
    scores = scores.table
    assert set(zip(scores["position"], scores["layer"], strict=True)) == {
        (p, x) for p in range(-5, 0) for x in range(3)
    }
    bad = (scores["position"] == -4) & (scores["layer"] == 2)
    assert scores[bad][["bypass", "induce", "kl"]].isna().all(axis=None)
    assert not scores[(scores["layer"] > 0) & ~bad].isna().any(axis=None)
    assert found.table["rejected_because"][bad.idxmax()] == "a score is NaN"


@pytest.mark.parametrize("reference", ["zero", "harmless"])
def test_a_table_and_the_scores_that_it_is_from_choose_the_same(tiny_hooked, reference):
    directions = geometry.difference_in_means(tiny_hooked, VALIDATION)
    scores = geometry.score(tiny_hooked, directions, VALIDATION, RefusalMetric((), (10,), (12,)), reference=reference)
    anything = Admissible(kl=1e9, induce=-1e9)
    found, plain = geometry.select(scores, admissible=anything), geometry.select(scores.table, 4, anything)
    pd.testing.assert_frame_equal(found.table, plain.table)
    carrier, other = found.winner, plain.winner
    assert (carrier.place, carrier.row, carrier.kind) == (other.place, other.row, other.kind)
    direction = carrier.direction
    assert torch.equal(direction.vector, directions.values[directions.row(carrier.position), carrier.layer])
    assert (carrier.reference, direction.reference, direction.weights) == (reference, reference, tiny_hooked.weights)
    assert (direction.position, direction.layer) == carrier.place
    assert (other.reference, other.direction) == (None, None)
    for name in ("bypass", "induce", "kl"):
        told, by_prompt = getattr(carrier, name), getattr(scores, name)[carrier.row]
        assert told.value == pytest.approx(getattr(other, name).value) == pytest.approx(by_prompt.mean())
        assert told.low < told.value < told.high
        assert told.n == len(by_prompt)
    half = stats.t.ppf(0.975, 2) * scores.bypass[carrier.row].std(ddof=1) / np.sqrt(3)
    assert carrier.bypass.high - carrier.bypass.low == pytest.approx(2 * half)


def test_candidates():
    directions = geometry.Directions(
        torch.zeros(2, 4, 8), (-2, -1), ("a", "b"), 1, 1, "", torch.zeros(2, 16, 2, 4, 8), torch.ones(2, 16)
    )  # fmt: skip
    found = carriers.candidates(directions, layers=[0, 3])
    assert found == [(-2, 0), (-2, 3), (-1, 0), (-1, 3)]
    assert carriers.candidates(directions, layers=[1], positions=[-1]) == [(-1, 1)]


def test_no_validation_prompts(tiny_hooked):
    directions = geometry.difference_in_means(tiny_hooked, VALIDATION)
    with pytest.raises(MechrefusalError, match="empty"):
        geometry.score(tiny_hooked, directions, VALIDATION.take(0), RefusalMetric((), (10,), (12,)))
