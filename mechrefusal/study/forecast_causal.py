"""What the stages of cause and attribution run at a checkpoint, and what patching between checkpoints does."""

from functools import partial

from mechrefusal.causal.attribution_patching.gradients import STEPS
from mechrefusal.causal.attribution_patching.screening import SITES
from mechrefusal.causal.cross_patching.activations import DEFAULT_SITES
from mechrefusal.models import Checkpoint
from mechrefusal.models.batches import common_length
from mechrefusal.study.across import Pairs
from mechrefusal.study.forecast_work import THROUGH_ACTIVATIONS, TRYING, Counting, Ids, Work, packed

TRIED = 30
"""Tokens of trying out whether a site can be patched on trees: rows of some of ten tokens, on trees and by hooks."""
READ_IN_FLOAT64 = 4
"""Numbers that reading a weight matrix in float64 copies for each of its own."""
CELLS = 0.002
"""Seconds of a patched cell's interval and its row in a table."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]


def attribution(counting: Counting) -> Work:
    """What is written onto the logits and onto a direction, from which tokens, and the logit lens at every layer."""
    size, n = counting.size, counting.recipe.measuring.n_attributed
    sides = counting.evaluation(n)
    work, n_prompts = Work(), sum(map(len, sides))
    for side in sides:
        alone = sum((counting.read([ids]) for ids in side), Work())
        work += 3 * counting.read(side) + alone
    lens = Work(logits=(size.n_layers + 1) * n_prompts)
    read = (4 + 2 * n_prompts) * size.n_layers * size.width**2
    return work + lens + Work(copied=READ_IN_FLOAT64 * read)


def patching(counting: Counting) -> Work:
    """Pairs patched at the recipe's sites: heads at all layers, the stream and writes by layer and position.

    Then the finalists of a screen by gradients, and as many others, at each of its sites.
    """
    causal, measuring, size = counting.recipe.causal, counting.recipe.measuring, counting.size
    every = pairs_of(counting)
    chosen = every[: measuring.n_pairs]
    if not chosen:
        return Work()
    everywhere, layers = range(size.n_layers), range(0, size.n_layers, measuring.layer_step)
    above = {"z": 1, "resid_pre": 0} | ({"attn_out": 1, "mlp_out": 1} if causal.sites else {})
    work = len(above) * Work(TRIED, passes=5)
    for pair in chosen:
        own = _own(pair)
        for site, on in above.items():
            patches = _heads(counting, pair) if site == "z" else _patched(
                counting, pair, len(layers) * own, (own + 1) / 2, depth=counting.from_layer(layers, on=on)
            )  # fmt: skip
            work += len(causal.modes) * patches
    n_positions = max(_own(pair) for pair in chosen)
    n_cells = size.n_layers * size.n_heads + (len(above) - 1) * len(layers) * n_positions
    work += Work(seconds=CELLS * len(causal.modes) * n_cells)
    look = [ids for ids in every[0] for _ in range(2)]
    work += sum((counting.read([ids]) for ids in look), Work())
    if n := causal.n_finalists:
        runs = STEPS if causal.screening == "eap-ig" else 1
        for pair in chosen:
            own = _own(pair)
            work += _both(pair) + _gradients(pair, runs)
            for site in SITES:
                depth = counting.from_layer(everywhere, on=site != "resid_pre")
                work += _patched(counting, pair, 2 * n, own if site == "z" else (own + 1) / 2, depth=depth)
    return work


def knock_out(counting: Counting) -> Work:
    """Every head and MLP of the recipe's layers knocked out alone, then the smallest set searched for.

    Assumes that the search goes on to the largest set that is allowed.
    """
    causal, size = counting.recipe.causal, counting.size
    n = min(causal.n_knocked_out, len(counting.prompts.validation.harmful), len(counting.prompts.validation.harmless))
    if not n:
        return Work()
    draws, whole = 4 if causal.how == "resample" else 1, causal.how == "zero"
    run = counting.read if whole else counting.apart
    harmful, harmless = counting.validation(n)
    both, unseen = [*harmful, *harmless], [ids for side in counting.evaluation(n) for ids in side]
    layers = range(0, size.n_layers, causal.layer_step)
    work = len(layers) * (size.n_heads + 1) * draws * run(both, depth=counting.from_layer(layers))
    ready = partial(_knock_out_ready, counting, run)
    work += ready(both, harmful) + ready(both, harmful)
    tried = min(causal.n_candidates, len(layers) * size.n_heads)
    largest = min(causal.largest_set, tried)
    work += tried * draws * run(harmful, depth=counting.from_layer(layers))
    for k in range(2, largest + 1):
        work += (tried - k + 1) * draws * run(harmful, depth=_from_lowest(k))
    work += ready(unseen, unseen[: len(unseen) // 2])
    for k in range(1, largest + 1):
        curve = (1 + causal.n_random) * run(both, depth=_from_lowest(k)) + run(unseen, depth=_from_lowest(k))
        work += draws * curve
    return work


def circuit(counting: Counting) -> Work:
    """Every head and MLP patched, all paths between those that are kept, and what sets of them do alone.

    Assumes that as many are kept as the recipe allows.
    """
    causal, size = counting.recipe.causal, counting.size
    pairs = pairs_of(counting)[: counting.recipe.measuring.n_pairs]
    if not causal.n_nodes or not pairs:
        return Work()
    choosing, measured = (pairs[::2], pairs[1::2]) if len(pairs) >= 4 else (pairs, pairs)
    every = (size.n_heads + 1) * size.n_layers
    n = min(causal.n_nodes, every)
    n_edges = (n + 1) * (n + 2) // 2
    work = Work(TRIED, passes=5) + sum(map(_both, pairs), Work())
    for pair in choosing:
        own = _own(pair)
        above = counting.from_layer(range(size.n_layers), on=1)
        work += _heads(counting, pair) + _patched(counting, pair, size.n_layers, own, depth=above) + Work(own, passes=1)
        work += _paths(counting, pair, n, n_edges)
    if measured is not choosing:
        for pair in measured:
            own = _own(pair)
            work += (
                _both(pair) + _patched(counting, pair, n, own, depth=0.5) + _paths(counting, pair, n, causal.n_edges)
            )
    both = [ids for side in zip(*measured, strict=True) for ids in side]
    reference = [ids for pair in choosing for ids in pair]
    work += _knock_out_ready(counting, counting.apart, both, both[: len(measured)], reference) + counting.apart(both)
    sizes = {0, n, every, *(2**k for k in range(every.bit_length()) if 2**k < every)}
    for k in sizes:
        work += (1 + causal.n_random) * (bool(k) * counting.apart(both, depth=_from_lowest(k)))
        work += (1 + causal.n_random) * (bool(every - k) * counting.apart(both, depth=_from_lowest(every - k)))
    return work


def cross_patching(counting: Counting) -> Work:
    """Activations of each of a pair put into the other, one site of a layer or head at a time, and turned."""
    causal, size = counting.recipe.causal, counting.size
    if not causal.n_crossed:
        return Work()
    layers = range(0, size.n_layers, causal.layer_step)
    cells, depth = len(layers) * (len(DEFAULT_SITES) - 1 + size.n_heads), counting.from_layer(layers)
    work = Work()
    for side in counting.validation(causal.n_crossed):
        kept = counting.read(side)
        work += 2 * (3 * kept + cells * (1 + causal.n_rotations) * counting.read(side, depth=depth))
    pairs = ends(counting)
    opened = len({checkpoint.id for pair in pairs for checkpoint in pair}) if pairs else 0
    return len(pairs) * work + opened * (counting.opening + TRYING)


def ends(counting: Counting) -> list[tuple[Checkpoint, Checkpoint]]:
    """Where each arm starts with its last checkpoint, and the last ones of the arms with each other."""
    return Pairs(counting.checkpoints, given=tuple(counting.recipe.checkpoints)).ends()


def pairs_of(counting: Counting) -> list[Pair]:
    """Pairs of equal length, harmful and harmless."""
    pairs = counting.prompts.pairs_for(counting.tokenizer)
    return list(zip(counting.ids(pairs.harmful), counting.ids(pairs.harmless), strict=True))


def _own(pair: Pair) -> int:
    """Tokens of a prompt of a pair from the first on in which the two differ."""
    return len(pair[0]) - common_length(pair)


def _both(pair: Pair) -> Work:
    """Both prompts of a pair as they are."""
    return Work(packed(pair), 2, passes=1)


def _heads(counting: Counting, pair: Pair) -> Work:
    """Every head patched at all positions: what each makes of its layer's output, then all that comes after it."""
    size, own = counting.size, _own(pair)
    above = counting.from_layer(range(size.n_layers), on=1)
    return Work(size.n_heads * own, passes=1) + _patched(counting, pair, size.n_heads * size.n_layers, own, depth=above)


def _patched(counting: Counting, pair: Pair, n: int, own: float, *, depth: float) -> Work:
    """So many patches of `own` tokens each: rows join a pass at the layer above which they differ."""
    passes = max(1, n * own / counting.patched_at_once)
    once = {"tokens_at_once": n * own / passes, "logits_at_once": n / passes}
    return _both(pair) + Work(depth * n * own, n, passes=passes, **once)


def _gradients(pair: Pair, runs: int) -> Work:
    """The other prompt as it is, and `runs` passes back through activations alone."""
    n = len(pair[0])
    back = THROUGH_ACTIVATIONS * runs * n
    return Work(n, 2 * n, passes=1 + 3 * runs, backward=back, logits_at_once=n, backward_at_once=n)


def _paths(counting: Counting, pair: Pair, n_nodes: int, n: int) -> Work:
    """Paths into receivers: each runs the receiver's block alone, and all that comes after it."""
    own, n_layers = _own(pair), counting.size.n_layers
    alone = (n_nodes + n) / n_layers
    passes = min(n_nodes + 1, n) * (0.5 + 2 / n_layers)
    return Work(2 * own + (n / 2 + alone) * own, n, passes=2 + passes)


def _knock_out_ready(counting: Counting, run, both: Ids, harmful: Ids, reference: Ids | None = None) -> Work:
    """Prompts made ready to be knocked out in: their common beginning, what enters each layer, and what stands in."""
    beginning = Work(counting.head, 1, passes=1)
    entering = run(both) + run(harmful)
    return 3 * beginning + run(both) + entering + run(both if reference is None else reference)


def _from_lowest(k: int) -> float:
    """Share of the layers from the lowest of `k` of them on, on average."""
    return k / (k + 1)
