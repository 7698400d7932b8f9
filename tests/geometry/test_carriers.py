"""The rule of selection on hand-made tables, and the scores against plain loops with hooks."""

import numpy as np
import pandas as pd
import pytest
import torch
from tolerances import FORWARD, ROUNDED

from mechrefusal import MechrefusalError, geometry
from mechrefusal.forward import RefusalMetric
from mechrefusal.geometry import carriers
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
        assert found.winner[["position", "layer", "bypass", "induce", "kl"]].tolist() == [-2, 3, -3.0, 2.0, 0.05]
        assert found.winner.name == 2
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
        assert found.winner["position"] == -2
        assert "NaN" in found.table["rejected_because"][0]
        assert carriers.select(scores[:1], 10).winner is None

    def test_thresholds_are_admitted_at_the_border(self):
        inside = table((-1, 0, 0.0, 0.0, 0.1))
        assert carriers.select(inside, 10).winner is not None
        for column, value in (("kl", np.nextafter(0.1, 1)), ("induce", np.nextafter(0.0, -1))):
            assert carriers.select(inside.assign(**{column: value}), 10).winner is None
        assert carriers.select(inside, 10, 0.09).winner is None
        assert carriers.select(inside, 10, 0.1, 0.01).winner is None
        assert carriers.select(inside.assign(kl=5.0, induce=-3.0), 10, 5.0, -3.0).winner is not None

    @pytest.mark.parametrize(("n_layers", "limit"), [(5, 4), (30, 24), (32, 25), (10, 8), (1, 0), (4, 3), (18, 14)])
    def test_late_layers_are_pruned(self, n_layers, limit):
        """int(0.8 · n): 4, 24, 25.6, 8, 0.8, 3.2, 14.4."""
        scores = table(*[(-1, layer, 0.0, 1.0, 0.0) for layer in range(n_layers)])
        admitted = carriers.select(scores, n_layers).table
        assert admitted[admitted["admissible"]]["layer"].tolist() == list(range(limit))
        assert carriers.last_layer(n_layers) == limit

    def test_no_pruning(self):
        scores = table((-1, 9, 0.0, 1.0, 0.0))
        assert carriers.select(scores, 10, prune_layer_fraction=0.0).winner is not None
        assert carriers.select(scores, 10, prune_layer_fraction=1.0).winner is None

    def test_ties_go_to_the_earlier_layer_then_position(self):
        scores = table((-1, 3, 1.0, 1.0, 0.0), (-1, 2, 1.0, 1.0, 0.0), (-4, 2, 1.0, 1.0, 0.0), (-5, 3, 1.0, 1.0, 0.0))
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
            winner = carriers.select(scores.iloc[order], 10).winner
            assert (winner["layer"], winner["position"]) == (2, -4)

    def test_the_given_table_is_not_changed(self):
        scores = table((-1, 9, 0.0, 1.0, 0.0), (-1, 1, 0.0, 1.0, 0.0))
        scores.index = [7, 7]
        scores["note"] = ["a", "b"]
        before = scores.copy(deep=True)
        found = carriers.select(scores, 10)
        pd.testing.assert_frame_equal(scores, before)
        assert found.table["note"].tolist() == ["a", "b"], "every candidate is kept, in order"
        assert found.winner["note"] == "b"

    def test_nobody(self):
        for scores in (table(), table((-1, 9, 0.0, 1.0, 0.0))):
            found = carriers.select(scores, 10)
            assert found.winner is None
            assert len(found.table) == len(scores)
            assert {"admissible", "rejected_because"} <= set(found.table)

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
    rows = [{"position": -1, "layer": 2}, {"position": -5, "layer": 1}, {"position": -3, "layer": 3}]
    scores = geometry.score(tiny_hooked, directions, VALIDATION, metric, rows=rows, reference=reference)
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

    for row in rows:
        r = directions.values[directions.positions.index(row["position"]), row["layer"]].float()
        unit = r / r.norm()
        out = lambda x, unit=unit: x - (x @ unit)[..., None] * unit  # noqa: E731
        ablation = []
        for block in hf.model.layers:
            ablation += [
                (block.register_forward_pre_hook, lambda _, a, out=out: (out(a[0]), *a[1:])),
                (block.self_attn.register_forward_hook, lambda _m, _a, o, out=out: (out(o[0]), *o[1:])),
                (block.mlp.register_forward_hook, lambda _m, _a, o, out=out: out(o)),
            ]
        block = hf.model.layers[row["layer"]]
        addition = [(block.register_forward_pre_hook, lambda _, a, r=r: (a[0] + r, *a[1:]))]
        if reference == "harmless":
            ablation, addition = (
                plain_setting(hf, means[side], unit, first=row["layer"], n_after=len(opening)) for side in ("no", "yes")
            )
        bypass = np.mean([refusal(run(text, forced=opening, hooks=ablation)) for text in HARMFUL])
        induce = np.mean([refusal(run(text, forced=opening, hooks=addition)) for text in HARMLESS])
        divergences = []
        for text in HARMLESS:
            if reference == "harmless":
                ablation = plain_setting(hf, means["no"], unit, first=row["layer"], n_after=0)
            p, q = run(text, forced=()), run(text, forced=(), hooks=ablation)
            divergences.append((p * ((p + 1e-6).log() - (q + 1e-6).log())).sum().item())
        scored = found.loc[(row["position"], row["layer"])]
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


def test_candidates():
    directions = geometry.Directions(
        torch.zeros(2, 4, 8), (-2, -1), ("a", "b"), 1, 1, "", torch.zeros(2, 16, 2, 4, 8), torch.ones(2, 16)
    )  # fmt: skip
    found = carriers.candidates(directions, layers=[0, 3])
    assert [(row["position"], row["layer"]) for row in found] == [(-2, 0), (-2, 3), (-1, 0), (-1, 3)]
    assert carriers.candidates(directions, layers=[1], positions=[-1]) == [{"position": -1, "layer": 1}]


def test_no_validation_prompts(tiny_hooked):
    directions = geometry.difference_in_means(tiny_hooked, VALIDATION)
    with pytest.raises(MechrefusalError, match="empty"):
        geometry.score(tiny_hooked, directions, VALIDATION.take(0), RefusalMetric((), (10,), (12,)))
