"""R2D2Trainer: plain SFT where its weights are 0, and the stated loss where they are not."""

import copy
import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from tolerances import COMPOUND, FORWARD, REORDERED
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from mechrefusal import MechrefusalError, prompts
from mechrefusal.attacks import GCGSettings
from mechrefusal.training import CasePool, R2D2Config, R2D2Settings, R2D2Trainer, data
from mechrefusal.training.losses import Term, away, cross_entropy

pytestmark = pytest.mark.slow

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
        "use_cpu": True,
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
    return CasePool.of(tokenizer, behaviours, GCG, seed=0, source="abc")


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


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize(("accumulation", "checkpointing"), [(1, False), (2, False), (4, False), (1, True)])
def test_one_step_is_the_stated_loss_and_its_gradient(tiny_hf, tmp_path, accumulation, checkpointing, tree):
    settings = R2D2Settings(cases_per_step=3, gcg=GCG, away_weight=0.7, toward_weight=0.3, away_floor=-20.0)
    trainer = trainer_of(
        tiny_hf,
        tmp_path,
        settings,
        steps=1,
        accumulation=accumulation,
        gradient_checkpointing=checkpointing,
        tree=tree,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        learning_rate=1.0,
        weight_decay=0.0,
    )
    before = copy.deepcopy(tiny_hf[0])
    trainer.train()
    terms = stated_loss(before, tiny_hf[1], rows(tiny_hf[1]).select(range(4)), trainer.drawn, settings)
    total = terms["utility"] + 0.7 * terms["away"] + 0.3 * terms["toward"]
    for name, value in (terms | {"loss": total}).items():
        assert logged(trainer, name)[0] == pytest.approx(value.item(), rel=REORDERED), name
    assert terms["away"].item() > 1e-4
    total.backward()
    for new, old in zip(trainer.model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(old.detach() - new.detach(), old.grad, atol=2 * REORDERED, rtol=COMPOUND)


def test_cases_are_refreshed_once_an_optimiser_step(tiny_hf, tmp_path, monkeypatch):
    settings = R2D2Settings(cases_per_step=2, gcg=GCG, reset_every=2, reset_fraction=0.5)
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
    settings = R2D2Settings(cases_per_step=2, gcg=GCG)
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
    settings = R2D2Settings(cases_per_step=2, gcg=GCG, away_weight=0, toward_weight=0)
    trainer = trainer_of(tiny_hf, tmp_path, settings)
    weight = trainer.model.model.norm.weight
    weight.register_hook(lambda gradient: gradient * torch.nan)
    before = weight.detach().clone()
    with pytest.raises(MechrefusalError, match="gradient is not finite at step 1"):
        trainer.train()
    assert torch.equal(weight, before)


def hinge(logits, labels):
    return torch.relu(3 + logits.float().log_softmax(-1).gather(1, labels[:, None])[:, 0])


def test_a_term_is_replaced_or_added_by_a_pure_function(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=3, gcg=GCG, away_weight=0.7, toward_weight=0.3)
    losses = {
        "away": hinge,
        "utility": lambda logits, labels: 2 * cross_entropy(logits, labels),
        "short": Term("short", cross_entropy, 0.25, lambda words, case: data.toward_row(words, case, "No.")),
    }
    trainer = trainer_of(tiny_hf, tmp_path, settings, losses=losses, steps=1, accumulation=2)
    before = copy.deepcopy(tiny_hf[0])
    trainer.train()
    plain = stated_loss(before, tiny_hf[1], rows(tiny_hf[1]).select(range(4)), trainer.drawn, settings)
    drawn = trainer.drawn

    def mean(loss, pairs):
        found = []
        for prompt, continuation in pairs:
            logits = before(torch.tensor([[*prompt, *continuation]])).logits[0, len(prompt) - 1 : -1]
            found.append(loss(logits, torch.tensor(continuation)))
        return torch.cat(found).mean().item()

    expected = {
        "utility": 2 * plain["utility"].item(),
        "away": mean(hinge, [data.away_row(tiny_hf[1], case) for case in drawn]),
        "toward": plain["toward"].item(),
        "short": mean(cross_entropy, [data.toward_row(tiny_hf[1], case, "No.") for case in drawn]),
    }
    for name, value in expected.items():
        assert logged(trainer, name)[0] == pytest.approx(value, rel=REORDERED), name
    weights = {"utility": 1.0, "away": 0.7, "toward": 0.3, "short": 0.25}
    total = sum(weights[name] * value for name, value in expected.items())
    assert logged(trainer)[0] == pytest.approx(total, rel=REORDERED)


def test_a_loss_of_another_shape_is_named(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=2, gcg=GCG)
    trainer = trainer_of(tiny_hf, tmp_path, settings, losses={"away": lambda logits, labels: logits.sum()})
    with pytest.raises(MechrefusalError, match=r"loss term 'away' gave \(\) for \d+ labels: return one loss a token"):
        trainer.train()


def test_tree_and_trl_give_the_same_losses(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=3, gcg=GCG, reset_every=2)
    runs = [trainer_of(tiny_hf, tmp_path, settings, tree=tree, accumulation=2) for tree in (True, False)]
    for trainer in runs:
        trainer.train()
    for name in ("loss", "utility", "away", "toward", "attack_loss_after"):
        assert logged(runs[0], name) == pytest.approx(logged(runs[1], name), rel=FORWARD), name
    assert [case.suffix_ids for case in runs[0].pool.cases] == [case.suffix_ids for case in runs[1].pool.cases]


def test_terms_are_means_over_the_logged_steps(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=2, gcg=GCG)
    each, together = (trainer_of(tiny_hf, tmp_path, settings, logging_steps=n) for n in (1, 4))
    each.train()
    together.train()
    for name in ("loss", "toward"):
        assert logged(together, name)[0] == pytest.approx(sum(logged(each, name)) / 4, rel=0.05), name


def test_it_goes_on_from_its_own_checkpoints(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=2, gcg=GCG, reset_every=2, reset_fraction=0.5)
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    whole = trainer_of(tiny_hf, tmp_path / "whole", settings, **saving)
    whole.train()
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"checkpoint-3", "checkpoint-4"}
    again = trainer_of(tiny_hf, tmp_path / "again", settings, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    assert [dataclasses.replace(case, loss=0) for case in again.pool.cases] == [
        dataclasses.replace(case, loss=0) for case in whole.pool.cases
    ]  # a case that was never drawn has the loss NaN
    assert again.refreshes == whole.refreshes
    other = trainer_of(tiny_hf, tmp_path / "other", settings, pool=pool_of(tiny_hf[1], 3), **saving)
    with pytest.raises(MechrefusalError, match="holds other behaviours"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))


def test_bf16_trains_close_to_float32(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=2, gcg=dataclasses.replace(GCG, steps=0))
    full, low = (trainer_of(tiny_hf, tmp_path, settings, bf16=bf16) for bf16 in (False, True))
    full.train()
    low.train()
    for name in ("loss", "utility", "away", "toward"):
        assert logged(low, name) == pytest.approx(logged(full, name), rel=0.02), name
    assert logged(low) != logged(full)
    assert all(parameter.dtype == torch.float32 for parameter in low.model.parameters())


@pytest.mark.parametrize("limit", [1, 2, 4, None])
def test_as_many_checkpoints_are_kept_as_asked_for(tiny_hf, tmp_path, limit):
    settings = R2D2Settings(cases_per_step=2, gcg=GCG)
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": limit}
    trainer_of(tiny_hf, tmp_path, settings, **saving).train()
    kept = {f"checkpoint-{step}" for step in range(1, 5)[-(limit or 4) :]}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_batch_without_labels_teaches_nothing(tiny_hf, tmp_path):
    trainer = trainer_of(tiny_hf, tmp_path, R2D2Settings(cases_per_step=1, gcg=GCG), tree=True)
    ids = torch.arange(5, 25).reshape(2, 10)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which Trainer sets as it goes
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100), "attention_mask": torch.ones_like(ids)}
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(4))
    loss.backward()
    assert loss.item() == 0.0
    assert not any(p.grad is not None and p.grad.any() for p in trainer.model.parameters())


@pytest.mark.parametrize(
    "changes", [{"cases_per_step": 0}, {"reset_fraction": 3.0}, {"away_weight": -1.0}, {"gcg_suffix_length": 0}]
)
def test_a_config_that_cannot_be_is_named(tmp_path, changes):
    (name, value), *_ = changes.items()
    with pytest.raises(MechrefusalError, match=f"{name.removeprefix('gcg_')} is {value}"):
        R2D2Config(**arguments(tmp_path), **changes)


def test_every_setting_of_gcg_reaches_the_config(tmp_path):
    other = GCGSettings(steps=3, width=7, top_k=9, suffix_length=5, initial="x y", batch_size=2, screen=True, rounds=4)
    fields = dataclasses.fields(GCGSettings)
    assert all(getattr(other, each.name) != each.default for each in fields)
    config = R2D2Config(**arguments(tmp_path), **R2D2Config.fields_of(R2D2Settings(gcg=other)))
    assert config.gcg == other
    of_r2d2 = {"steps": R2D2Settings().gcg.steps}  # the only one whose default differs
    assert R2D2Config(**arguments(tmp_path)).gcg == dataclasses.replace(GCGSettings(), **of_r2d2)


def test_pools_and_configs_that_do_not_fit_are_named_before_the_first_step(tiny_hf, tmp_path):
    settings = R2D2Settings(cases_per_step=1, gcg=dataclasses.replace(GCG, suffix_length=8))
    with pytest.raises(MechrefusalError, match="has 6 tokens, gcg suffix_length is 8"):
        trainer_of(tiny_hf, tmp_path, settings)
    model, tokenizer = tiny_hf
    plain = SFTConfig(**arguments(tmp_path))
    with pytest.raises(MechrefusalError, match="args of SFTConfig: give an R2D2Config"):
        R2D2Trainer(model=model, args=plain, processing_class=tokenizer, pool=pool_of(tokenizer))
    pool = pool_of(tokenizer)
    pool.cases[2] = dataclasses.replace(pool.cases[2], target="Sure, " * 600)
    with pytest.raises(MechrefusalError, match=f"'{pool.cases[2].id}' is .* tokens long"):
        trainer_of(tiny_hf, tmp_path, dataclasses.replace(settings, gcg=GCG), pool=pool)
