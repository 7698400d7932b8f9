"""What the measures of durability run, at a checkpoint and between checkpoints."""

from mechrefusal.durability.lockstep import PADDED_TOKENS, ROWS
from mechrefusal.durability.prefilled import NEUTRAL_OPENINGS
from mechrefusal.study.across import SHARED
from mechrefusal.study.forecast_causal import ends
from mechrefusal.study.forecast_work import TRYING, Counting, Ids, Work
from mechrefusal.study.updates import pairs_of_updates

READ, STEPPED, MOMENTS = 3, 3.5, 2
"""Numbers that are copied for each parameter while plain weights are read; that a step of AdamW copies, as it reads
weight, gradient and both moments and writes all but the gradient; and that its first step sets to zero."""
VECTORS, VALUES = (6, 20), (2, 2)
"""Operations of a singular value decomposition of m × n, as (a, b) of a·m·n² + b·n³ with m the larger: with its
vectors, or of its values alone (Golub and Van Loan, 4th edition, figure 8.6.1)."""


def removal(counting: Counting) -> Work:
    """Trials on the search's prompts, and those that are confirmed, with random directions, on held-out ones.

    Assumes that every level of KL has a trial of its own.
    """
    settings = counting.recipe.durability.removal
    if not settings.n_prompts:
        return Work()
    work = Work()
    tried = settings.n_trials + 2
    confirmed = min(len(settings.kl_levels), tried) * (1 + settings.n_random)
    for (harmful, harmless), n in (
        (counting.validation(settings.n_prompts), tried),
        (counting.evaluation(settings.n_prompts), 1 + confirmed),
    ):
        once = counting.read(harmless)
        work += once + n * counting.answered(harmful, settings.max_new_tokens) + (n - 1) * once
    return work


def harmful_fine_tuning(counting: Counting) -> Work:
    """Trainings on harmful and on harmless examples, each from the same weights, and what is answered after each."""
    settings = counting.recipe.durability.harmful_fine_tuning
    if not settings.n_prompts:
        return Work()
    harmful, harmless = counting.evaluation(settings.n_prompts)
    asked = sum((counting.answered(side, settings.max_new_tokens) for side in (harmful, harmless)), Work())
    n_parameters = counting.size.parameters
    # What is put back, gradients and moments take memory once; later trainings find it there.
    work = asked + Work(copied=(READ + 2 + MOMENTS) * n_parameters, hashed=2 * n_parameters)
    sides = counting.prompts.behaviours.with_targets(), counting.prompts.instructions.with_targets()
    for n in sorted({*settings.n_examples}):
        for side in sides:
            ids = counting.ids(side)
            if len(ids) < n:
                continue
            targets = counting.tokenizer(side.targets, add_special_tokens=False)["input_ids"]
            lengths = [len(prompt) + len(target) for prompt, target in zip(ids, targets, strict=True)]
            size = min(n, settings.batch_size)
            batches = [max(lengths[start : start + size]) for start in range(0, len(lengths) - size + 1, size)]
            steps = settings.epochs * -(-n // settings.batch_size)
            padded = settings.epochs * n * sum(batches) / len(batches)
            once = {"logits_at_once": size * max(lengths), "backward_at_once": size * max(lengths)}
            trained = Work(logits=padded, passes=3 * steps, backward=padded, **once)
            stepped = Work(moved=(MOMENTS + STEPPED * steps) * n_parameters)
            put_back = Work(moved=n_parameters, hashed=n_parameters)
            work += settings.n_draws * (trained + asked + stepped + put_back)
    return work


def answer_length(counting: Counting) -> Work:
    """Long answers."""
    settings = counting.recipe.durability.answer_length
    if not settings.n_prompts:
        return Work()
    sides = counting.evaluation(settings.n_prompts)
    return sum((counting.answered(side, max(settings.lengths)) for side in sides), Work())


def prefilled(counting: Counting) -> Work:
    """Answers after no opening, and after so many tokens of the prompt's own and of each neutral one."""
    settings = counting.recipe.durability.prefilled
    if not settings.n_prompts:
        return Work()
    harmful, harmless = counting.evaluation(settings.n_prompts)
    lengths = [0, *sorted({*settings.n_tokens}) * (1 + len(NEUTRAL_OPENINGS))]
    asked = [ids + (-1,) * n for ids in (*harmful, *harmless) for n in lengths]
    return counting.answered(asked, settings.max_new_tokens, openings=counting.tail + max(lengths))


def update_spectrum(counting: Counting) -> Work:
    """Every matrix of each update decomposed, and answers with parts of it in place of the whole."""
    settings = counting.recipe.durability.update_spectrum
    if not settings.n_prompts:
        return Work()
    size, given = counting.size, tuple(counting.recipe.checkpoints)
    sides = counting.evaluation(settings.n_prompts)
    asked = sum((counting.answered(side, settings.max_new_tokens) for side in sides), Work())
    parts = len({*settings.scales, 1.0}) + len(settings.ranks) * (2 + 2 * settings.n_random)
    decomposed = sum(_decomposing(*shape, VECTORS) for shape in size.matrices)
    decomposed += sum(_decomposing(*shape, VALUES) for shape in {*size.matrices})
    once = Work(decomposed=decomposed, copied=(4 + 4 * parts) * size.parameters)
    n = len(list(pairs_of_updates(counting.checkpoints, given=given)))
    return n * (once + parts * asked)


def lockstep(counting: Counting) -> Work:
    """Both of a pair answer together, row by row and layer by layer, both ways; rotations on harmful prompts alone."""
    settings, n_layers = counting.recipe.durability.lockstep, counting.size.n_layers
    if not settings.n_prompts:
        return Work()
    layers = len({*range(0, n_layers, settings.layer_step), n_layers - 1})
    work = 2 * (counting.opening + TRYING)
    for side, cells in zip(
        counting.evaluation(settings.n_prompts), (layers * (1 + settings.n_rotations), layers), strict=True
    ):
        work += 2 * 2 * counting.answered(side, settings.max_new_tokens)
        work += 2 * 2 * _together([*side] * cells, settings.max_new_tokens)
    pairs = [first for first, second in ends(counting) if first.arm in (*SHARED, second.arm)]
    return len(pairs) * work


def _together(ids: Ids, n_tokens: int) -> Work:
    """One model's part in answers of which no beginning is shared."""
    width, steps, work = max(map(len, ids)), max(0, n_tokens - 1), Work()
    size = max(1, min(ROWS, PADDED_TOKENS // width))
    for start in range(0, len(ids), size):
        n = len(ids[start : start + size])
        once = {"tokens_at_once": n * width, "logits_at_once": n}
        work += Work(n * width, n * (1 + steps), n * steps, 1 + steps, **once)
    return work


def _decomposing(rows: int, columns: int, by: tuple[int, int]) -> float:
    larger, smaller = max(rows, columns), min(rows, columns)
    return by[0] * larger * smaller**2 + by[1] * smaller**3
