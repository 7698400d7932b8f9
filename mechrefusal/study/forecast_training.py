"""What training a recipe's arms runs."""

from collections.abc import Iterator

from mechrefusal.study.forecast_work import Counting, Work, packed


def training(counting: Counting) -> Iterator[tuple[str, Work]]:
    """Every arm's training, and the warm-up that they share."""
    settings, prompts = counting.recipe.training, counting.prompts
    behaviours = counting.ids(prompts.behaviours)
    mean = sum(map(len, behaviours)) / max(1, len(behaviours))
    if settings.tree is not False and len(behaviours) > 1:  # what all prompts begin with is run once a step
        mean -= len(behaviours[0]) + len(behaviours[1]) - packed(behaviours[:2])
    answer = counting.recipe.prompts.answer_tokens + 12
    if settings.warm_up:
        rows = (settings.warm_up_utility_per_step or settings.utility_per_step) + (
            settings.warm_up_harmful_per_step or settings.harmful_per_step
        )
        yield "train warm-up", Work(backward=settings.warm_up * rows * (mean + answer))
    steps = settings.steps - settings.warm_up
    for arm in counting.recipe.planned_arms:
        rows = (settings.utility_per_step + settings.harmful_per_step) * settings.gradient_accumulation
        work = Work(backward=steps * rows * (mean + answer))
        if (gcg := getattr(arm.settings, "gcg", None)) is not None:
            cases = getattr(arm.settings, "cases_per_step", settings.harmful_per_step)
            tried = gcg.steps * gcg.width * (gcg.suffix_length + answer)
            work += Work(steps * cases * tried, steps * cases * tried / 2, backward=steps * cases * gcg.steps * mean)
        yield f"train {arm.name}", work
