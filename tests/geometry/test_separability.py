from itertools import chain

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mechrefusal import geometry, prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.geometry import Separability
from mechrefusal.geometry.contrast import labels
from mechrefusal.geometry.resampling import blocks_of
from mechrefusal.geometry.separability import ALL_LAYERS, difference

N, D_MODEL = 8, 12
BLOCKS = np.arange(2 * N) % N


def activations(distance: float, seed: int = 0) -> np.ndarray:
    """One layer of N harmful and N harmless prompts, [1, prompt, d_model]."""
    made = np.random.default_rng(seed).normal(size=(1, 2 * N, D_MODEL))
    made[:, :N, 0] += distance
    return made


def by_hand(x: np.ndarray, blocks: np.ndarray, times: np.ndarray) -> tuple[float, np.ndarray]:
    """d' and projections of prompts that are drawn so many `times`, in loops over copies."""
    projected = np.full(len(x), np.nan)
    for i in np.flatnonzero(times):
        others = [j for j in range(len(x)) for _ in range(int(times[j])) if blocks[j] != blocks[i]]
        harmful, harmless = (x[[j for j in others if (j < N) is side]].mean(axis=0) for side in (True, False))
        along = (harmful - harmless) / np.linalg.norm(harmful - harmless)
        projected[i] = (x[i] - (harmful + harmless) / 2) @ along
    copies = [np.repeat(projected[side], times[side].astype(int)) for side in (slice(0, N), slice(N, None))]
    pooled = np.sqrt((copies[0].var(ddof=1) + copies[1].var(ddof=1)) / 2)
    return (copies[0].mean() - copies[1].mean()) / pooled, projected


@pytest.mark.parametrize("blocks", [BLOCKS, np.arange(2 * N)], ids=["twins", "alone"])
def test_every_prompt_is_projected_on_the_direction_of_the_others(blocks):
    x = activations(2.0)
    found = Separability.of_activations(x, N, blocks=blocks, n_draws=5)
    expected, projected = by_hand(x[0], blocks, np.ones(2 * N))
    assert found.values == pytest.approx([expected])
    assert found.auc == pytest.approx([roc_auc_score(np.arange(2 * N) < N, projected)])
    drawn = np.random.default_rng(0).multinomial(found.n, np.full(found.n, 1 / found.n), size=5)[:, blocks]
    for draw, times in zip(found.draws[:, 0], drawn, strict=True):
        if min((times[:N] > 0).sum(), (times[N:] > 0).sum()) > 2:
            assert draw == pytest.approx(by_hand(x[0], blocks, times)[0])


def test_classes_that_do_not_differ_are_no_distance_apart_on_average():
    found = [Separability.of_activations(activations(0.0, seed), N, n_draws=2).values[0] for seed in range(200)]
    # The standard error of the mean of 200 values; a direction that the prompts had a part in would give 3 and more.
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found)) + 0.1


def test_two_models_are_compared_on_the_same_draws():
    first = Separability.of_activations(activations(1.5), N, blocks=BLOCKS)
    same = Separability.of_activations(2.0 * activations(1.5) + 1.0, N, blocks=BLOCKS)
    none = difference(first.mean.value, same.mean.value, first.mean_draws, same.mean_draws, first.n)
    assert [none.value, none.low, none.high] == pytest.approx([0, 0, 0], abs=1e-9)
    further = Separability.of_activations(activations(6.0), N, blocks=BLOCKS)
    change = difference(first.mean.value, further.mean.value, first.mean_draws, further.mean_draws, first.n)
    assert 0 < change.low < change.value < change.high
    with pytest.raises(MechrefusalError, match="1000 draws cannot be set beside 999"):
        difference(0.0, 0.0, first.mean_draws, first.mean_draws[1:], 8)


def test_layers_without_information_have_no_value_and_say_why():
    layers = np.concatenate([np.ones((1, 2 * N, D_MODEL)), activations(2.0)])
    table = Separability.of_activations(layers, N, n_draws=50).table.set_index("layer")
    assert np.isnan(table.loc[0, "value"])
    assert table.loc[0, "reason"] == "activations are the same for every prompt"
    assert table.loc[1, "low"] < table.loc[1, "value"] < table.loc[1, "high"]
    assert table.loc[ALL_LAYERS, ["value", "low", "high"]].tolist() == table.loc[1, ["value", "low", "high"]].tolist()
    nothing = Separability.of_activations(layers[:1], N, n_draws=5)
    assert np.isnan(nothing.mean.value)
    assert "the same for every prompt" in nothing.reason


def test_a_model_is_read_at_the_input_of_every_layer(tiny_hf, tiny_hooked):
    split = prompts.builtin().direction.take(4)
    model, tokenizer = tiny_hf
    ids = prompts.prompt_ids(tokenizer, [*split.harmful, *split.harmless])
    with torch.no_grad():
        states = [model(torch.tensor([each]), output_hidden_states=True).hidden_states for each in ids]
    stream = np.stack([np.stack([layer[0, -1].double().numpy() for layer in each[:-1]]) for each in states], axis=1)
    blocks = blocks_of([*chain(*labels(split))])
    expected = Separability.of_activations(stream, len(split.harmful), blocks=blocks, n_draws=10)
    found = geometry.Separability.of(tiny_hooked, split)
    assert found.values[1:] == pytest.approx(expected.values[1:], rel=1e-3)  # float32 through two implementations
    few = geometry.Separability.of(tiny_hooked, prompts.builtin().direction.take(2))
    assert few.reason == "2 harmful and 2 harmless prompts; at least 3 of each are needed"
    assert few.table["value"].isna().all()
