"""What the stages of a recipe run: forward tokens, logits and generated tokens, counted before anything is run.

Prompts are known, so that tokens of passes over them are counted as passes share them. How long answers get, and how
many candidates a screen takes on, is not known: answers count in full, screens as what they are on average.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mechrefusal.prompts import PromptSet, prompt_ids
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import StudyPrompts

CHUNK = 4
"""Prompts of one pass of `geometry.difference_in_means`."""
SCREENED, INDUCED = 0.35, 0.5
"""Share of a full scoring of a candidate that a screen takes on average; share of the layers that an addition runs."""
EDITED = 1.2
"""Passes whose every site is edited, over plain ones."""
ATTRIBUTED = 15
"""Passes over the attributed prompts that as much time goes into as attribution takes: most of it is reading the
weights of all heads in float64."""
TRIED = 600
"""Tokens of trying out whether a site can be patched on trees, against hooks; three sites are."""
ANSWERED_AT_ONCE = 32
"""Prompts that are answered at once."""


@dataclass(frozen=True)
class Work:
    """What a stage runs.

    Fields:
        tokens: forward tokens in passes of many.
        logits: of them, those whose logits are read.
        generated: tokens that are generated one after another, of all prompts together.
        backward: tokens of passes with gradients.
    """

    tokens: float = 0
    logits: float = 0
    generated: float = 0
    backward: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * each for each in vars(self).values()))


class Counting:
    """Counts the stages of a recipe, whose prompts are known."""

    def __init__(self, recipe: Recipe, prompts: StudyPrompts, tokenizer, *, n_layers: int, n_heads: int) -> None:
        self.recipe, self.prompts, self.n_layers, self.n_heads = recipe, prompts, n_layers, n_heads
        self._tokenizer = tokenizer

    def ids(self, *sets: PromptSet | None) -> list[tuple[int, ...]]:
        """Token ids of all prompts of these sets."""
        texts = [text for each in sets if each is not None for text in each.texts]
        return [tuple(ids) for ids in prompt_ids(self._tokenizer, texts)]

    def stages(self) -> Iterator[tuple[str, Work]]:
        """The work of every stage that is taken at a checkpoint."""
        measuring, prompts = self.recipe.measuring, self.prompts
        direction = self.ids(prompts.direction.harmful, prompts.direction.harmless)
        validation = [self.ids(prompts.validation.harmful), self.ids(prompts.validation.harmless)]
        suites = self.ids(*prompts.evaluation_sets().values())
        attacked = self.ids(prompts.harmful.take(self.recipe.attack.n_cases)) * len(self.recipe.attack.methods)
        yield "answers", self.answered([*suites, *direction, *attacked])
        yield "refusal metric", Work(packed(direction) + packed([*direction, *validation[0], *validation[1]]),
                                     2 * len(direction) + sum(map(len, validation)))  # fmt: skip
        yield "directions", Work(packed(direction, at_once=CHUNK), len(direction))
        yield "carriers", self.carriers(validation)
        if prompts.overrefusal is not None and len(prompts.overrefusal):
            safe = self.ids(prompts.overrefusal, prompts.harmless)
            yield "over-refusal overlap", Work(packed(safe, at_once=ANSWERED_AT_ONCE), len(safe))
        n = measuring.n_intervened
        harmful, harmless = self.ids(prompts.harmful.take(n)), self.ids(prompts.harmless.take(n))
        yield "interventions", (self.answered(harmful) * 2 + self.answered(harmless) * 3) * EDITED
        attributed = self.ids(
            prompts.harmful.take(measuring.n_attributed), prompts.harmless.take(measuring.n_attributed)
        )
        yield "attribution", Work(ATTRIBUTED * packed(attributed), ATTRIBUTED * len(attributed))
        yield "patching", self.patching()

    def uncounted(self) -> list[str]:
        """Stages that the recipe asks for whose work is not counted yet."""
        causal, geometry = self.recipe.causal, self.recipe.geometry
        asked: dict[str, int] = {
            "subspaces": geometry.largest_subspace,
            "harmfulness and refusal": geometry.n_coupled,
            "dose-response": geometry.n_dosed,
            "knock-out": causal.n_knocked_out,
            "circuit": causal.n_nodes,
        }
        of_durability = {name: each.n_prompts for name, each in vars(self.recipe.durability).items()}
        named = {name.replace("_", " "): n for name, n in of_durability.items()}
        return [*(name for name, n in (asked | named).items() if n), "comparisons of checkpoints"]

    def answered(self, ids: Sequence[tuple[int, ...]]) -> Work:
        """Prompts that are answered: read, then continued token by token."""
        prefilled = sum(packed(part) for part in _parts(sorted(ids, key=len), ANSWERED_AT_ONCE))
        return Work(prefilled, len(ids), len(ids) * max(0, self.recipe.measuring.max_new_tokens - 1))

    def carriers(self, validation: Sequence[Sequence[tuple[int, ...]]]) -> Work:
        """Candidates by layer and position, each ablated on both sides and added on one."""
        geometry, measuring = self.recipe.geometry, self.recipe.measuring
        layers = int((1 - measuring.prune_layer_fraction) * self.n_layers)
        n = max(1, measuring.n_positions) * len(range(0, layers, max(1, geometry.layer_step)))
        sides = [packed(side) for side in validation]
        full = sides[0] + (1 + INDUCED) * sides[1]
        exact = geometry.n_contenders * (2 if geometry.score_zero else 1) + 4
        candidates = n * SCREENED + exact if geometry.screen else n
        return Work((candidates + 1) * full, candidates * 3 * max(map(len, validation)))

    def patching(self) -> Work:
        """Pairs patched at the recipe's sites: heads by layer, the stream by layer and position."""
        causal, measuring = self.recipe.causal, self.recipe.measuring
        pairs = self.prompts.pairs
        if pairs is None or not measuring.n_pairs:
            return Work()
        harmful = self.ids(pairs.harmful)[: measuring.n_pairs]
        harmless = self.ids(pairs.harmless)[: measuring.n_pairs]
        total = 3.0 * TRIED
        for a, b in zip(harmful, harmless, strict=True):
            shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            own, layers = len(b) - shared, len(range(0, self.n_layers, max(1, measuring.layer_step)))
            heads, stream = self.n_heads * layers * own, layers * own * own / 2
            total += 0.5 * len(causal.modes) * (heads + 3 * stream) + 4 * len(a)
        return Work(total, total / 8)

    def training(self) -> Iterator[tuple[str, Work]]:
        """Every arm's training, and the warm-up that they share."""
        settings, prompts = self.recipe.training, self.prompts
        behaviours = self.ids(prompts.behaviours)
        mean = sum(map(len, behaviours)) / max(1, len(behaviours))
        if settings.tree is not False and len(behaviours) > 1:  # what all prompts begin with is run once a step
            mean -= len(behaviours[0]) + len(behaviours[1]) - packed(behaviours[:2])
        answer = self.recipe.prompts.answer_tokens + 12
        if settings.warm_up:
            rows = (settings.warm_up_utility_per_step or settings.utility_per_step) + (
                settings.warm_up_harmful_per_step or settings.harmful_per_step
            )
            yield "train warm-up", Work(backward=settings.warm_up * rows * (mean + answer))
        steps = settings.steps - settings.warm_up
        for arm in self.recipe.planned_arms:
            rows = (settings.utility_per_step + settings.harmful_per_step) * settings.gradient_accumulation
            work = Work(backward=steps * rows * (mean + answer))
            if (gcg := getattr(arm.settings, "gcg", None)) is not None:
                cases = getattr(arm.settings, "cases_per_step", settings.harmful_per_step)
                suffix = gcg.suffix_length + answer
                tried = gcg.steps * gcg.width * suffix
                work = work + Work(
                    steps * cases * tried, steps * cases * tried / 2, 0, steps * cases * gcg.steps * mean
                )
            yield f"train {arm.name}", work


def _parts(ids: Sequence[Sequence[int]], size: int) -> Iterator[Sequence[Sequence[int]]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def packed(ids: Sequence[Sequence[int]], *, at_once: int = 4096) -> int:
    """Tokens that passes over prompts run: what prompts of one pass begin with in common is run once."""
    total = 0
    for part in _parts(ids, at_once):
        total += len({tuple(prompt[: end + 1]) for prompt in part for end in range(len(prompt))})
    return total
