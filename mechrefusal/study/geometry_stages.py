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


def directions(subject: Measurement) -> Results:
    """Directions of the prompts that the metric keeps, or of all where too few were kept; of all; and harmfulness.

    Those of all are the same prompts' at every checkpoint, which drift compares. Harmfulness is at the last instruction
    token, where the template has one.
    """
    everything, split, model = subject.prompts.direction, subject.kept_direction, subject.model
    texts, tokenizer = [*everything.harmful, *everything.harmless], model.tokenizer
    after = geometry.post_instruction_positions(tokenizer, texts)
    instruction: tuple[int, ...] = ()
    with suppress(MechrefusalError):  # a template without one; `coupling` then says why
        instruction = (geometry.last_instruction_position(tokenizer, texts),)
    positions = (*instruction, *after)
    sizes = [(len(side.harmful), len(side.harmless)) for side in (split, everything)]
    enough = min(sizes[0]) >= subject.settings.fewest_kept
    if enough and sizes[0] != sizes[1]:
        whole, part = geometry.difference_in_means_of_part(model, everything, split, positions=positions)
    else:
        whole = part = geometry.difference_in_means(model, everything, positions=positions)
    part = part.of_positions(after)
    run, checkpoint = subject.run, subject.checkpoint
    yield run.directions(checkpoint), part
    yield run.locked_directions(checkpoint), whole.of_positions(after)
    yield run.harmfulness_directions(checkpoint), whole.of_positions(instruction) if instruction else None
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
            for row, layer in product(range(len(part.positions)), range(model.cfg.n_layers))
        ],
    )


def subspaces(subject: Measurement) -> Results:
    """Families of subspaces at the best candidate's place, up to the largest that the recipe asks for."""
    settings, largest = subject.recipe.geometry, subject.recipe.geometry.largest_subspace
    if largest < 1:
        return
    if (best := subject.best) is None:
        yield "subspaces", _why("subspaces", NO_PLACE, flags=("admissible", "smallest"))
        return
    harmful, harmless = (
        collect(subject.model, prompt_ids(subject.model.tokenizer, prompts.texts), [best.place])[:, 0]
        for prompts in (subject.kept_direction.harmful, subject.kept_direction.harmless)
    )
    categories = subject.kept_direction.harmful.table["category"].tolist()
    families = [
        families_of.categories(harmful, harmless, categories, largest=largest),
        families_of.pca(harmful, harmless, largest=largest),
        families_of.successive(harmful, harmless, largest=largest),
    ]
    if settings.cone_steps:
        cone = geometry.ConeSettings(
            steps=settings.cone_steps, addition=settings.cone_addition, retain=settings.cone_retain
        )
        split, metric = subject.kept_direction, subject.metric
        learned = geometry.learn_cone(subject.model, best, split, metric, largest=largest, settings=cone)
        families += [learned.subspace, families_of.random_cone(best, largest)]
    families.append(families_of.random_subspace(largest, subject.model.cfg.d_model))
    scored = geometry.score_subspaces(
        subject.model,
        families,
        subject.kept_validation,
        subject.metric,
        difference=best,
        admissible=subject.settings.admissible,
        largest=largest,
        samples=settings.cone_samples,
    )
    yield "subspaces", scored.table


def separability(subject: Measurement) -> Results:
    """How far apart harmful and harmless prompts lie, on all direction prompts: the same ones at every checkpoint."""
    measured = geometry.Separability.of(subject.model, subject.prompts.direction)
    yield "separability", measured.table
    yield "separability_draws", measured.drawn


def overlap(subject: Measurement) -> Results:
    """Do refusals of safe prompts share refusal's direction? Table `overlap`."""
    texts, refused = subject.over_refused()
    if subject.best is None or not texts:
        why = NO_PLACE if subject.best is None else "no safe prompts that look unsafe were asked"
        yield "overlap", _why("overlap", why)
        return
    of_kept = (subject.read("directions")["selection"] == KEPT).all()
    split = subject.kept_direction if of_kept else subject.prompts.direction
    table = geometry.over_refusal_overlap(
        subject.model, subject.best, texts, refused, harmful=split.harmful, harmless=split.harmless
    )
    yield "overlap", table


def coupling(subject: Measurement) -> Results:
    """Harmfulness and refusal, as means (table `coupling`) and as linear probes (table `linear_probes`).

    On all direction prompts: which of them are refused is what the probes of refusal tell apart.
    """
    if (n := subject.recipe.geometry.n_coupled) == 0:
        return
    everything, last = subject.prompts.direction, subject.locked.positions[-1]
    layer = subject.best.layer if subject.best is not None else subject.model.cfg.n_layers // 2
    activations = geometry.ContrastActivations.of(subject.model, everything, position=last)
    where: dict[str, Any] = {"layer": layer, "position": last, "activations": activations}
    means = subject.locked.means if subject.settings.reference == HARMLESS else None
    yield (
        "coupling",
        geometry.harmfulness_refusal_coupling(
            subject.model, everything, subject.prompts.validation, subject.metric, n_prompts=n, means=means, **where
        ),
    )
    refused = metrics.refused(subject.answers[subject.answers["suite"] == "direction_harmful"]).tolist()
    safe, safe_refused = subject.over_refused()
    yield (
        "linear_probes",
        geometry.linear_probes(
            subject.model, everything, refused=refused, safe=safe or None, safe_refused=safe_refused or None, **where
        ),
    )


def doses(subject: Measurement) -> Results:
    """What refusal and harmless answers do as the best candidate is taken out and put in by degrees."""
    if (n := subject.recipe.geometry.n_dosed) == 0:
        return
    if subject.best is None:
        yield "utility_coupling", _why("utility_coupling", NO_PLACE)
        return
    response = geometry.dose_response(
        subject.model,
        subject.best,
        subject.prompts.validation.harmful.take(n),
        subject.prompts.harmless.take(n),
        subject.metric,
        coefficients=subject.recipe.geometry.doses,
    )
    yield "doses", response.table
    yield "utility_coupling", response.area


def _why(name: str, reason: str, *, flags: Sequence[str] = ()) -> list[dict]:
    """Table `name` with one row, which holds nothing but the reason; `flags`: columns that are False in it."""
    return [empty_row(name) | dict.fromkeys(flags, False) | {"reason": reason}]
