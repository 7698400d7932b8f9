"""Whole arms on the tiny model: what they write, that they are matched, and that they repeat themselves."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tolerances import FORWARD, REORDERED

from mechrefusal import MechrefusalError, models, prompts, tables, training
from mechrefusal.attacks import GCGSettings
from mechrefusal.training import R2D2Settings, TrainingSettings

pytestmark = pytest.mark.slow

BOTH = ("sft", "r2d2")

SETTINGS = TrainingSettings(
    steps=4,
    anchors=(0, 2, 4),
    learning_rate=2e-3,
    warmup_steps=1,
    utility_per_step=4,
    harmful_per_step=2,
    gradient_accumulation=2,
    max_length=256,
)
OF_ARM = {
    "r2d2": R2D2Settings(
        cases_per_step=2,
        gcg=GCGSettings(steps=1, width=8, top_k=16, suffix_length=6),
        reset_every=2,
        reset_fraction=0.5,
    ),
}
"""The arms' own settings."""


@pytest.fixture(scope="module")
def inputs(tiny) -> dict:
    built = prompts.builtin()
    return {
        "base": models.Checkpoint.open(tiny),
        "utility": [{"prompt": text, "answer": "Of course, here it is."} for text in built.utility_train.texts[:6]],
        "behaviours": built.pool.harmful.with_targets()[:5],
    }


def train(arm: str, **given):
    """Train an arm with its own settings of this file."""
    return training.train(arm, **{"arm_settings": OF_ARM.get(arm)} | given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("arm", BOTH)
def test_an_arm_writes_its_anchors_and_its_log(inputs, tmp_path, arm):
    (tmp_path / "step-00002").mkdir()
    (tmp_path / "step-00002" / "old.txt").write_text("left from an earlier run")
    log = train(arm, **inputs, out=tmp_path, settings=SETTINGS)
    expected = {"log", "step-00002", "step-00004"} | ({"pool.parquet"} if arm == "r2d2" else set())
    assert {entry.name for entry in tmp_path.iterdir()} == expected
    assert not (tmp_path / "step-00002" / "old.txt").exists()
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert tuple(log.columns) == tables.columns("training")
    assert set(log["arm"]) == {arm}
    assert log["loss"].notna().all()
    parts = log[[name for name in log if name.startswith("seconds_")]].fillna(0)
    assert (log["seconds"] >= parts.sum(axis=1) - 1e-3).all()
    assert (log[["seconds", "seconds_forward", "seconds_backward", "seconds_optimizer", "peak_mib"]] > 0).all(axis=None)
    assert log["learning_rate"].is_monotonic_decreasing or log["learning_rate"].iloc[0] < log["learning_rate"].iloc[1]
    adversarial = log[["away", "toward", "attack_loss_before", "attack_loss_after"]]
    assert adversarial.notna().all(axis=None) if arm == "r2d2" else adversarial.isna().all(axis=None)
    if arm == "r2d2":
        assert log["loss"].tolist() == pytest.approx(
            (log["utility"] + 0.5 * log["away"] + 0.5 * log["toward"]).tolist(), rel=REORDERED
        )
        pool = training.CasePool.load(tmp_path / "pool.parquet", source=None)
        assert len(pool) == 5
        assert inputs["base"].weights not in {case.source for case in pool.cases}


def test_anchors_are_plain_folders_that_load_like_the_base(inputs, tmp_path):
    training.train("sft", **inputs, out=tmp_path, settings=SETTINGS)
    anchor = models.Checkpoint.open(tmp_path / "step-00004", arm="sft", step=4)
    assert anchor.weights != inputs["base"].weights
    model, tokenizer = models.load_causal_lm(anchor)
    _, base_tokenizer = models.load_causal_lm(inputs["base"])
    assert tokenizer.chat_template == base_tokenizer.chat_template
    assert prompts.segments(tokenizer, "Hello", target="Hi") == prompts.segments(base_tokenizer, "Hello", target="Hi")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (inputs["base"].path, anchor.path))
    assert after == before
    assert model.dtype == torch.float32


@pytest.mark.parametrize("arm", BOTH)
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(inputs, tmp_path, arm):
    logs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)  # whatever the state before
        logs[name] = training.train(
            arm, **inputs, arm_settings=OF_ARM.get(arm), out=tmp_path / name, settings=replace(SETTINGS, seed=seed)
        )
    a, b, c = (weights(tmp_path / name / "step-00004") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert logs["a"]["loss"].tolist() == logs["b"]["loss"].tolist()


def test_arms_see_the_same_utility_rows(inputs, tmp_path):
    # With nothing learnt, the utility loss of a step depends on its rows alone.
    still = replace(SETTINGS, learning_rate=1e-30, anchors=(0,))
    logs = [train(arm, **inputs, out=tmp_path / arm, settings=still) for arm in BOTH]
    assert logs[0]["utility"].tolist() == pytest.approx(logs[1]["utility"].tolist(), rel=REORDERED)
    assert logs[0]["utility"].nunique() == 4
    assert not (logs[0]["utility"] == logs[0]["loss"]).any()


def test_r2d2_without_weights_and_sft_without_refusals_are_the_same_arm(inputs, tmp_path):
    settings = replace(SETTINGS, harmful_per_step=0)
    own = {"sft": None, "r2d2": replace(OF_ARM["r2d2"], away_weight=0.0, toward_weight=0.0)}
    logs = [training.train(arm, **inputs, out=tmp_path / arm, settings=settings, arm_settings=own[arm]) for arm in BOTH]
    assert logs[0]["loss"].tolist() == logs[1]["loss"].tolist()
    a, b = (weights(tmp_path / arm / "step-00004") for arm in BOTH)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_training_lowers_the_loss(inputs, tmp_path):
    log = training.train(
        "r2d2", **inputs, arm_settings=OF_ARM["r2d2"], out=tmp_path, settings=replace(SETTINGS, steps=8)
    )
    assert log["utility"].iloc[-1] < log["utility"].iloc[0]
    assert log["toward"].iloc[-1] < log["toward"].iloc[0]
    assert all(math.isfinite(value) for value in log["attack_loss_after"])


def test_it_says_nothing_and_leaves_nothing_behind(inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    training.train(
        "r2d2",
        **inputs,
        arm_settings=OF_ARM["r2d2"],
        out=tmp_path / "r2d2",
        settings=replace(SETTINGS, steps=2, anchors=(0, 2)),
    )
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r2d2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": "dpoo"}, "unknown arm 'dpoo': expected one of sft, r2d2"),
        ({"arm_settings": training.SFTSettings()}, "arm 'r2d2' was given settings of SFTSettings: give R2D2Settings"),
        ({"utility": []}, "0 utility rows"),
        ({"utility": [{"prompt": "Hello there", "answer": ""}]}, "utility row 0 has an empty answer"),
        ({"settings": replace(SETTINGS, max_length=8)}, "utility row 0 has a prompt of"),
    ],
)
def test_unusable_input_is_named(inputs, tmp_path, changes, message):
    given = {"arm": "r2d2", **inputs, "out": tmp_path, "settings": SETTINGS} | changes
    with pytest.raises(MechrefusalError, match=message):
        training.train(given.pop("arm"), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_run_is_named_and_keeps_no_bad_anchor(inputs, tmp_path):
    wild = replace(SETTINGS, learning_rate=1e30, warmup_steps=0, max_grad_norm=0.0, lr_scheduler="constant")
    with pytest.raises(MechrefusalError, match=r"at step \d"):
        training.train("sft", **inputs, out=tmp_path, settings=wild)


def test_anchors_of_adapters_are_the_model_under_training(inputs, tmp_path, monkeypatch):
    from mechrefusal.training import anchors, callbacks

    seen = {}

    def noting(model, tokenizer, folder, **given):
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        model.eval()
        with torch.no_grad():
            seen[folder.name] = model(input_ids=ids).logits
        model.train()
        return anchors.save_anchor(model, tokenizer, folder, **given)

    monkeypatch.setattr(callbacks, "save_anchor", noting)
    settings = replace(SETTINGS, lora=training.LoraSettings(rank=4, alpha=6, dropout=0.1), learning_rate=1e-2)
    train("r2d2", **inputs, out=tmp_path, settings=settings)
    base = load_file(inputs["base"].path / "model.safetensors")
    for step in (2, 4):
        folder = tmp_path / f"step-{step:05d}"
        assert {path.name for path in folder.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json",
            "tokenizer_config.json",
        }  # fmt: skip
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(inputs["base"].path)
        assert config["target_modules"] == sorted(config["target_modules"])
        model, _ = models.load_causal_lm(folder)
        with torch.no_grad():
            found = model(torch.tensor([[5, 6, 7, 8, 9]])).logits
        torch.testing.assert_close(found, seen[folder.name], atol=FORWARD, rtol=0)
        adapter = load_file(folder / "adapter_model.safetensors")
        opened = model.state_dict()
        for name, weight in base.items():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            if (down := adapter.pop(f"{layer}.lora_A.weight", None)) is not None:
                delta = 6 / 4 * (adapter.pop(f"{layer}.lora_B.weight").double() @ down.double())
                # Of sums of four products in float32, and of the sum with the weight.
                torch.testing.assert_close(opened[name], (weight.double() + delta).float(), atol=1e-6, rtol=1e-6)
                assert delta.abs().max() > 1e-3
            else:
                assert torch.equal(opened[name], weight)
        assert not adapter
    monkeypatch.setattr(training.R2D2Trainer, "training_step", lambda *_: pytest.fail("trained again"))
    train("r2d2", **inputs, out=tmp_path, settings=settings)


def test_probes_look_at_step_0_and_at_every_anchor(inputs, tmp_path):
    seen = []

    def probe(model, tokenizer, cases, *, step):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        seen.append((step, len(cases)))
        return [{"set": "harmful", "value": step / 10}]

    train("r2d2", **inputs, out=tmp_path, settings=SETTINGS, probe=probe)
    assert seen == [(0, 5), (2, 5), (4, 5)]
    table = training.read_log(tmp_path, "probes")
    assert table["step"].tolist() == [0, 2, 4]
    assert table["value"].tolist() == [0.0, 0.2, 0.4]
    assert set(table["arm"]) == {"r2d2"}


def test_every_loss_and_refresh_is_in_a_table(inputs, tmp_path):
    log = train("r2d2", **inputs, out=tmp_path / "r2d2", settings=SETTINGS)
    terms = training.read_log(tmp_path / "r2d2", "terms")
    assert tuple(terms.columns) == tables.columns("terms")
    wide = terms.pivot(index="step", columns="term", values="value")
    assert set(wide) == {"utility", "away", "toward"}
    weights = terms.groupby("term")["weight"].first()
    assert (wide * weights).sum(axis=1).tolist() == pytest.approx(log["loss"].tolist(), rel=REORDERED)
    refreshes = training.read_log(tmp_path / "r2d2", "refreshes")
    assert set(refreshes.columns) == set(tables.columns("refreshes"))
    means = refreshes.groupby("step")[["loss_before", "loss_after", "age"]].mean()
    assert means["loss_before"].tolist() == pytest.approx(log["attack_loss_before"].tolist())
    assert means["loss_after"].tolist() == pytest.approx(log["attack_loss_after"].tolist())
    assert means["age"].tolist() == pytest.approx(log["pool_age"].tolist())
    assert refreshes.groupby("step")["forward_tokens"].sum().tolist() == log["attack_tokens"].tolist()
    training.train("sft", **inputs, out=tmp_path / "sft", settings=SETTINGS)
    assert set(training.read_log(tmp_path / "sft", "terms")["term"]) == {"utility", "refusal"}
    assert len(training.read_log(tmp_path / "sft", "refreshes")) == 0


def test_a_term_over_cases_needs_an_arm_that_has_them(inputs, tmp_path):
    from mechrefusal.training.losses import cross_entropy

    term = training.Term("more", cross_entropy, 0.5, lambda words, case: ((1,), (2,)))
    with pytest.raises(MechrefusalError, match="'more' is over attacked cases, which this arm has none of"):
        training.train("sft", **inputs, out=tmp_path, settings=SETTINGS, losses={"more": term})
    assert list(tmp_path.iterdir()) == []


def test_a_behaviour_beyond_the_context_is_named_before_the_first_step(inputs, tmp_path):
    table = inputs["behaviours"].table.copy()
    table.loc[1, "target"] = "Sure, " * 600
    behaviours = prompts.PromptSet("long", table)
    with pytest.raises(MechrefusalError, match=r"case '.*' is \d+ tokens long .* more than the 512"):
        training.train(
            "r2d2",
            **(inputs | {"behaviours": behaviours}),
            out=tmp_path,
            settings=SETTINGS,
            arm_settings=OF_ARM["r2d2"],
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arm", BOTH)
def test_a_term_over_the_training_rows_is_added_in_every_arm(inputs, tmp_path, arm):
    def twice(logits, labels):
        return 2 * torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    still = replace(SETTINGS, learning_rate=1e-30, anchors=(0,), n_probe=0)
    plain = train(arm, **inputs, out=tmp_path / "plain", settings=still)
    more = {"more": training.Term("more", twice, 0.5)}
    log = training.train(
        arm, **inputs, arm_settings=OF_ARM.get(arm), out=tmp_path / "more", settings=still, losses=more
    )
    terms = training.read_log(tmp_path / "more", "terms").pivot(index="step", columns="term", values="value")
    rows_alone = plain["loss"] - (0.5 * plain["away"] + 0.5 * plain["toward"]).fillna(0)
    assert terms["more"].tolist() == pytest.approx((2 * rows_alone).tolist(), rel=FORWARD)
    assert log["loss"].tolist() == pytest.approx((plain["loss"] + rows_alone).tolist(), rel=FORWARD)
    with pytest.raises(MechrefusalError, match="cannot be called 'loss'"):
        training.train(
            arm, **inputs, arm_settings=OF_ARM.get(arm), out=tmp_path, settings=still, losses={"loss": twice}
        )


def test_weights_that_are_not_finite_take_no_place_on_disk(inputs, tmp_path, monkeypatch):
    from mechrefusal.training import arm_training as trainer

    original = trainer.FiniteGradients.on_pre_optimizer_step

    def spoil(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if state.global_step == 2:  # before the third update
            with torch.no_grad():
                next(kwargs["model"].parameters())[0, 0] = torch.nan

    monkeypatch.setattr(trainer.FiniteGradients, "on_pre_optimizer_step", spoil)
    settings = replace(SETTINGS, save_every=1, anchors=(0, 2, 3, 4))
    with pytest.raises(MechrefusalError, match="the weights are not finite after step 3"):
        training.train("sft", **inputs, out=tmp_path, settings=settings)
    assert not (tmp_path / "step-00003").exists()
    assert {path.name for path in (tmp_path / "unfinished").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    monkeypatch.undo()
    assert len(training.train("sft", **inputs, out=tmp_path, settings=settings)) == 4


def test_a_complete_arm_is_not_trained_again(inputs, tmp_path, monkeypatch):
    log = train("r2d2", **inputs, out=tmp_path, settings=SETTINGS)
    monkeypatch.setattr(training.ArmTrainer, "train", None)
    again = training.train(
        "r2d2", **inputs, arm_settings=OF_ARM["r2d2"], out=tmp_path, settings=replace(SETTINGS, save_every=7)
    )
    assert again["loss"].tolist() == log["loss"].tolist()


@pytest.mark.parametrize("modules", [("no_such_layer",), ("embed_tokens", "q_proj")])
def test_adapters_that_cannot_be_are_named(inputs, tmp_path, modules):
    settings = replace(SETTINGS, lora=training.LoraSettings(target_modules=modules))
    with pytest.raises(MechrefusalError, match="lora"):
        training.train("sft", **inputs, out=tmp_path, settings=settings)


@pytest.mark.parametrize("arm", BOTH)
def test_a_model_that_cannot_share_tokens_is_trained_plainly(inputs, tmp_path, monkeypatch, arm):
    from mechrefusal.forward import tree_forward
    from mechrefusal.training import trainer

    expected = train(arm, **inputs, out=tmp_path / "tree", settings=SETTINGS)
    for module in (tree_forward, trainer):
        monkeypatch.setattr(module, "shares", lambda model: False)
    found = train(arm, **inputs, out=tmp_path / "plain", settings=SETTINGS)
    assert found["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=FORWARD)
