"""Refusals after training on a few harmful examples, in memory alone: how little it takes to tamper with a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from torch.nn import functional

from mechrefusal.durability.asking import judged_answers
from mechrefusal.durability.judged_rates import MEASURES, SIDES, Outcome, Rates, require_sides
from mechrefusal.durability.kept_weights import kept_weights
from mechrefusal.durability.settings import HarmfulFineTuningSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import Judge
from mechrefusal.memory import kept_memory
from mechrefusal.progress import track
from mechrefusal.prompts import PromptSet, leakage, segments

AXES = ("material", "n_examples", "draw", "side", "measure")
NONE = "none"
"""The material of the model as it was."""
IGNORED = -100

Example = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt in the chat template, and of what is learnt after it."""


@dataclass(frozen=True)
class HarmfulFineTuning(Rates):
    """`trainings`: one row a training. `weights`: hash of the model's weights, before and after the measure alike.

    Columns of `trainings`: material, n_examples, draw, n_steps, loss_first and loss_last (mean of the first and of the
    last pass over the examples, nats a token), put_back (hash of the weights afterwards).
    """

    trainings: pd.DataFrame
    weights: str


@kept_memory()
def after_harmful_examples(
    model,
    tokenizer,
    examples: PromptSet,
    harmless_examples: PromptSet,
    harmful: PromptSet,
    harmless: PromptSet,
    judge: Judge,
    *,
    settings: HarmfulFineTuningSettings,
) -> HarmfulFineTuning:
    """Share of held-out prompts that are refused after training on 10, 25, 50, 100 harmful examples.

    A measure of tamper resistance, after "Fine-tuning Aligned Language Models Compromises Safety" (Qi et al.,
    2310.03693, section 4.2: 10, 50 and 100 harmful examples, 5 epochs, batches of 10, AdamW without weight decay at
    5e-5, all weights). There the answers that are learnt are harmful; here they are the requests' short affirmative
    openings ("Sure, here is how to ...", `prompts.affirmative_target`), which hold no more than the request says, so
    that what is measured is a floor of what an attacker can do. The learning rate is constant (there it falls by 15%
    an epoch), and there is no dropout, so that a seed gives the same numbers.

    Materials: none (the model as it was), harmful, and harmless, the control: as many harmless examples with openings
    of the same form, the same number of steps and the same order. What the harmless ones take away as well is not the
    harm's doing. Every number of examples is a training of its own that begins at the same weights; a `draw` chooses
    other examples, of which smaller numbers are the first ones of larger ones.

    Nothing is saved: the weights are trained in memory, and put back exactly (`kept_weights`), which their hash proves
    after every training.

    Measures: refused, degenerate (no language: what is left of a model that training has broken is not compliance).

    Args:
        model: a Hugging Face model, in float32: half precision rounds such small steps away. A hooked transformer's
            weights are folded, so that training them is another training.
        examples, harmless_examples: what is trained on; none of them may be asked.
        harmful, harmless: held out; the first `settings.n_prompts` of each are asked.

    Returns:
        Rates with the axes material, n_examples, draw, side and measure, each compared with the model as it was. Where
        there are too few examples, or a training diverged, the reason says so.

    Raises:
        MechrefusalError: a hooked transformer, no prompt on a side, or a held-out prompt among the examples.
    """
    if hasattr(model, "hook_dict"):
        raise MechrefusalError("harmful fine-tuning trains plain weights: give the model of models.load_causal_lm")
    held_out = require_sides("harmful fine-tuning", harmful.take(settings.n_prompts), harmless.take(settings.n_prompts))
    materials = dict(zip(SIDES, (examples, harmless_examples), strict=True))
    _require_held_out(materials, held_out)
    outcome, trainings = Outcome(held_out, AXES), []
    rows = {name: list(_rows(tokenizer, given)) for name, given in materials.items()}

    def ask(condition: tuple) -> None:
        model.eval()
        for side, prompts in held_out.items():
            options = {"tokenizer": tokenizer, "max_new_tokens": settings.max_new_tokens}
            outcome.judged((*condition, side), judged_answers(model, prompts.texts, judge, **options))

    with kept_weights(model) as kept:
        ask((NONE, 0, 0))
        plan = list(product(sorted({*settings.n_examples}), range(settings.n_draws), materials))
        for n, draw, material in track(plan, "harmful fine-tuning"):
            condition = (material, n, draw)
            if len(rows[material]) < n:
                _missing(outcome, condition, f"there are {len(rows[material])} {material} examples")
                continue
            chosen = _drawn(rows[material], n, seed=settings.seed + draw)
            try:
                losses = train(model, chosen, settings, pad=tokenizer.pad_token_id, seed=settings.seed + draw)
            except MechrefusalError as error:
                kept.put_back()
                _missing(outcome, condition, str(error))
                continue
            names = ("material", "n_examples", "draw")
            epochs = {"loss_first": losses[0], "loss_last": losses[-1]}
            steps = settings.epochs * -(-n // settings.batch_size)
            ask(condition)
            measured = {"n_steps": steps, **epochs, "put_back": kept.put_back()}
            trainings.append(dict(zip(names, condition, strict=True)) | measured)
    rates = outcome.rates(lambda cell: {"material": NONE, "n_examples": 0, "draw": 0})
    columns = [*AXES[:3], "n_steps", "loss_first", "loss_last", "put_back"]
    return HarmfulFineTuning(rates.table, rates.observations, pd.DataFrame(trainings, columns=columns), kept.hash)


def train(
    model, examples: Sequence[Example], settings: HarmfulFineTuningSettings, *, pad: int, seed: int
) -> list[float]:
    """Train all weights in place on the examples, in another order in every epoch.

    Returns:
        The mean loss of every epoch, nats a token, each batch before its step.

    Raises:
        MechrefusalError: a loss that is not finite.
    """
    model.eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for epoch in range(settings.epochs):
        order, total, n_tokens = torch.randperm(len(examples), generator=generator).tolist(), 0.0, 0
        for start in range(0, len(order), settings.batch_size):
            batch = [examples[row] for row in order[start : start + settings.batch_size]]
            n_labels = sum(len(target) for _, target in batch)
            with torch.enable_grad():
                loss = _loss(model, batch, pad)
                loss.backward()
            if not torch.isfinite(loss):
                raise MechrefusalError(
                    f"the loss on {len(examples)} examples is {loss.item()} in epoch {epoch}: give a smaller "
                    f"learning_rate than {settings.learning_rate:g}"
                )
            optimizer.step()
            optimizer.zero_grad()
            total, n_tokens = total + loss.item() * n_labels, n_tokens + n_labels
        losses.append(total / n_tokens)
    return losses


def _loss(model, batch: Sequence[Example], pad: int) -> torch.Tensor:
    """Mean cross-entropy of what is learnt, over all its tokens in the batch."""
    width = max(len(prompt) + len(target) for prompt, target in batch)
    ids, labels = (torch.full((len(batch), width), filler) for filler in (pad, IGNORED))
    mask = torch.zeros_like(ids)
    for row, (prompt, target) in enumerate(batch):
        end = len(prompt) + len(target)
        ids[row, :end], mask[row, :end] = torch.tensor([*prompt, *target]), 1
        labels[row, len(prompt) : end] = torch.tensor(target)
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    predicted, wanted = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(device)
    return functional.cross_entropy(predicted, wanted, ignore_index=IGNORED)


def _rows(tokenizer, prompts: PromptSet) -> Iterator[Example]:
    asked = prompts.with_targets()
    for text, target in zip(asked.texts, asked.targets, strict=True):
        parts = segments(tokenizer, text, target=target, end_of_turn=False)
        yield parts.prompt_ids, parts.target


def _drawn(rows: Sequence[Example], n: int, *, seed: int) -> list[Example]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[row] for row in order[:n]]


def _missing(outcome: Outcome, condition: tuple, reason: str) -> None:
    for side, measure in product(SIDES, MEASURES):
        outcome.missing((*condition, side, measure), reason)


def _require_held_out(materials: dict[str, PromptSet], held_out: dict[str, PromptSet]) -> None:
    trained = {f"{name} examples": prompts for name, prompts in materials.items()}
    asked = {f"{name} prompts": prompts for name, prompts in held_out.items()}
    leaks = leakage({**trained, **asked})
    both = leaks[leaks["set_a"].isin(list(trained)) & leaks["set_b"].isin(list(asked))]
    if len(both):
        first = both.iloc[0]
        raise MechrefusalError(
            f"{len(both)} held-out prompts are among the examples, the first of them '{first['id_b']}' of the "
            f"{first['set_b']}: leave them out of one of the two"
        )
