"""Static refusals as a term of their own: the loss and its gradient against plain passes of the Hugging Face model."""

from dataclasses import replace

import pytest
import torch

from mechrefusal import MechrefusalError, models, prompts, training
from mechrefusal.training import TrainingSettings, data

SETTINGS = TrainingSettings(
    steps=1, anchors=(0, 1), learning_rate=1e-3, utility_per_step=4, harmful_per_step=2, max_length=256, n_probe=0,
    max_grad_norm=0,
)  # fmt: skip
ANSWERS = [
    "Of course.",
    "Here is a much longer answer than the others are, word for word.",
    "Yes",
    "So it is, I think.",
]


@pytest.fixture(scope="module")
def inputs(tiny):
    """As many rows as one step takes, so that every row is in it."""
    built = prompts.builtin()
    texts = built.utility_train.texts[:4]
    return {
        "base": models.Checkpoint.open(tiny),
        "utility": [{"prompt": text, "answer": answer} for text, answer in zip(texts, ANSWERS, strict=True)],
        "behaviours": built.pool.harmful[:2],
    }


def by_hand(tiny, inputs, weight):
    """Loss of one step, and the norm of its gradient, from one plain pass a row."""
    model, tokenizer = models.load_causal_lm(tiny)
    model.requires_grad_(True)
    pairs = {
        "utility": [(row["prompt"], row["answer"]) for row in inputs["utility"]],
        "refusal": [(text, SETTINGS.refusal) for text in inputs["behaviours"].texts],
    }
    losses = {}
    for name, rows in pairs.items():
        found = []
        for prompt, answer in rows:
            row = data.conversation(tokenizer, prompt, answer, max_length=256, name="row")
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            steps = model(ids).logits[0, :-1].log_softmax(-1)
            kept = labels[1:] != -100
            found.append(-steps[kept].gather(1, labels[1:][kept][:, None])[:, 0])
        losses[name] = torch.cat(found)
    if weight is None:
        total = torch.cat(list(losses.values())).mean()
    else:
        total = losses["utility"].mean() + weight * losses["refusal"].mean()
    total.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return float(total.detach()), float(norm), {name: float(each.detach().mean()) for name, each in losses.items()}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("weight", [None, 0.0, 0.5, 2.0])
def test_the_loss_is_that_by_hand(tiny, inputs, tmp_path, weight, parts):
    settings, own = replace(SETTINGS, gradient_accumulation=parts), training.SFTSettings(refusal_weight=weight)
    [log] = training.train("sft", **inputs, out=tmp_path, settings=settings, arm_settings=own).to_dict("records")
    loss, norm, terms = by_hand(tiny, inputs, weight)
    assert log["loss"] == pytest.approx(loss, rel=1e-4)
    assert log["grad_norm"] == pytest.approx(norm, rel=1e-3)
    table = training.read_log(tmp_path, "terms").set_index("term")
    assert table["value"].to_dict() == pytest.approx(terms, rel=1e-4)
    weights = table["weight"].to_dict()
    assert weights == pytest.approx(
        {"utility": 1.0, "refusal": float("nan") if weight is None else weight}, nan_ok=True
    )


def test_weights_differ(tiny, inputs):
    """So that what is compared above could differ."""
    found = [by_hand(tiny, inputs, weight)[0] for weight in (None, 0.0, 0.5, 2.0)]
    assert min(abs(a - b) for i, a in enumerate(found) for b in found[:i]) > 1e-3


def test_it_needs_the_token_tree(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("mechrefusal.training.trainer.ArmTrainer.rows_trouble", lambda self: "packing is on")
    settings, own = replace(SETTINGS, tree=False), training.SFTSettings(refusal_weight=1.0)
    with pytest.raises(MechrefusalError, match="rows cannot be run as a token tree: packing is on"):
        training.train("sft", **inputs, out=tmp_path, settings=settings, arm_settings=own)
