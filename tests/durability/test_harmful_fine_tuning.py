"""Fine-tuning in memory: against a loop by hand, and the weights are back to the last bit whatever happens."""

import copy
import math

import pytest
import safetensors.torch
import torch
from judging import ByHash

from mechrefusal import durability, prompts, study
from mechrefusal.durability.harmful_fine_tuning import train
from mechrefusal.durability.kept_weights import KeptWeights, hash_weights, kept_weights
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import complete
from mechrefusal.evaluation.judges import FULL_REFUSAL

SETTINGS = durability.HarmfulFineTuningSettings(
    n_prompts=3, n_examples=(2, 3), n_draws=2, epochs=2, learning_rate=3e-3, batch_size=2, max_new_tokens=3, seed=5
)


@pytest.fixture(scope="module")
def builtin():
    return prompts.builtin()


@pytest.fixture
def fresh(tiny_hf):
    return copy.deepcopy(tiny_hf[0])


def examples(tokenizer, chosen):
    """Prompt and target as token ids, by the chat template and the tokenizer alone."""
    table = chosen.with_targets().table
    for text, target in zip(table["text"], table["target"], strict=True):
        asked = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        yield tuple(ids), tuple(tokenizer(target, add_special_tokens=False)["input_ids"])


def trained_by_hand(model, rows, settings, seed):
    """Adam's formula on one unpadded row at a time; the losses of the epochs."""
    weights = list(model.parameters())
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    generator, losses, step = torch.Generator().manual_seed(seed), [], 0
    for _ in range(settings.epochs):
        order, summed, counted = torch.randperm(len(rows), generator=generator).tolist(), 0.0, 0
        for start in range(0, len(rows), settings.batch_size):
            batch = [rows[i] for i in order[start : start + settings.batch_size]]
            n = sum(len(target) for _, target in batch)
            loss = 0.0
            for prompt, target in batch:
                logits = model(torch.tensor([[*prompt, *target]])).logits[0].log_softmax(-1)
                places = range(len(prompt) - 1, len(prompt) + len(target) - 1)
                loss = loss - sum(logits[place, token] for place, token in zip(places, target, strict=True))
            gradients, step = torch.autograd.grad(loss / n, weights), step + 1
            with torch.no_grad():
                for weight, gradient, m, v in zip(weights, gradients, first, second, strict=True):
                    m.mul_(0.9).add_(gradient, alpha=0.1)
                    v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                    scale = settings.learning_rate / (1 - 0.9**step)
                    weight -= scale * m / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            summed, counted = summed + loss.item(), counted + n
        losses.append(summed / counted)
    return losses


def test_training_is_that_of_a_loop_by_hand(tiny_hf, fresh, builtin):
    tokenizer, other = tiny_hf[1], copy.deepcopy(fresh)
    rows = list(examples(tokenizer, builtin.pool.harmful[:3]))
    losses = train(fresh, rows, SETTINGS, pad=tokenizer.pad_token_id, seed=1)
    assert losses == pytest.approx(trained_by_hand(other, rows, SETTINGS, 1), abs=1e-4)
    assert losses[1] < losses[0]
    moved = 0.0
    for (name, weight), expected in zip(fresh.named_parameters(), other.parameters(), strict=True):
        # Adam divides by the gradient's size: where that is rounding alone, its sign is chance.
        assert (weight - expected).abs().mean() < 1e-4, name
        moved = max(moved, (weight - dict(tiny_hf[0].named_parameters())[name]).abs().max().item())
    assert moved > 4 * SETTINGS.learning_rate * 0.9


def test_refusals_are_those_of_models_trained_by_hand_and_weights_are_back(tiny_hf, fresh, builtin, monkeypatch):
    tokenizer, judge = tiny_hf[1], ByHash()

    def forbidden(*_, **__):
        raise AssertionError("weights must not be written")

    for owner, name in ((type(fresh), "save_pretrained"), (torch, "save"), (safetensors.torch, "save_file")):
        monkeypatch.setattr(owner, name, forbidden)
    fresh.model.layers[0].requires_grad_(False)
    fresh.train()
    asked, pool = builtin.evaluation, builtin.pool
    found = durability.after_harmful_examples(
        fresh, tokenizer, pool.harmful[:4], pool.harmless[:4], asked.harmful, asked.harmless, judge, settings=SETTINGS
    )
    before = tiny_hf[0].state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in fresh.state_dict().items())
    assert found.weights == hash_weights(tiny_hf[0]) == hash_weights(fresh)
    assert set(found.trainings["put_back"]) == {found.weights}
    assert fresh.training
    assert [weight.requires_grad for weight in fresh.model.layers[0].parameters()] == [False] * 9
    assert all(weight.requires_grad for weight in fresh.model.layers[1].parameters())
    assert all(weight.grad is None for weight in fresh.parameters())
    assert len(found.trainings) == 2 * 2 * 2
    assert found.trainings["n_steps"].tolist() == [2] * 4 + [4] * 4
    assert (found.trainings["loss_last"] < found.trainings["loss_first"]).all()
    for material, n, draw in (("harmful", 3, 1), ("harmless", 2, 0)):
        rows = list(examples(tokenizer, getattr(pool, material)[:4]))
        drawn = torch.randperm(4, generator=torch.Generator().manual_seed(5 + draw)).tolist()[:n]
        other = copy.deepcopy(tiny_hf[0])
        losses = trained_by_hand(other, [rows[i] for i in drawn], SETTINGS, 5 + draw)
        told = found.trainings.set_index(["material", "n_examples", "draw"]).loc[material, n, draw]
        assert told["loss_first"] == pytest.approx(losses[0], abs=1e-4)
        for side in ("harmful", "harmless"):
            texts = complete(other, getattr(asked, side).texts[:3], tokenizer=tokenizer, max_new_tokens=3).texts
            at = {"material": material, "n_examples": n, "draw": draw, "side": side, "measure": "refused"}
            assert found.observations.of(**at).tolist() == [judge.label(text) == FULL_REFUSAL for text in texts]
    table = found.table.set_index(["material", "n_examples", "draw", "side", "measure"])
    for key, row in table.iterrows():
        first = table.loc["none", 0, 0, *key[3:]]
        assert (
            math.isnan(row["difference"])
            if key[0] == "none"
            else row["difference"] == pytest.approx(row["value"] - first["value"])
        )


def test_where_examples_are_too_few_a_row_says_so(tiny_hf, fresh, builtin):
    settings = durability.HarmfulFineTuningSettings(n_prompts=1, n_examples=(3,), epochs=1, max_new_tokens=1)
    asked, pool = builtin.evaluation, builtin.pool
    found = durability.after_harmful_examples(
        fresh, tiny_hf[1], pool.harmful[:2], pool.harmless[:3], asked.harmful, asked.harmless, ByHash(),
        settings=settings,
    )  # fmt: skip
    reasons = found.table.groupby("material")["reason"].unique().map(list).to_dict()
    assert reasons == {"none": [""], "harmful": ["there are 2 harmful examples"], "harmless": [""]}
    assert found.table.loc[found.table["material"] == "harmful", "value"].isna().all()


def test_weights_are_back_where_something_fails(tiny_hf, fresh, builtin):
    class Fails(ByHash):
        calls = 0

        def judge(self, prompts, completions):
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("the judge fails")
            return super().judge(prompts, completions)

    asked, pool, before = builtin.evaluation, builtin.pool, hash_weights(fresh)
    with pytest.raises(RuntimeError, match="the judge fails"):
        durability.after_harmful_examples(
            fresh, tiny_hf[1], pool.harmful, pool.harmless, asked.harmful, asked.harmless, Fails(), settings=SETTINGS
        )
    assert hash_weights(fresh) == before


def test_a_training_that_diverges_is_a_row_that_says_so(tiny_hf, fresh, builtin):
    asked, pool, before = builtin.evaluation, builtin.pool, hash_weights(fresh)
    settings = durability.HarmfulFineTuningSettings(1, (2,), epochs=3, learning_rate=1e30, max_new_tokens=1)
    found = durability.after_harmful_examples(
        fresh, tiny_hf[1], pool.harmful, pool.harmless, asked.harmful, asked.harmless, ByHash(), settings=settings
    )
    rows = found.table[found.table["material"] != "none"]
    assert rows["reason"].str.contains("epoch [12]: give a smaller learning_rate than 1e\\+30", regex=True).all()
    assert rows["value"].isna().all()
    assert len(found.trainings) == 0
    assert found.table.loc[found.table["material"] == "none", "n"].eq(1).all()
    assert hash_weights(fresh) == before == found.weights


def test_the_hash_sees_a_single_bit_and_a_copy_that_is_damaged_is_refused(fresh):
    before = hash_weights(fresh)
    kept = KeptWeights(fresh)
    weight = fresh.model.norm.weight
    with torch.no_grad():
        weight.view(torch.int32)[3] ^= 1
    assert hash_weights(fresh) != before
    kept.put_back()
    assert hash_weights(fresh) == before == kept.hash
    kept._copies["model.norm.weight"][0] += 1
    with pytest.raises(MechrefusalError, match="open the model again"):
        kept.put_back()
    half = copy.deepcopy(fresh).to(torch.bfloat16)
    with kept_weights(half) as of_half, torch.no_grad():
        half.model.norm.weight.zero_()
    assert hash_weights(half) == of_half.hash != before


def test_what_cannot_be_trained_or_was_asked_is_refused(tiny_hooked, tiny_hf, builtin):
    asked, pool = builtin.evaluation, builtin.pool
    with pytest.raises(MechrefusalError, match="trains plain weights"):
        durability.after_harmful_examples(
            tiny_hooked, tiny_hf[1], pool.harmful, pool.harmless, asked.harmful, asked.harmless, ByHash(),
            settings=SETTINGS,
        )  # fmt: skip
    with pytest.raises(MechrefusalError, match="3 held-out prompts are among the examples, the first of them 'twin-"):
        durability.after_harmful_examples(
            *tiny_hf, asked.harmful[:5], pool.harmless, asked.harmful, asked.harmless, ByHash(), settings=SETTINGS
        )


def test_default_examples_are_there():
    chosen = study.choose_prompts(study.load_recipe("full"))
    most = max(durability.HarmfulFineTuningSettings().n_examples)
    assert min(len(chosen.behaviours), len(chosen.instructions)) >= most
