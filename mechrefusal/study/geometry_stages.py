"""Stages of the geometry of one checkpoint: its directions, and what is read off them at the best candidate's place."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from typing import Any

from mechrefusal import geometry
from mechrefusal.causal.reference import HARMLESS
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import metrics
from mechrefusal.geometry import subspaces as families_of
from mechrefusal.geometry.activations import collect
from mechrefusal.prompts import prompt_ids
from mechrefusal.study.carrier_choice import empty_row
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.stages import Results

KEPT, ALL = "kept by score", "all prompts"
"""`selection` in table `directions`: which direction prompts they are of."""
NO_PLACE = "no candidate could be scored, so there is no place to look at"


def directions(at: Measurement) -> Results:
    """Directions of the prompts that the metric keeps, or of all where too few were kept; of all; and harmfulness.

    Those of all are the same prompts' at every checkpoint, which drift compares. Harmfulness is at the last instruction
    token, where the template has one.
    """
    everything, tokenizer = at.prompts.direction, at.model.tokenizer
    texts = [*everything.harmful, *everything.harmless]
    after = geometry.post_instruction_positions(tokenizer, texts)
    instruction: tuple[int, ...] = ()
    with suppress(MechrefusalError):  # a template without one; `coupling` then says why
        instruction = (geometry.last_instruction_position(tokenizer, texts),)
    wanted = (*instruction, *after)
    sizes = [(len(split.harmful), len(split.harmless)) for split in (at.kept_direction, everything)]
    enough = min(sizes[0]) >= at.settings.fewest_kept
    if enough and sizes[0] != sizes[1]:
        whole, part = geometry.difference_in_means_of_part(at.model, everything, at.kept_direction, positions=wanted)
    else:
        whole = part = geometry.difference_in_means(at.model, everything, positions=wanted)
    part = part.of_positions(after)
    yield at.run.directions(at.checkpoint), part
    yield at.run.locked_directions(at.checkpoint), whole.of_positions(after)
    yield at.run.harmfulness_directions(at.checkpoint), whole.of_positions(instruction) if instruction else None
    norms, cosines, zeros = part.values.norm(dim=-1), part.split_half_cosine, part.zero_distance
    yield (
        "directions",
        [
            {
                "position": part.positions[row],
                "token": part.tokens[row],
                "layer": layer,
                "norm": norms[row, layer].item(),
                "split_half_cosine": cosines[row, layer].item(),
                "zero_distance": zeros[row, layer].item(),
                "n_harmful": part.n_harmful,
                "n_harmless": part.n_harmless,
                "selection": KEPT if enough else ALL,
            }
            for row, layer in product(range(len(part.positions)), range(at.model.cfg.n_layers))
        ],
    )


def subspaces(at: Measurement) -> Results:
    """Families of subspaces at the best candidate's place, up to the largest that the recipe asks for."""
    settings, largest = at.recipe.geometry, at.recipe.geometry.largest_subspace
    if largest < 1:
        return
    if (best := at.best) is None:
        yield "subspaces", _why("subspaces", NO_PLACE, flags=("admissible", "smallest"))
        return
    harmful, harmless = (
        collect(at.model, prompt_ids(at.model.tokenizer, prompts.texts), [best.place])[:, 0]
        for prompts in (at.kept_direction.harmful, at.kept_direction.harmless)
    )
    categories = at.kept_direction.harmful.table["category"].tolist()
    families = [
        families_of.categories(harmful, harmless, categories, largest=largest),
        families_of.pca(harmful, harmless, largest=largest),
        families_of.successive(harmful, harmless, largest=largest),
    ]
    if settings.cone_steps:
        cone = geometry.ConeSettings(
            steps=settings.cone_steps, addition=settings.cone_addition, retain=settings.cone_retain
        )
        learned = geometry.learn_cone(at.model, best, at.kept_direction, at.metric, largest=largest, settings=cone)
        families += [learned.subspace, families_of.random_cone(best, largest)]
    families.append(families_of.random_subspace(largest, at.model.cfg.d_model))
    scored = geometry.score_subspaces(
        at.model,
        families,
        at.kept_validation,
        at.metric,
        difference=best,
        admissible=at.settings.admissible,
        largest=largest,
        samples=settings.cone_samples,
    )
    yield "subspaces", scored.table


def overlap(at: Measurement) -> Results:
    """Do refusals of safe prompts share refusal's direction? Table `overlap`."""
    texts, refused = at.over_refused()
    if at.best is None or not texts:
        why = NO_PLACE if at.best is None else "no safe prompts that look unsafe were asked"
        yield "overlap", _why("overlap", why)
        return
    of_kept = (at.read("directions")["selection"] == KEPT).all()
    split = at.kept_direction if of_kept else at.prompts.direction
    yield (
        "overlap",
        geometry.over_refusal_overlap(
            at.model, at.best, texts, refused, harmful=split.harmful, harmless=split.harmless
        ),
    )


def coupling(at: Measurement) -> Results:
    """Harmfulness and refusal, as means (table `coupling`) and as linear probes (table `linear_probes`).

    On all direction prompts: which of them are refused is what the probes of refusal tell apart.
    """
    if (n := at.recipe.geometry.n_coupled) == 0:
        return
    everything, last = at.prompts.direction, at.locked.positions[-1]
    layer = at.best.layer if at.best is not None else at.model.cfg.n_layers // 2
    activations = geometry.ContrastActivations.of(at.model, everything, position=last)
    where: dict[str, Any] = {"layer": layer, "position": last, "activations": activations}
    means = at.locked.means if at.settings.reference == HARMLESS else None
    yield (
        "coupling",
        geometry.harmfulness_refusal_coupling(
            at.model, everything, at.prompts.validation, at.metric, n_prompts=n, means=means, **where
        ),
    )
    refused = metrics.refused(at.answers[at.answers["suite"] == "direction_harmful"]).tolist()
    safe, safe_refused = at.over_refused()
    yield (
        "linear_probes",
        geometry.linear_probes(
            at.model, everything, refused=refused, safe=safe or None, safe_refused=safe_refused or None, **where
        ),
    )


def doses(at: Measurement) -> Results:
    """What refusal and harmless answers do as the best candidate is taken out and put in by degrees."""
    if (n := at.recipe.geometry.n_dosed) == 0:
        return
    if at.best is None:
        yield "utility_coupling", _why("utility_coupling", NO_PLACE)
        return
    response = geometry.dose_response(
        at.model,
        at.best,
        at.prompts.validation.harmful.take(n),
        at.prompts.harmless.take(n),
        at.metric,
        coefficients=at.recipe.geometry.doses,
    )
    yield "doses", response.table
    yield "utility_coupling", response.area


def _why(name: str, reason: str, *, flags: Sequence[str] = ()) -> list[dict]:
    """Table `name` with one row, which holds nothing but the reason; `flags`: columns that are False in it."""
    return [empty_row(name) | dict.fromkeys(flags, False) | {"reason": reason}]
