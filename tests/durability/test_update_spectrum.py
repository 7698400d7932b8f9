"""Spectrum of the update: singular directions by hand, parts of an update, and a refusal that one direction carries."""

import copy
import dataclasses

import numpy as np
import planted_refusal
import pytest
import torch
from peft import LoraConfig, get_peft_model
from planted_refusal import HARMFUL, HARMLESS, LAYER, U
from tolerances import FORWARD, REORDERED

from mechrefusal import durability, geometry, models
from mechrefusal.durability.settings import UpdateSpectrumSettings
from mechrefusal.durability.update_spectrum import RANDOM, REST, REST_OF_RANDOM, SCALED, TOP
from mechrefusal.durability.weight_updates import WeightUpdate
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import complete
from mechrefusal.geometry.contrast import Lists
from mechrefusal.statistics import intervals

SETTINGS = UpdateSpectrumSettings(n_prompts=6, ranks=(1, 3), scales=(0.0, 0.5), n_random=2, max_new_tokens=1)
ASKED = Lists(HARMFUL[:6], HARMLESS[:6])
O_PROJ = f"model.layers.{LAYER}.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model before and after it learnt to refuse: one singular direction, and noise in every weight beside it."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    planted_refusal.make(folder)
    trained, tokenizer = models.load_causal_lm(folder)
    start = copy.deepcopy(trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in start.parameters():
            weights += 1e-3 * torch.randn(weights.shape, generator=generator)
        start.get_parameter(O_PROJ)[U] = 0
    return start, trained, tokenizer


@pytest.fixture(scope="module")
def spectrum(pair):
    start, trained, tokenizer = pair
    judge = planted_refusal.OpeningJudge(tokenizer)
    before = {name: weights.clone() for name, weights in trained.named_parameters()}
    found = durability.spectrum_of_update(start, trained, tokenizer, ASKED, judge, SETTINGS)
    assert all(torch.equal(weights, before[name]) for name, weights in trained.named_parameters())
    return found


def test_matrices_have_the_singular_values_of_the_difference(pair, spectrum):
    start, trained, _ = pair
    before, after = dict(start.named_parameters()), dict(trained.named_parameters())
    matrices = [name for name, weights in after.items() if weights.ndim == 2]
    assert len(spectrum.matrices) == len(matrices)
    for row, name in zip(spectrum.matrices.itertuples(), matrices, strict=True):
        difference = (after[name].double() - before[name].double()).detach().numpy()
        values = np.linalg.svd(difference, compute_uv=False)
        assert row.largest == pytest.approx(values[0], rel=REORDERED)
        assert row.norm == pytest.approx(np.linalg.norm(difference), rel=REORDERED)
        assert row.relative_norm == pytest.approx(row.norm / float(before[name].detach().norm()), rel=REORDERED)
        for column, weight in (("effective_rank", "sigma"), ("effective_rank_squared", "sigma_squared")):
            expected = geometry.effective_rank(difference, scaling="raw", weight=weight)
            assert getattr(row, column) == pytest.approx(expected, rel=FORWARD)
        assert (row.n_rows, row.n_columns) == difference.shape
    of_layer = spectrum.matrices[spectrum.matrices["layer"] == LAYER].set_index("matrix")
    names = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
    assert set(of_layer.index) == {f"{part}.{x}_proj" for part, all_of in names.items() for x in all_of}
    o_proj = of_layer.loc["self_attn.o_proj"]
    assert o_proj["effective_rank_squared"] == pytest.approx(1, abs=0.002)
    assert 30 < o_proj["random"] < 64 < of_layer.loc["mlp.up_proj", "n_rows"]
    assert of_layer.loc["mlp.up_proj", "effective_rank"] == pytest.approx(
        of_layer.loc["mlp.up_proj", "random"], rel=0.05
    )
    assert set(spectrum.matrices.loc[spectrum.matrices["layer"].isna(), "matrix"]) == {"model.embed_tokens", "lm_head"}


def test_parts_of_an_update_are_those_of_numpy_and_add_up(pair):
    start, trained, _ = pair
    update = WeightUpdate.between(start, trained, largest=3, n_random=1)
    before, after = (
        {name: weights.detach() for name, weights in model.named_parameters()} for model in (start, trained)
    )
    kept, rest, random, rest_of_random = (
        dict(part) for part in (update.kept(2), update.without(2), update.kept(2, draw=0), update.without(2, draw=0))
    )
    half, all_of_it, nothing = (dict(update.scaled(scale)) for scale in (0.5, 1.0, 0.0))
    for name, weights in after.items():
        assert torch.equal(all_of_it[name], weights)
        assert torch.equal(nothing[name], before[name])
        torch.testing.assert_close(half[name], (before[name] + weights) / 2, atol=REORDERED, rtol=0)
        for part, other in ((kept, rest), (random, rest_of_random)):
            torch.testing.assert_close(part[name] + other[name], before[name] + weights, atol=REORDERED, rtol=0)
        if weights.ndim == 1:  # norms have no singular directions: they remain
            assert torch.equal(kept[name], before[name])
            assert torch.equal(rest[name], weights)
            continue
        u, s, v = np.linalg.svd((weights.double() - before[name].double()).numpy(), full_matrices=False)
        expected = before[name].numpy() + (u[:, :2] * s[:2]) @ v[:2]
        np.testing.assert_allclose(kept[name].numpy(), expected, atol=REORDERED)
        # A draw is a sum of two singular directions: what remains has neither its columns nor its rows.
        drawn, remains = ((part[name] - before[name]).double() for part in (random, rest_of_random))
        assert int(torch.linalg.matrix_rank(drawn, rtol=1e-2)) == 2
        for product in (drawn @ remains.T, drawn.T @ remains):
            assert float(product.norm()) < 1e-3 * float((drawn + remains).norm()) ** 2
    whole = sum(float((after[n] - before[n]).double().square().sum()) for n in after)
    top = sum(float((kept[n] - before[n]).double().square().sum()) for n in after)
    assert update.share(2) == pytest.approx(top / whole, rel=FORWARD)
    assert update.share(2, draw=0) < update.share(2)


def test_one_singular_direction_carries_the_refusal_and_no_random_one_does(spectrum):
    table = spectrum.table.set_index(["kept", "k", "draw", "scale", "side"]).sort_index()
    none = np.nan
    refused = {
        (kept, k): table.loc[(kept, k, slice(None), none, "harmful"), "refused"].tolist()
        for kept in (TOP, REST, RANDOM, REST_OF_RANDOM)
        for k in (1, 3)
    }
    assert refused[TOP, 1] == refused[TOP, 3] == [1]
    assert refused[REST, 1] == refused[REST, 3] == [0]
    assert len(refused[RANDOM, 1]) == len(refused[REST_OF_RANDOM, 1]) == 2
    # A draw of few among 60 directions misses the one, unless it happens to hold it.
    o_proj = spectrum.matrices.query("layer == @LAYER and matrix == 'self_attn.o_proj'").iloc[0]
    assert 60 <= o_proj["rank"] <= 64
    assert refused[RANDOM, 1] == [0, 0]
    assert refused[REST_OF_RANDOM, 1] == [1, 1]
    assert (spectrum.table.loc[spectrum.table["side"] == "harmless", "refused"] == 0).all()


def test_scales_are_those_of_a_model_whose_weights_were_set_by_hand(pair, spectrum):
    start, trained, tokenizer = pair
    scaled = spectrum.table[(spectrum.table["kept"] == SCALED) & (spectrum.table["side"] == "harmful")]
    assert scaled["scale"].tolist() == [0.0, 0.5, 1.0]
    judge = planted_refusal.OpeningJudge(tokenizer)
    by_hand = copy.deepcopy(trained)
    for row in scaled.itertuples():
        with torch.no_grad():
            for name, weights in by_hand.named_parameters():
                first, last = start.get_parameter(name), trained.get_parameter(name)
                weights.copy_(first + row.scale * (last - first))
        texts = complete(by_hand, ASKED.harmful, tokenizer=tokenizer, max_new_tokens=1).texts
        refused = (judge.judge(ASKED.harmful, texts)["label"] == "full_refusal").tolist()
        assert row.refused == np.mean(refused)
        values = spectrum.observations.of(kept=SCALED, k=None, scale=row.scale, side="harmful", measure="refused")
        assert values.tolist() == refused
        wilson = intervals.rate(sum(refused), 6)
        assert (row.low, row.high, row.n) == (wilson.low, wilson.high, 6)
        assert row.change == row.refused - 1
        assert row.share == row.scale**2


def test_a_merged_adapter_has_the_rank_of_the_adapter(tiny_hf):
    start = tiny_hf[0]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    trained = get_peft_model(copy.deepcopy(start), config).merge_and_unload()
    update = WeightUpdate.between(start, trained, largest=4, n_random=1)
    ranks = {(each.matrix, each.rank) for each in update.spectra if each.norm}
    assert ranks == {("self_attn.q_proj", 2), ("mlp.down_proj", 2)}
    # All directions there are, drawn or from the top, are the whole update.
    for part in (update.kept(4), update.kept(4, draw=0)):
        for name, weights in part:
            torch.testing.assert_close(weights, trained.get_parameter(name), atol=REORDERED, rtol=0)
    unchanged = next(each for each in update.spectra if each.matrix == "self_attn.k_proj")
    assert np.isnan(unchanged.effective_rank("sigma"))


def test_tied_embeddings_are_one_matrix_and_change_both_ends(tiny_hf):
    start = tiny_hf[0]
    assert start.config.tie_word_embeddings
    trained = copy.deepcopy(start)
    with torch.no_grad():
        trained.get_input_embeddings().weight += 0.1
    update = WeightUpdate.between(start, trained, largest=1, n_random=0)
    changed = [each for each in update.spectra if each.norm]
    assert [(each.parameter, each.layer, each.rank) for each in changed] == [("model.embed_tokens.weight", None, 1)]
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected, now = start(tokens).logits, trained(tokens).logits
        with update.in_place(trained, update.without(1)):
            torch.testing.assert_close(trained(tokens).logits, expected, atol=FORWARD, rtol=0)
            assert trained.lm_head.weight is trained.model.embed_tokens.weight
        assert torch.equal(trained(tokens).logits, now)


def _ask_and_fail(model, before):
    assert not torch.equal(model.get_parameter(O_PROJ), before[O_PROJ])
    raise RuntimeError("no such judge")


def test_weights_are_put_back_whatever_happens(pair):
    start, trained, _ = pair
    update = WeightUpdate.between(start, trained, largest=1, n_random=0)
    before = {name: weights.clone() for name, weights in trained.named_parameters()}
    fails = pytest.raises(RuntimeError, match="no such judge")
    with fails, update.in_place(trained, update.kept(1)):
        _ask_and_fail(trained, before)
    assert all(torch.equal(weights, before[name]) for name, weights in trained.named_parameters())


def test_what_has_no_update_is_named(pair, tiny_hf):
    start, trained, tokenizer = pair
    judge = planted_refusal.OpeningJudge(tokenizer)
    with pytest.raises(MechrefusalError, match=r"differ in 1 parameters \('lm_head.weight'\)"):
        durability.spectrum_of_update(tiny_hf[0], trained, tokenizer, ASKED, judge, SETTINGS)
    with pytest.raises(MechrefusalError, match="got 6 and 0"):
        durability.spectrum_of_update(start, trained, tokenizer, Lists(HARMFUL[:6], []), judge, SETTINGS)
    other = copy.deepcopy(trained)
    other.resize_token_embeddings(1030, mean_resizing=False)
    with pytest.raises(MechrefusalError, match=r"has shape \(\d+, 64\) before and \(1030, 64\) after"):
        WeightUpdate.between(start, other, largest=1, n_random=0)
    for given in ({"ranks": (0,)}, {"ranks": (2, 2)}, {"scales": (float("inf"),)}, {"n_random": -1}):
        (name,) = given
        with pytest.raises(MechrefusalError, match=f"durability update_spectrum.{name}"):
            dataclasses.replace(SETTINGS, **given)
