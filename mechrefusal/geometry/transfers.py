"""Transfer: a direction found at one checkpoint, ablated and put in at another."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal import put_in, random_like, taken_out
from mechrefusal.causal.reference import HARMLESS
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry.contrast import Contrast
from mechrefusal.geometry.directions import Directions
from mechrefusal.geometry.held_out import ChosenCandidate
from mechrefusal.geometry.scoring import Scorer, as_array
from mechrefusal.models import is_direction
from mechrefusal.progress import track
from mechrefusal.statistics import intervals

CONTROL_SEED = 0

HALVES = ("decrease_half_low", "decrease_half_high")

_COLUMNS = (
    *(f"{name}{end}" for name in ("bypass", "induce", "decrease", "rise") for end in ("", "_low", "_high")),
    "kl", "random_bypass", "random_decrease", "random_induce",
    "decrease_held_out", "decrease_held_out_low", "decrease_held_out_high", *HALVES,
)  # fmt: skip


def transfer(
    model,
    directions: Mapping[str, Direction],
    validation: Contrast,
    metric: RefusalMetric,
    *,
    target_directions: Directions | None = None,
    halves: Mapping[str, Float[Tensor, "two d_model"]] | None = None,
    chosen: Mapping[str, ChosenCandidate] | None = None,
    description: str = "transfer",
) -> pd.DataFrame:
    """What directions of other checkpoints (or of this one) do at `model`.

    Args:
        model: the target, a hooked transformer.
        directions: by any name, with their places, of whatever weights. Those of another architecture are an error.
        validation: prompts that are the same for every target, or nothing could be compared.
        metric: of the target.
        target_directions: the target's own. What a direction is ablated to, and set to in place of an addition, are
            then the means of the target's own harmless and harmful prompts at the position and from the layer where
            the direction was found; None: zero at every layer, and addition.
        halves: by name, the directions of two halves of the direction prompts at the same place (see
            `Directions.halves`).
        chosen: by name, those that the harmful prompts of `validation`, or some of them, chose at this target: on these
            they look better than they are.

    Returns:
        One row a name (column `source`): position, layer, bypass, induce, kl as for carriers, with 95% t intervals over
        prompts; `baseline_harmful`, `baseline_harmless` without intervention; `decrease` (how far ablation lowers the
        mean score of the harmful prompts) and `rise` (how far putting it in lifts that of the harmless ones), with 95%
        t intervals over the prompts' own differences: what sets prompts apart without any intervention is not in them;
        `decrease_held_out` with its 95% interval: of those in `chosen` the decrease of every prompt under what the
        other prompts would choose (`held_out.ChosenCandidate.decrease`), to be compared with that of directions that
        these prompts did not choose; NaN for all others;
        `random_bypass`, `random_induce`, `random_decrease` with a random direction of the same norm;
        `decrease_half_low`, `decrease_half_high`: the lesser and the greater decrease (nats, mean of the harmful
        prompts) with the direction of one half of the direction prompts ablated and with that of the other, which is
        what the noise of those prompts does: NaN without `halves`, or where one is zero or not finite; n_harmful,
        n_harmless; `reason` where a direction is zero or not finite.

    Raises:
        MechrefusalError: a direction, or its halves, of another width, a layer that the model does not have, or no
            prompts.
    """
    halves = halves or {}
    here = {name: _moved(model, name, direction, target_directions) for name, direction in directions.items()}
    for name, both in halves.items():
        if both.shape != (2, model.cfg.d_model):
            raise MechrefusalError(
                f"halves of direction '{name}' have shape {tuple(both.shape)}; give two directions of width "
                f"{model.cfg.d_model}, or none"
            )
    if not directions:
        return pd.DataFrame()
    scorer = Scorer(model, validation, metric)
    baseline = {
        "baseline_harmful": scorer.base.harmful.mean().item(),
        "baseline_harmless": scorer.base.harmless.mean().item(),
        "n_harmful": scorer.n_harmful,
        "n_harmless": scorer.n_harmless,
    }
    rows = []
    random_bypass: dict[tuple[int | None, ...], float] = {}
    for name, direction in track(list(here.items()), description):
        row = {"source": name, "position": direction.position, "layer": direction.layer, **baseline}
        if not is_direction(direction.vector):
            nothing = dict.fromkeys(_COLUMNS, float("nan"))
            rows.append({**row, **nothing, "reason": "its direction is zero or not finite"})
            continue
        control = random_like(direction, seed=CONTROL_SEED)
        ablated = scorer.under(taken_out(direction))
        # Ablated to zero neither its length nor its place matters, so that one control serves all.
        place = () if target_directions is None else (direction.position, direction.layer)
        if place not in random_bypass:
            random_bypass[place] = scorer.on_harmful(taken_out(control)).mean().item()
        induced, by_chance = (scorer.on_harmless(put_in(each)) for each in (direction, control))
        changes = {
            "bypass": ablated.harmful,
            "induce": induced,
            "decrease": scorer.base.harmful - ablated.harmful,
            "rise": induced - scorer.base.harmless,
        }
        estimates = {name: intervals.mean(as_array(values)) for name, values in changes.items()}
        estimates["decrease_held_out"] = intervals.mean([])
        if chosen is not None and name in chosen:
            before, after = as_array(scorer.base.harmful), as_array(ablated.harmful)
            estimates["decrease_held_out"] = chosen[name].decrease(before, after)
        values = {
            **{column: value for name, mean in estimates.items() for column, value in mean.columns(name).items()},
            "kl": ablated.kl.mean().item(),
            "random_bypass": random_bypass[place],
            "random_induce": by_chance.mean().item(),
            "random_decrease": baseline["baseline_harmful"] - random_bypass[place],
            **_by_half(scorer, direction, halves.get(name)),
        }
        rows.append({**row, **{column: values[column] for column in _COLUMNS}, "reason": ""})
    return pd.DataFrame(rows)


def _moved(model, name: str, direction: Direction, target_directions: Directions | None) -> Direction:
    """The direction as one of the target's own, at the place where it was found, with the target's means."""
    position, layer, width = direction.position, direction.layer, model.cfg.d_model
    if position is None or layer is None or direction.vector.shape != (width,) or not 0 <= layer < model.cfg.n_layers:
        raise MechrefusalError(
            f"direction '{name}' is of width {direction.vector.shape[-1]} at layer {layer}; this model has width "
            f"{width} and {model.cfg.n_layers} layers: transfer needs one architecture, and directions with a place"
        )
    if target_directions is None:
        return Direction(direction.vector, position, layer, kind=direction.kind)
    here = target_directions.at(position, layer, reference=HARMLESS)
    return Direction(direction.vector, position, layer, kind=direction.kind, means=here.means, reference=HARMLESS)


def _by_half(scorer: Scorer, direction: Direction, both: Float[Tensor, "two d_model"] | None) -> dict[str, float]:
    """What ablation lowers by with either half's direction; its length does not matter."""
    # In the precision of the whole, in which a half may be too small or too large to be one.
    halves = None if both is None else both.to(direction.vector)
    if halves is None or not all(map(is_direction, halves)):
        return dict.fromkeys(HALVES, float("nan"))
    base = scorer.base.harmful.mean().item()
    decreases = [base - scorer.on_harmful(taken_out(replace(direction, vector=half))).mean().item() for half in halves]
    return dict(zip(HALVES, sorted(decreases), strict=True))
