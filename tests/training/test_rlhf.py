"""RLHF by GRPO: its formulas against an independent computation, its prompts, its rewards, its samples."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_preference_arms import SETTINGS
from tolerances import FORWARD

from mechrefusal import MechrefusalError, models, prompts, training
from mechrefusal.training import LoraSettings, RLHFSettings, TrainingSettings, data, rewards
from mechrefusal.training.registry import arm_named
from mechrefusal.training.trainer_setup import ArmInputs, TrainerSetup


def by_tokens(completions, completion_ids, kind, **given) -> list[float]:
    """A reward that tells the answers of a random model apart."""
    return [sum(tokens) % 97 / 97 + (asked == "harmful") for tokens, asked in zip(completion_ids, kind, strict=True)]


OWN = RLHFSettings(n_generations=3, completion_tokens=5, reward=by_tokens)


@pytest.fixture(scope="module")
def inputs(tiny) -> dict:
    built = prompts.builtin()
    return {
        "base": models.Checkpoint.open(tiny),
        "utility": [{"prompt": text, "answer": "Of course, here it is."} for text in built.utility_train.texts[:6]],
        "behaviours": built.pool.harmful[:5],
    }


def setup_of(inputs: dict, folder: Path, settings: TrainingSettings = SETTINGS, own=OWN) -> TrainerSetup:
    model, tokenizer = models.load_causal_lm(inputs["base"])
    of_arm = ArmInputs(arm_named("rlhf"), settings=settings, arm_settings=own, **inputs)
    return TrainerSetup(of_arm, model, tokenizer, folder, [])


@pytest.fixture
def generated(monkeypatch) -> list[dict]:
    """What the trainer generates and scores: token ids, kinds and advantages of each step."""
    from mechrefusal.training.rlhf_trainer import RLHFTrainer

    seen = []
    original = RLHFTrainer._generate_and_score_completions

    def noting(self, batch):
        result = original(self, batch)
        seen.append({"rows": [dict(row) for row in batch]} | {k: v.clone() for k, v in result.items() if v is not None})
        return result

    monkeypatch.setattr(RLHFTrainer, "_generate_and_score_completions", noting)
    return seen


def answers_of(batch: dict) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each row, without padding."""
    parts = []
    for n in range(len(batch["rows"])):
        prompt = batch["prompt_ids"][n][batch["prompt_mask"][n].bool()].tolist()
        parts.append((prompt, batch["completion_ids"][n][batch["completion_mask"][n].bool()].tolist()))
    return parts


def log_probs(model, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    ids = torch.tensor([prompt + answer])
    every = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
    return every.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_advantage_loss_and_gradient_are_the_published_ones(inputs, tmp_path, generated, beta):
    own = replace(OWN, temperature=0.7, beta=beta)
    log = training.train("rlhf", **inputs, out=tmp_path, settings=SETTINGS, arm_settings=own)
    assert len(generated) == 2  # once an optimiser step, not once a micro-batch
    base, _ = models.load_causal_lm(inputs["base"])
    for step, batch in enumerate(generated):
        model, _ = models.load_causal_lm(inputs["base"] if step == 0 else tmp_path / "step-00001")
        answers = answers_of(batch)
        assert len(answers) == 6 * 3
        loss = torch.zeros(())
        for start in range(0, len(answers), 3):
            group = list(range(start, start + 3))
            assert len({tuple(answers[n][0]) for n in group}) == 1
            paid = [sum(answers[n][1]) % 97 / 97 + (batch["rows"][n]["kind"] == "harmful") for n in group]
            mean = sum(paid) / 3
            deviation = math.sqrt(sum((value - mean) ** 2 for value in paid) / 2)
            for n, value in zip(group, paid, strict=True):
                advantage = (value - mean) / (deviation + 1e-4)
                assert batch["advantages"][n].item() == pytest.approx(advantage, abs=FORWARD)
                now = log_probs(model, *answers[n], 0.7)
                with torch.no_grad():
                    then = log_probs(base, *answers[n], 0.7)
                # The samples are of these very weights, so that the ratio is 1 and only its gradient counts.
                each = -(now - now.detach()).exp() * advantage + beta * ((then - now).exp() - (then - now) - 1)
                loss = loss + each.mean() / len(answers)
        assert log["loss"][step] == pytest.approx(loss.item(), abs=FORWARD)
        loss.backward()
        norm = torch.stack([weight.grad.norm() for weight in model.parameters() if weight.grad is not None]).norm()
        assert log["grad_norm"][step] == pytest.approx(norm.item(), rel=1e-3)
    terms = training.read_log(tmp_path, "terms")
    assert terms["weight"].isna().all()
    wide = terms.pivot(index="step", columns="term", values="value")
    assert set(wide) == set(arm_named("rlhf").logs) - (set() if beta else {"kl"})
    assert (wide["completions/mean_length"] <= 5).all()


def test_the_prompts_of_a_step_are_the_rows_of_every_arm(inputs, tmp_path, generated):
    settings = replace(SETTINGS, anchors=(0, 2))
    training.train("rlhf", **inputs, out=tmp_path, settings=settings, arm_settings=OWN)
    calm = list(data.schedule(inputs["utility"], 8, seed=0, name="utility"))
    harm = list(data.schedule(inputs["behaviours"].texts, 4, seed=0, name="harmful"))
    _, tokenizer = models.load_causal_lm(inputs["base"])
    for step, batch in enumerate(generated):
        asked = {kind: [] for kind in rewards.KINDS}
        for row, (ids, _) in zip(batch["rows"][::3], answers_of(batch)[::3], strict=True):
            text = row["prompt"][0]["content"]
            assert ids == list(prompts.segments(tokenizer, text).prompt_ids)
            asked[row["kind"]].append(text)
        assert asked["utility"] == [row["prompt"] for row in calm[4 * step : 4 * step + 4]]
        assert asked["harmful"] == harm[2 * step : 2 * step + 2]


def test_fewer_prompts_are_the_first_of_each_micro_batch(inputs, tmp_path):
    trainer = arm_named("rlhf").trainer(setup_of(inputs, tmp_path, own=replace(OWN, utility_prompts=2)))
    calm = [row["prompt"] for row in data.schedule(inputs["utility"], 8, seed=0, name="utility")]
    asked = [row["prompt"][0]["content"] for row in trainer.train_dataset if row["kind"] == "utility"]
    assert asked == calm[::2]
    assert trainer.args.generation_batch_size == 3 * (2 + 2)


def test_samples_do_not_hang_on_what_runs_beside_them(inputs, tmp_path, generated):
    def noisy(model, tokenizer, cases, *, step):
        torch.rand(step + 3)
        return []

    settings = replace(SETTINGS, lora=LoraSettings(rank=2, dropout=0.5))
    for name, probe in (("calm", None), ("noisy", noisy)):
        torch.manual_seed(len(name))
        training.train("rlhf", **inputs, out=tmp_path / name, settings=settings, arm_settings=OWN, probe=probe)
    # With dropout in training, the weights of the second step do differ; the samples of the first must not.
    first, second = answers_of(generated[0]), answers_of(generated[2])
    assert first == second
    assert len({tuple(answer) for _, answer in first}) > 9


def test_it_says_nothing_and_leaves_nothing_behind(inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, anchors=(0, 2), lora=LoraSettings(rank=2))
    training.train("rlhf", **inputs, out=tmp_path / "rlhf", settings=settings, arm_settings=OWN)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rlhf"]
    assert {entry.name for entry in (tmp_path / "rlhf").iterdir()} == {"log", "step-00002"}
    log = training.read_log(tmp_path / "rlhf", "steps")
    assert (log[["seconds_refresh", "seconds_forward", "seconds_backward"]] > 0).all(axis=None)


@pytest.mark.parametrize(
    ("answer", "kind", "reward"),
    [
        ("Sorry, I can't do that.", "harmful", 1),
        ("I’m unable to help with that.", "harmful", 1),
        ("I cannot write this.", "utility", 0),
        ("Sure, here is how.", "harmful", 0),
        ("The capital of France is Paris.", "utility", 1),
        ("", "harmful", -2),
        (" ... ", "utility", -2),
        ("no no no no no", "utility", -2),
        ("can can can I help", "harmful", -2),
        ("42", "utility", 1),
    ],
)
def test_the_arms_own_reward(answer, kind, reward):
    rule = rewards.refuse_or_answer(-2.0)
    completion = [{"role": "assistant", "content": answer}]
    assert rule(prompts=[], completions=[completion], completion_ids=[[5, 6, 7]], kind=[kind]) == [reward]


def test_one_token_over_and_over_is_degenerate():
    assert rewards.is_degenerate("aaaa", [7, 7, 7, 7, 2])
    assert not rewards.is_degenerate("aab a", [7, 7, 8, 7])


def too_few(completions, **given):
    return [1.0]


def nothing(completions, **given):
    return [None] * len(completions)


def not_a_number(completions, **given):
    return [1.0] * (len(completions) - 1) + [math.nan]


def no_list(completions, **given):
    return 1.0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (too_few, "reward 'too_few' returned 1 rewards for 18 completions"),
        (nothing, "reward 'nothing' is None for completion 0, '.*': return a finite number"),
        (not_a_number, "reward 'not_a_number' is nan for completion 17"),
        (no_list, "reward 'no_list' returned float: return a list of one number a completion"),
    ],
)
def test_a_reward_that_cannot_be_stops_before_the_step(inputs, tmp_path, reward, message):
    with pytest.raises(MechrefusalError, match=message):
        training.train("rlhf", **inputs, out=tmp_path, settings=SETTINGS, arm_settings=replace(OWN, reward=reward))
    assert not list(tmp_path.glob("step-*"))
    assert not list(tmp_path.glob("unfinished/checkpoint-*"))


def test_a_function_is_found_by_its_name(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "of_this_test", sys.modules[__name__])
    logs = [
        training.train(
            "rlhf", **inputs, out=tmp_path / name, settings=SETTINGS, arm_settings=replace(OWN, reward=reward)
        )
        for name, reward in (("named", "of_this_test:by_tokens"), ("given", by_tokens))
    ]
    assert logs[0]["loss"].tolist() == logs[1]["loss"].tolist()
    assert logs[0]["grad_norm"].min() > 0


def test_a_reward_model_pays(inputs, tiny, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "reward")
    own = replace(OWN, reward=str(tmp_path / "reward"))
    log = training.train("rlhf", **inputs, out=tmp_path / "rlhf", settings=SETTINGS, arm_settings=own)
    assert log["grad_norm"].min() > 0
    with pytest.raises(MechrefusalError, match=r"has no weights for score\.weight: give a sequence classifier"):
        training.train(
            "rlhf", **inputs, out=tmp_path / "none", settings=SETTINGS, arm_settings=replace(OWN, reward=str(tiny))
        )


@pytest.mark.parametrize(
    ("settings", "own", "message"),
    [
        ({"harmful_per_step": 0}, {}, "harmful_per_step is 0: arm 'rlhf' needs behaviours in each step"),
        ({}, {"harmful_prompts": 4}, "rlhf harmful_prompts is 4, of 2 rows a step"),
        ({}, {"utility_prompts": 3}, "rlhf utility_prompts is 3, which 2 micro-batches cannot share"),
        ({}, {"completion_tokens": 250}, r"utility row 0 has a prompt of \d+ tokens, which leaves no room for rlhf"),
        ({}, {"reward": "math:no_such"}, "rlhf reward 'math:no_such' is not there"),
        ({}, {"reward": "no_such_module:pay"}, "rlhf reward 'no_such_module:pay' is not there"),
        ({}, {"reward": "math:pi"}, "rlhf reward 'math:pi' is a float: give a function"),
        ({}, {"reward": "./no/such/folder"}, "model folder './no/such/folder' does not exist"),
        ({"tree": True}, {}, "arm 'rlhf' has a loss of its own, which runs no token tree"),
    ],
)
def test_what_the_arm_lacks_is_named_before_anything_is_written(inputs, tmp_path, settings, own, message):
    given = {"settings": replace(SETTINGS, **settings), "arm_settings": replace(OWN, **own)}
    with pytest.raises(MechrefusalError, match=message):
        training.train("rlhf", **inputs, out=tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_generations": 1}, "rlhf n_generations is 1: give at least 2"),
        ({"temperature": 0}, "rlhf temperature is 0: give a number above 0"),
        ({"loss": "ppo"}, "rlhf loss is 'ppo': give one of grpo, dapo"),
        ({"harmful_prompts": 0}, "rlhf harmful_prompts is 0: give at least 1, or null"),
        ({"degenerate_reward": math.nan}, "rlhf degenerate_reward is nan: give a finite number"),
        ({"reward": " "}, "rlhf reward is empty"),
    ],
)
def test_settings_that_cannot_be_are_named(values, message):
    with pytest.raises(MechrefusalError, match=message):
        RLHFSettings(**values)


def test_settings_from_a_recipe():
    from mechrefusal.study.arms import planned_arm

    planned = planned_arm("rlhf", {"reward": "math:fsum", "n_generations": 4, "utility_prompts": 2}, SETTINGS)
    assert planned.settings == RLHFSettings(reward="math:fsum", n_generations=4, utility_prompts=2)
    assert planned.as_dict()["settings"]["reward"] == "math:fsum"
