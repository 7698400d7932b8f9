"""DPO and KTO against the published formulas, computed row by row with plain Hugging Face models."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from tolerances import FORWARD
from torch.nn.functional import logsigmoid

from mechrefusal import MechrefusalError, models, prompts, training
from mechrefusal.training import DPOSettings, KTOSettings, LoraSettings, TrainingSettings, data
from mechrefusal.training.registry import arm_named
from mechrefusal.training.trainer_setup import ArmInputs, TrainerSetup

SETTINGS = TrainingSettings(
    steps=2,
    anchors=(0, 1, 2),
    learning_rate=2e-3,
    lr_scheduler="constant",
    utility_per_step=4,
    harmful_per_step=2,
    gradient_accumulation=2,
    max_length=256,
    n_probe=0,
)
ARMS = ("dpo", "kto")


@pytest.fixture(scope="module")
def inputs(tiny) -> dict:
    built = prompts.builtin()
    rows = [
        {"prompt": text, "answer": f"Of course, here is number {n}."}
        for n, text in enumerate(built.utility_train.texts[:6])
    ]
    rows[2]["finished"] = False
    return {
        "base": models.Checkpoint.open(tiny),
        "utility": rows,
        "behaviours": built.pool.harmful.with_targets()[:5],
    }


def untargeted(*targets: str) -> prompts.PromptSet:
    table = pd.DataFrame({"id": ["a", "b"], "text": ["Do harm", "Do more harm"], "category": ["x", "x"]})
    return prompts.PromptSet("plain", table.assign(target=list(targets)) if targets else table)


def setup_of(arm: str, inputs: dict, folder: Path, settings: TrainingSettings = SETTINGS, own=None) -> TrainerSetup:
    method = arm_named(arm)
    model, tokenizer = models.load_causal_lm(inputs["base"])
    of_arm = ArmInputs(method, settings=settings, arm_settings=own or method.settings(), **inputs)
    return TrainerSetup(of_arm, model, tokenizer, folder, [])


class Answers:
    """Rows (prompt, chosen, rejected) by micro-batch of a step, and their log-probabilities, one by one."""

    def __init__(self, inputs: dict, step: int) -> None:
        calm = list(data.schedule(inputs["utility"], 8, seed=0, name="utility"))
        table = inputs["behaviours"].table
        asked = list(zip(table["text"], table["target"], strict=True))
        harm = list(data.schedule(asked, 4, seed=0, name="harmful"))
        refusal = (SETTINGS.refusal, True)
        self.batches = []
        for part in (2 * step, 2 * step + 1):
            rows = [
                (row["prompt"], (row["answer"], row.get("finished", True)), refusal)
                for row in calm[2 * part : 2 * part + 2]
            ]
            rows += [(text, refusal, (target, False)) for text, target in harm[part : part + 1]]
            self.batches.append(rows)

    @staticmethod
    def log_probs(model, tokenizer, prompt: str, answer: tuple[str, bool]) -> torch.Tensor:
        """Of each token of the answer."""
        parts = prompts.segments(tokenizer, prompt, target=answer[0], end_of_turn=answer[1])
        ids = torch.tensor([parts.ids])
        with torch.no_grad():
            every = model(ids).logits[0, :-1].double().log_softmax(-1)
        return every.gather(1, ids[0, 1:, None])[len(parts.prompt_ids) - 1 :, 0]


def dpo_loss(rows, now, then, *, beta: float, sft_weight: float) -> tuple[float, float]:
    """Equation 7 of 2305.18290 with cross-entropy of the chosen beside it, and the mean margin of rewards."""
    margins = torch.stack([
        beta * ((now(x, y) - then(x, y)).sum() - (now(x, z) - then(x, z)).sum()) for x, y, z in rows
    ])  # fmt: skip
    chosen = torch.cat([now(x, y) for x, y, _ in rows])
    return float(-logsigmoid(margins).mean() - sft_weight * chosen.mean()), float(margins.mean())


def kto_loss(rows, now, then, *, beta: float, desirable: float, undesirable: float) -> tuple[float, float]:
    """Equation 7 of 2402.01306, and the point of reference."""
    answers = [(x, y, True) for x, y, _ in rows] + [(x, z, False) for x, _, z in rows]
    ratio = lambda x, y: float((now(x, y) - then(x, y)).sum())  # noqa: E731
    mismatched = [ratio(answers[n][0], answers[n - 1][1]) for n in range(len(answers))]
    z0 = max(0.0, sum(mismatched) / len(mismatched))
    sigmoid = lambda value: 1 / (1 + math.exp(-value))  # noqa: E731
    losses = [
        desirable * (1 - sigmoid(beta * (ratio(x, y) - z0)))
        if good
        else undesirable * (1 - sigmoid(beta * (z0 - ratio(x, y))))
        for x, y, good in answers
    ]
    return sum(losses) / len(losses), z0


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["all weights", "adapters"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_loss_of_a_step_is_the_published_one(inputs, tmp_path, arm, lora):
    own = {
        "dpo": DPOSettings(beta=0.3, sft_weight=0.5),
        "kto": KTOSettings(beta=0.3, desirable_weight=1.25, undesirable_weight=0.75),
    }[arm]
    settings = replace(SETTINGS, lora=lora)
    log = training.train(arm, **inputs, out=tmp_path, settings=settings, arm_settings=own)
    terms = training.read_log(tmp_path, "terms").pivot(index="step", columns="term", values="value")
    then, tokenizer = models.load_causal_lm(inputs["base"])
    for step in (0, 1):
        now, _ = (then, None) if step == 0 else models.load_causal_lm(tmp_path / "step-00001")
        answers = Answers(inputs, step)
        of = [partial(Answers.log_probs, model, tokenizer) for model in (now, then)]
        if arm == "dpo":
            found = [dpo_loss(rows, *of, beta=0.3, sft_weight=0.5) for rows in answers.batches]
        else:
            found = [kto_loss(rows, *of, beta=0.3, desirable=1.25, undesirable=0.75) for rows in answers.batches]
        losses, others = zip(*found, strict=True)
        assert log["loss"][step] == pytest.approx(sum(losses) / 2, abs=FORWARD)
        name = "rewards/margins" if arm == "dpo" else "kl"
        assert terms[name][step + 1] == pytest.approx(sum(others) / 2, abs=10 * FORWARD)  # a sum over many tokens
    assert abs(others[0]) + abs(others[1]) > 0.01  # the second step tells π from π_ref
    assert training.read_log(tmp_path, "terms")["weight"].isna().all()
    assert set(arm_named(arm).logs) == set(terms)


@pytest.mark.parametrize("arm", ARMS)
def test_the_rows_are_those_of_sft(inputs, tmp_path, arm):
    plain = arm_named("sft").trainer(setup_of("sft", inputs, tmp_path / "sft")).train_dataset
    rows = arm_named(arm).trainer(setup_of(arm, inputs, tmp_path / arm)).train_dataset
    if arm == "kto":
        chosen = [r["prompt_ids"] + r["completion_ids"] for r in rows if r["label"]]
        assert len(rows) == 2 * len(plain)
    else:
        chosen = [r["prompt_ids"] + r["chosen_ids"] for r in rows]
    # Utility rows and refusals, cut answers without an end of turn included.
    assert chosen == plain["input_ids"]


def test_a_mismatched_completion_answers_another_prompt(inputs, tmp_path):
    rows = list(arm_named("kto").trainer(setup_of("kto", inputs, tmp_path)).train_dataset)
    for start in range(0, len(rows), 6):
        batch = rows[start : start + 6]
        for n, row in enumerate(batch):
            assert row["KL_completion_ids"] == batch[n - 1]["completion_ids"]
            assert row["prompt_ids"] != batch[n - 1]["prompt_ids"]


@pytest.mark.parametrize("arm", ARMS)
def test_it_says_nothing_leaves_nothing_behind_and_keeps_the_config(inputs, tmp_path, monkeypatch, capfd, arm):
    monkeypatch.chdir(tmp_path)
    training.train(arm, **inputs, out=tmp_path / arm, settings=replace(SETTINGS, anchors=(0, 2)))
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == [arm]
    assert {entry.name for entry in (tmp_path / arm).iterdir()} == {"log", "step-00002"}
    configs = [
        json.loads((f / "config.json").read_text()) for f in (inputs["base"].path, tmp_path / arm / "step-00002")
    ]
    assert configs[0] == configs[1]
    log = training.read_log(tmp_path / arm, "steps")
    assert (log[["seconds_forward", "seconds_backward", "seconds_optimizer"]] > 0).all(axis=None)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": replace(SETTINGS, harmful_per_step=0)}, "harmful_per_step is 0: arm '{arm}' needs behaviours"),
        ({"settings": replace(SETTINGS, tree=True)}, "arm '{arm}' has a loss of its own, which runs no token tree"),
        ({"losses": {"utility": len}}, r"arm '{arm}' has a loss of its own and no terms: leave losses \(utility\) out"),
        ({"behaviours": untargeted()}, "behaviour 'a' has no target, which arm '{arm}' rejects"),
        ({"behaviours": untargeted("", "Sure")}, "behaviour 'a' has no target, which arm '{arm}' rejects"),
    ],
)
def test_what_an_arm_lacks_is_named_before_anything_is_written(inputs, tmp_path, arm, changes, message):
    with pytest.raises(MechrefusalError, match=message.format(arm=arm)):
        training.train(arm, **({**inputs, "settings": SETTINGS} | changes), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPOSettings(beta=0), "dpo beta is 0: give a number above 0"),
        (lambda: DPOSettings(sft_weight=-1), "dpo sft_weight is -1: give at least 0"),
        (lambda: KTOSettings(undesirable_weight=0), "kto undesirable_weight is 0: give a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(MechrefusalError, match=message):
        make()


def test_dpo_alone_is_the_published_loss(inputs, tmp_path):
    trainer = arm_named("dpo").trainer(setup_of("dpo", inputs, tmp_path, own=DPOSettings(sft_weight=0)))
    assert (trainer.loss_types, trainer.loss_weights) == (["sigmoid"], [1.0])
    assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())
