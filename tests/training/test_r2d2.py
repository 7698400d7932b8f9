"""R2D2Trainer: plain SFT where its weights are 0, and the stated loss where they are not."""

import copy
import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from mechrefusal import MechrefusalError, prompts
from mechrefusal.attacks import GCGSettings
from mechrefusal.training import CasePool, R2D2Config, R2D2Settings, R2D2Trainer, data
from mechrefusal.training.losses import away, cross_entropy

GCG = GCGSettings(steps=2, width=10, top_k=16, suffix_length=6)
REFUSAL = "Sorry, I can't do that."


def arguments(folder: Path, *, steps: int = 4, accumulation: int = 1, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **changes,
    }


def rows(tokenizer, steps: int = 4):
    texts = prompts.builtin().utility_train.texts[:5]
    made = [
        data.conversation(tokenizer, text, f"Answer {i}: it depends.", max_length=512, name=text)
        for i, text in enumerate(texts)
    ]
    return data.dataset(made, [], steps=steps, utility_each=4, harmful_each=0, seed=0)


def pool_of(tokenizer, n: int = 4) -> CasePool:
    behaviours = prompts.builtin().pool.harmful.with_targets()[:n]
    return CasePool.of(tokenizer, behaviours, GCG, size=0, seed=0, source="abc")


def trainer_of(
    tiny_hf, folder: Path, settings: R2D2Settings, *, pool: CasePool | None = None, losses=None, **changes
) -> R2D2Trainer:
    model, tokenizer = copy.deepcopy(tiny_hf[0]), tiny_hf[1]
    config = R2D2Config(**arguments(folder, **changes), **R2D2Config.fields_of(settings), refusal=REFUSAL)
    trainer = R2D2Trainer(
        model=model,
        args=config,
        train_dataset=rows(tokenizer),
        processing_class=tokenizer,
        pool=pool or pool_of(tokenizer),
        losses=losses,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_weights_it_is_plain_sft_to_the_last_bit(tiny_hf, tmp_path, accumulation):
    model, tokenizer = copy.deepcopy(tiny_hf[0]), tiny_hf[1]
    plain = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(tmp_path, accumulation=accumulation)),
        train_dataset=rows(tokenizer),
        processing_class=tokenizer,
    )
    plain.remove_callback(PrinterCallback)
    plain.train()
    ours = trainer_of(
        tiny_hf, tmp_path, R2D2Settings(away_weight=0, toward_weight=0, gcg=GCG), accumulation=accumulation
    )
    before = list(ours.pool.cases)
    ours.train()
    assert logged(ours) == logged(plain)
    assert len(set(logged(ours))) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True))
    assert ours.pool.cases == before
    assert logged(ours, "away") == logged(ours, "attack_loss_after") == []


def stated_loss(model, tokenizer, dataset_rows, cases, settings: R2D2Settings) -> dict[str, torch.Tensor]:
    """The three terms through plain forward passes, one row at a time, without padding."""

    def logits_of(prompt, continuation):
        return model(torch.tensor([[*prompt, *continuation]])).logits[0, len(prompt) - 1 : -1]

    def mean(loss, pairs):
        losses = [loss(logits_of(*pair), torch.tensor(pair[1])) for pair in pairs]
        return torch.cat(losses).mean()

    utility, n = 0.0, 0
    for row in dataset_rows:
        labels = torch.tensor(row["labels"])
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
        utility = utility + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
        n += int((labels != -100).sum())
    return {
        "utility": utility / n,
        "away": mean(partial(away, floor=settings.away_floor), [data.away_row(tokenizer, case) for case in cases]),
        "toward": mean(cross_entropy, [data.toward_row(tokenizer, case, REFUSAL) for case in cases]),
    }


@pytest.mark.parametrize(("accumulation", "checkpointing"), [(1, False), (2, False), (4, False), (1, True)])
def test_one_step_is_the_stated_loss_and_its_gradient(tiny_hf, tmp_path, accumulation, checkpointing):
    settings = R2D2Settings(
        pool_size=0, cases_per_step=3, gcg=GCG, away_weight=0.7, toward_weight=0.3, away_floor=-20.0
    )
    trainer = trainer_of(
        tiny_hf,
        tmp_path,
        settings,
        steps=1,
        accumulation=accumulation,
        gradient_checkpointing=checkpointing,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        learning_rate=1.0,
        weight_decay=0.0,
    )
    before = copy.deepcopy(tiny_hf[0])
    trainer.train()
    terms = stated_loss(before, tiny_hf[1], rows(tiny_hf[1]).select(range(4)), trainer._drawn, settings)
    total = terms["utility"] + 0.7 * terms["away"] + 0.3 * terms["toward"]
    for name, value in (terms | {"loss": total}).items():
        assert logged(trainer, name)[0] == pytest.approx(value.item(), rel=1e-5), name
    assert terms["away"].item() > 1e-4
    total.backward()
    for new, old in zip(trainer.model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(old.detach() - new.detach(), old.grad, atol=2e-5, rtol=1e-3)


def test_cases_are_refreshed_once_an_optimiser_step(tiny_hf, tmp_path, monkeypatch):
    settings = R2D2Settings(pool_size=0, cases_per_step=2, gcg=GCG, reset_every=2, reset_fraction=0.5)
    trainer = trainer_of(tiny_hf, tmp_path, settings, accumulation=2)
    seen: list[tuple[int, str]] = []
    for name in ("draw", "reset"):
        original = getattr(CasePool, name)

        def watched(self, *args, name=name, original=original):
            seen.append((trainer.state.global_step, name))
            return original(self, *args)

        monkeypatch.setattr(CasePool, name, watched)
    trainer.train()
    assert seen == [(0, "draw"), (1, "draw"), (2, "reset"), (2, "draw"), (3, "draw")]
    assert all(
        a >= b for a, b in zip(logged(trainer, "attack_loss_before"), logged(trainer, "attack_loss_after"), strict=True)
    )
    assert sum(case.steps for case in trainer.pool.cases) > 0
    assert trainer.model.training


def test_a_loss_that_is_not_finite_is_named_with_its_step_and_term(tiny_hf, tmp_path, monkeypatch):
    settings = R2D2Settings(pool_size=0, cases_per_step=2, gcg=GCG)
    for term in ("utility", "away", "toward"):
        broken = {term: lambda logits, labels: logits[:, 0] * torch.nan}
        trainer = trainer_of(tiny_hf, tmp_path, settings, losses=broken)
        with pytest.raises(MechrefusalError, match=f"loss term '{term}' is nan at step 1"):
            trainer.train()
    quiet = trainer_of(tiny_hf, tmp_path, dataclasses.replace(settings, away_weight=0, toward_weight=0))
    with torch.no_grad():
        quiet.model.model.norm.weight[0] = torch.inf
    with pytest.raises(MechrefusalError, match=r"loss term 'utility' is \w+ at step 1"):
        quiet.train()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tiny_hf, tmp_path):
    settings = R2D2Settings(pool_size=0, cases_per_step=2, gcg=GCG, away_weight=0, toward_weight=0)
    trainer = trainer_of(tiny_hf, tmp_path, settings)
    weight = trainer.model.model.norm.weight
    weight.register_hook(lambda gradient: gradient * torch.nan)
    before = weight.detach().clone()
    with pytest.raises(MechrefusalError, match="gradient is not finite at step 1"):
        trainer.train()
    assert torch.equal(weight, before)
