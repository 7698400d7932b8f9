"""What the stages of answers and of geometry run at a checkpoint, and what carrying directions to others does."""

from math import ceil

from mechrefusal.attacks import autodan_texts, jailbreaks
from mechrefusal.geometry.cones import ConeSettings
from mechrefusal.geometry.doses import ANSWER_TOKENS
from mechrefusal.geometry.screening import FEWEST, PILOTS
from mechrefusal.prompts import prompt_ids
from mechrefusal.study.forecast_work import SHARING, THROUGH_ACTIVATIONS, TRYING, UNHOOKING, Counting, Ids, Work

CHUNK, SHARE = 4, 0.25
"""Prompts of one pass of `geometry.difference_in_means`; share of the validation prompts that a screen runs."""
FINALISTS = 3
"""Candidates that a screen scores exactly, beside its pilots: those that could win, which nothing says before."""
DRAWN = 1.7e-6
"""Seconds of the bootstraps of separability at a layer, for each pair of prompts."""
FITS, RESAMPLES = 0.15, 0.05
"""Seconds of a linear probe of two classes, some hundred fits in the span of a hundred prompts at most, whatever the
width; and of the resamples behind the cosines of a layer."""


def answers(counting: Counting) -> Work:
    """Every suite, the direction prompts and the attack cases; the unhooked model is tried out before."""
    suites = counting.ids(*counting.prompts.evaluation_sets().values())
    asked = [*suites, *counting.direction[0], *counting.direction[1], *_attacked(counting)]
    return UNHOOKING + counting.answered(asked, counting.recipe.measuring.max_new_tokens)


def _attacked(counting: Counting) -> Ids:
    """Attack cases as long as they get: in every template, in one of AutoDAN's, or with a suffix of GCG's length."""
    attack = counting.recipe.attack
    known = {template.name: template.text for template in jailbreaks.templates()}
    around = {
        "templates": [known[name] for name in attack.templates.names or known if name in known],
        "autodan": [autodan_texts.seeds()[0]],
        "gcg": [jailbreaks.PLACEHOLDER + " !" * attack.gcg.suffix_length],
    }
    behaviours = counting.prompts.harmful.take(attack.n_cases).texts
    texts = [
        jailbreaks.filled(text, each) for each in behaviours for method in attack.methods for text in around[method]
    ]
    return [tuple(ids) for ids in prompt_ids(counting.tokenizer, texts)]


def refusal_metric(counting: Counting) -> Work:
    """Direction prompts as the metric is discovered, which tries the empty opening first, then all that it scores.

    Trees are tried out before.
    Assumes that the first tokens tell refusals from answers; whole openings, where they do not, take more.
    """
    direction = [*counting.direction[0], *counting.direction[1]]
    validation = counting.validation()
    return SHARING + counting.read(direction) + counting.read([*direction, *validation[0], *validation[1]])


def directions(counting: Counting) -> Work:
    """The direction prompts, few at a time."""
    depth = 1 - 1 / counting.size.n_layers
    harmful, harmless = counting.direction
    return _read_both(counting, harmful, harmless, depth=depth, at_most=CHUNK)


def separability(counting: Counting) -> Work:
    """The direction prompts once more, and bootstraps over them at every layer."""
    asked = [*counting.direction[0], *counting.direction[1]]
    drawn = Work(seconds=counting.size.n_layers * DRAWN * len(asked) ** 2)
    return counting.read(asked, depth=1 - 1 / counting.size.n_layers) + drawn


def carriers(counting: Counting) -> Work:
    """Candidates by layer and position, each ablated on both sides and put in on the harmless one.

    A screen runs all of them on a sample, and the pilots and `FINALISTS` exactly; then halves of the direction prompts
    choose among `n_contenders`. Finalists and contenders lie about the best candidate's layer, all others anywhere but
    in layer 0, where prompts do not differ yet at the template's tokens: there is no direction to be scored.
    Assumes that all validation prompts are kept, and that there is a carrier.
    """
    geometry, measuring, n_layers = counting.recipe.geometry, counting.recipe.measuring, counting.size.n_layers
    validation, zero = counting.validation(), not counting.goes_to_means
    layers = [layer for layer in measuring.admissible.layers(n_layers)[:: geometry.layer_step] if layer]
    n_positions = min(counting.tail, measuring.n_positions or counting.tail)
    n, anywhere, about_best = n_positions * len(layers), counting.from_layer(layers), 1 - counting.place

    def scored(sides: tuple[Ids, Ids], *, to_zero: bool, from_place: float) -> Work:
        """A candidate from whose place on a share of the layers is run."""
        ablated = 1.0 if to_zero else from_place
        return counting.read([*sides[0], *sides[1]], depth=ablated) + counting.read(sides[1], depth=from_place)

    def made_ready(sides: tuple[Ids, Ids]) -> Work:
        both = [*sides[0], *sides[1]]
        return counting.read(both) + counting.read(both) + counting.read(sides[1])

    def chosen(*, to_zero: bool) -> Work:
        """All candidates by one reference."""
        if not geometry.screen or n < 2 or all(len(each) <= FEWEST for each in validation):
            return n * scored(validation, to_zero=to_zero, from_place=anywhere)
        sizes = [max(FEWEST, ceil(SHARE * len(side))) for side in validation]
        sample = validation[0][: sizes[0]], validation[1][: sizes[1]]
        pilots = min(n, PILOTS)
        work = made_ready(sample) + n * scored(sample, to_zero=to_zero, from_place=anywhere)
        work += pilots * scored(validation, to_zero=to_zero, from_place=anywhere)
        return work + min(n - pilots, FINALISTS) * scored(validation, to_zero=to_zero, from_place=about_best)

    halves = min(n, geometry.n_contenders) * 2 * scored(validation, to_zero=zero, from_place=about_best)
    work = made_ready(validation) + chosen(to_zero=zero) + halves
    if zero:
        return work
    once = scored(validation, to_zero=True, from_place=about_best)
    return work + (chosen(to_zero=True) if geometry.score_zero else once)


def subspaces(counting: Counting) -> Work:
    """Families of subspaces: a cone that is learned through the model, and all of them scored.

    Of the families all but the cones are spans, of 1 to `largest_subspace` directions; of a cone of more than one,
    directions are drawn, each of which is scored by itself.
    """
    settings = counting.recipe.geometry
    largest = settings.largest_subspace
    if not largest:
        return Work()
    harmful, harmless = counting.direction
    validation = counting.validation()
    work = _read_both(counting, harmful, harmless, depth=counting.place, logits=False)
    if settings.cone_steps:
        batch = ConeSettings.batch
        sides = [each[:batch] for each in (harmful, harmless)]
        both, step = [*sides[0], *sides[1]], counting.read([*sides[0], *sides[1]], depth=counting.after)
        step += counting.read(sides[1], depth=1 - counting.place)
        n_batches = min(settings.cone_steps, max(1, *(len(each) // batch for each in (harmful, harmless))))
        ready = counting.read(sides[1]) + counting.ready(sides[1]) + counting.ready(both)
        back = Work(
            logits=step.logits, passes=3 * step.passes, backward=THROUGH_ACTIVATIONS * step.tokens,
            logits_at_once=len(both), backward_at_once=step.tokens,
        )  # fmt: skip
        work += n_batches * ready + settings.cone_steps * back
    both = [*validation[0], *validation[1]]
    scored = counting.read(both, depth=counting.after) + counting.read(validation[1], depth=1 - counting.place)
    spans = 4 * largest + bool(settings.cone_steps)
    drawn = 2 * (largest - 1) * settings.cone_samples if settings.cone_steps else 0
    return work + counting.read(both) + counting.ready(both) + counting.read(validation[1]) + (spans + drawn) * scored


def overlap(counting: Counting) -> Work:
    """Safe prompts and the direction prompts, read at the best candidate's layer."""
    safe = counting.ids(counting.prompts.overrefusal)
    if not safe:
        return Work()
    sides = (safe, *counting.direction)
    return sum((counting.read(each, depth=counting.place, logits=False, at_most=32) for each in sides), Work())


def coupling(counting: Counting) -> Work:
    """Direction prompts read at every layer; some prompts ablated three ways and added to four ways; and the probes.

    Probes are of harmfulness and of refusal, at two places of every layer, and one of refusals of safe prompts. Assumes
    that all harmful prompts are refused, as elsewhere: of one class there is no probe, which leaves harmfulness.
    """
    if not (n := counting.recipe.geometry.n_coupled):
        return Work()
    size, (harmful, harmless) = counting.size, counting.validation(n)
    read = _read_both(counting, *counting.direction, depth=1 - 1 / size.n_layers, logits=False, at_most=32)
    ablated = counting.read(harmful) + counting.ready(harmful) + 3 * counting.read(harmful, depth=counting.after)
    added = counting.read(harmless) + counting.read(harmless) + 4 * counting.read(harmless, depth=1 - counting.place)
    later = (1 + counting.place) / 2
    apart = 4 * counting.read([*harmful, *harmless], depth=later, logits=False, at_most=32)
    safe = counting.read(counting.ids(counting.prompts.overrefusal), depth=counting.place, logits=False, at_most=32)
    fitted = Work(seconds=size.n_layers * (RESAMPLES + 2 * FITS))
    return read + ablated + added + apart + safe + fitted


def doses(counting: Counting) -> Work:
    """A direction taken out and put in by degrees, on prompts and on the model's own answers to them.

    A random direction gets every other of the doses.
    """
    settings = counting.recipe.geometry
    if not (n := settings.n_dosed):
        return Work()
    harmful, harmless = counting.validation(n)[0], counting.evaluation(n)[1]
    both = [*harmful, *harmless]
    answered = [ids + (-1 - row,) * (ANSWER_TOKENS - 1) for row, ids in enumerate(harmless)]
    losses = counting.read(answered)
    losses += Work(logits=len(harmless) * (ANSWER_TOKENS - 1))
    grid = sorted({*settings.doses, 0.0})
    coarse = {*grid[::2], grid[-1], 0.0}
    edited = 2 * (len(grid) - 1) + 2 * (len(coarse) - 1)
    work = counting.answered(harmless, ANSWER_TOKENS) + counting.read(both) + counting.ready(both)
    work += losses + counting.ready(answered)
    return work + edited * (counting.read(both, depth=counting.after) + counting.after * losses)


def interventions(counting: Counting) -> Work:
    """Answers with the carrier, and a random direction, taken out and put in."""
    harmful, harmless = counting.evaluation(counting.recipe.measuring.n_intervened)
    n = counting.recipe.measuring.max_new_tokens
    of_harmful, of_harmless, both = (counting.answered(each, n) for each in (harmful, harmless, [*harmful, *harmless]))
    return both + of_harmful + 2 * of_harmless


def transfer(counting: Counting) -> Work:
    """Every checkpoint's direction, and a random one, at every checkpoint, with those of two halves of its prompts."""
    settings, n = counting.recipe.geometry, len(counting.checkpoints)
    if not settings.n_transferred:
        return Work()
    harmful, harmless = counting.validation(settings.n_transferred)
    both = [*harmful, *harmless]
    ready = counting.read(both) + counting.ready(both) + counting.ready(harmful) + counting.read(harmless)
    each = counting.read(both, depth=counting.after) + 3 * counting.read(harmful, depth=counting.after)
    each += 2 * counting.read(harmless, depth=1 - counting.place)
    return n * (counting.opening + TRYING + ready + n * each)


def _read_both(counting: Counting, harmful: Ids, harmless: Ids, **how) -> Work:
    return counting.read(harmful, **how) + counting.read(harmless, **how)
