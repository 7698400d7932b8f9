"""One intervention on one checkpoint: what it answers without and with it, side by side, judged.

In a notebook:

    import mechrefusal as mr
    prompts = mr.prompts.builtin().evaluation.harmful.take(8)
    answers = mr.study.ablated("checkpoints/demo/r2d2/step-00018", prompts, direction="best")
    answers.rates                                        # refusal rates with intervals
    answers.table[["prompt", "baseline", "intervened"]]

It measures: nothing here changes or writes weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import pandas as pd
from torch import Tensor

from mechrefusal import causal
from mechrefusal.causal.reference import ZERO, Reference, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import DEGENERATE, refuses
from mechrefusal.files import require_writable, whole_file
from mechrefusal.forward.direction import Carrier, Direction, direction_of
from mechrefusal.models import Checkpoint, Placed, load_causal_lm, load_tokenizer
from mechrefusal.prompts import ChatSettings, PromptSet
from mechrefusal.statistics import intervals
from mechrefusal.study.checkpoints import located, refusal_judge, require_room
from mechrefusal.study.interventions import NAMES, NamedDirection

SUFFIXES = (".parquet", ".csv", ".jsonl")
ANSWERS = ("baseline", "intervened")


@dataclass(frozen=True)
class Ablated:
    """What a checkpoint answered without and with an intervention.

    `table`: one row a prompt, columns prompt_id, prompt, baseline, intervened (completions), baseline_refused,
    intervened_refused, baseline_degenerate, intervened_degenerate (bool), intervention, judge, weights.
    `rates`: one row an answer (baseline, intervened) and metric (any_refusal, degenerate): value, n and the 95%
    Wilson interval (low, high).
    """

    table: pd.DataFrame
    rates: pd.DataFrame
    intervention: str
    weights: str

    def write(self, path: Path | str) -> Path:
        """Write the table in full, as parquet, CSV or JSON lines by the suffix, whole or not at all."""
        path = writable_table(path)
        with whole_file(path) as draft:
            if path.suffix == ".parquet":
                self.table.to_parquet(draft, index=False)
            elif path.suffix == ".csv":
                self.table.to_csv(draft, index=False)
            else:
                self.table.to_json(draft, orient="records", lines=True, force_ascii=False)
        return path


def ablated(
    source: Checkpoint | Path | str,
    prompt_set: PromptSet,
    *,
    direction: str | Path | Tensor | Direction | Carrier = "carrier",
    add: float | None = None,
    dose: float | None = None,
    induce: float | None = None,
    reference: str | None = None,
    layer: int | None = None,
    position: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    judge: Judge | None = None,
    chat: ChatSettings | None = None,
    placed: Placed | None = None,
) -> Ablated:
    """Greedy answers of a checkpoint without and with a direction ablated (or added), and whether they refuse.

    Args:
        source: a checkpoint of a run (its folder, or RUN/sft-step-00050), or with a direction any model folder or name.
        direction: "carrier" of the checkpoint's run; "best": the carrier, or the best candidate where it has none (the
            lowest bypass among those with an admissible KL, or among all where none has one); "random", the control; a
            safetensors file that `Directions.save` wrote, or with one tensor (d_model, or k × d_model: a subspace);
            such a tensor, a `Direction` or a `Carrier`.
        add: coefficient: the direction is added at `layer` (by default its own) instead of ablated everywhere.
        dose: of the ablation, by default 1.
        induce: how far from the mean of harmless prompts (0) to that of harmful ones (1) the direction's part is set,
            in place of an ablation.
        reference: what is ablated to: "harmless", the mean of harmless prompts, or "zero" (see `causal.Reference`). By
            default what the direction was chosen with; zero for a file with one tensor, or a tensor.
        layer, position: which of a file of directions. `layer` is also where to add.
        seed: of the random direction. It has the norm of "best" where it is added in a run, else norm 1.
        max_new_tokens: longest answer.
        judge: of refusal; by default the one that the checkpoint's run measures by, without a run the built-in rules.
        chat: how a model is asked that belongs to no run (`prompts.ChatSettings`): thinking or not, and for how long.
        placed: where models lie and in which numbers, fields of a `models.Placement`; by default
            as the run's recipe says.

    Raises:
        MechrefusalError: no prompts; no such direction, one of other weights or of another width; a layer that is not
            there; options that contradict each other; a prompt that leaves no room for its answer in the context.
    """
    _check(prompt_set, add=add, dose=dose, induce=induce, reference=reference, max_new_tokens=max_new_tokens)
    run, checkpoint = located(source, chat=chat, placed=placed)
    judge = judge if judge is not None else refusal_judge(run)
    if isinstance(direction, Tensor):
        chosen = Direction(direction, kind="given direction")
    elif isinstance(direction, Direction | Carrier):
        chosen = direction_of(direction)
        if chosen.weights and chosen.weights != checkpoint.weights:
            raise MechrefusalError(f"the {chosen.name} is of weights {chosen.weights}, not of {checkpoint.weights}")
    else:
        named = NamedDirection(str(direction), position, layer)
        chosen = named.at(run, checkpoint, seed=seed, added=add is not None or induce is not None)
    if add is None and layer is not None and layer != chosen.layer:
        raise MechrefusalError(f"layer {layer} says nothing to an ablation, which is done at every layer: leave it out")
    if position is not None and (not isinstance(direction, str | Path) or str(direction) in NAMES):
        raise MechrefusalError(f"position {position} belongs to a file of directions; leave it out for {chosen.name}")
    intervention, words = _intervention(
        chosen, add=add, dose=1.0 if dose is None else dose, induce=induce, reference=reference, layer=layer
    )
    tokenizer, what = load_tokenizer(checkpoint), f"the context of '{checkpoint.path}'"
    require_room(checkpoint.path, tokenizer, prompt_set, max_new_tokens=max_new_tokens, what=what)
    model, tokenizer = load_causal_lm(checkpoint)
    with causal.intervened(model, intervention):
        pass  # what does not fit the model is said before anything is generated
    table = pd.DataFrame({"prompt_id": prompt_set.ids, "prompt": prompt_set.texts})
    for name, under in zip(ANSWERS, (None, intervention), strict=True):
        with causal.intervened(model, under):
            answers = complete(
                model,
                prompt_set.texts,
                tokenizer=tokenizer,
                max_new_tokens=max_new_tokens,
                description=f"{name} answers",
            )
        table[name] = list(answers.texts)
    labels = {name: judge.judge(prompt_set.texts, table[name].tolist())["label"].tolist() for name in ANSWERS}
    table = table.assign(
        **{f"{name}_refused": [refuses(label) for label in labels[name]] for name in ANSWERS},
        **{f"{name}_degenerate": [label == DEGENERATE for label in labels[name]] for name in ANSWERS},
        intervention=words,
        judge=judge.name,
        weights=checkpoint.weights,
    )
    return Ablated(table, pd.DataFrame(_rates(table)), words, checkpoint.weights)


def writable_table(path: Path | str) -> Path:
    """The path; MechrefusalError where no table can be written there, which is tried and leaves nothing."""
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise MechrefusalError(f"cannot write '{path}': give a file that ends in {', '.join(SUFFIXES)}")
    require_writable(path)
    return path


def _check(
    prompt_set: PromptSet,
    *,
    add: float | None,
    dose: float | None,
    induce: float | None,
    reference: str | None,
    max_new_tokens: int,
) -> None:
    if len(prompt_set) == 0:
        raise MechrefusalError("there is no prompt to ask; give one at least")
    if max_new_tokens < 1:
        raise MechrefusalError(f"max_new_tokens is {max_new_tokens}; give 1 at least")
    if sum(value is not None for value in (add, dose, induce)) > 1:
        raise MechrefusalError(
            "a dose belongs to an ablation, add is the coefficient of an addition, and induce sets the part to a mean: "
            "give one of dose, add and induce"
        )
    if reference is not None:
        require_reference(reference)
        if add is not None or induce is not None:
            raise MechrefusalError(
                f"reference '{reference}' says what an ablation leaves: leave it out, or leave out add and induce"
            )
    for name, value in (("add", add), ("dose", dose), ("induce", induce)):
        if value is not None and not isfinite(value):
            raise MechrefusalError(f"{name} is {value}; give a finite number")


def _intervention(
    chosen: Direction, *, add: float | None, dose: float, induce: float | None, reference: str | None, layer: int | None
) -> tuple[causal.Intervention, str]:
    if induce is not None:
        setting = Reference.of(chosen, coefficient=induce)
        return causal.taken_out(chosen, reference=setting), f"set {chosen.name} to the {setting.name}"
    if add is None:
        ablation = causal.taken_out(chosen, reference=reference, dose=dose)
        words = f"ablate {chosen.name} to {'zero' if ablation.reference is None else f'the {ablation.reference.name}'}"
        return ablation, words + (f", dose {dose:g}" if dose != 1 else "")
    there = replace(chosen, layer=chosen.layer if layer is None else layer, reference=ZERO)
    return causal.put_in(there, dose=add), f"add {add:g} × {chosen.name} at layer {there.layer}"


def _rates(table: pd.DataFrame) -> Iterator[dict]:
    for metric, column in (("any_refusal", "refused"), ("degenerate", "degenerate")):
        for name in ANSWERS:
            estimate = intervals.rate(int(table[f"{name}_{column}"].sum()), len(table))
            yield {"answers": name, "metric": metric, **vars(estimate)}
