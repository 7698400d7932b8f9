"""Estimates of one pair's patches from gradients, by TransformerLens' tool or by our own pass where that gives none.

`eap` takes the gradient in the run that is patched (first order); `eap-ig` its mean over runs in which the embedding is
on the way from that of the target to that of the source (integrated gradients; Hanna et al., 2403.17806).
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import (
    Asked,
    Batch,
    Edit,
    Metric,
    PairRun,
    Place,
    RefusalMetric,
    Runner,
    Site,
    flat,
    hook_name,
    runner_of,
)
from mechrefusal.forward.hooked_runner import HookedRunner
from mechrefusal.forward.unhooked import FAILURES, failure

Method = Literal["eap", "eap-ig"]
STEPS = 5
"""Runs of `eap-ig`, as published."""

Tool = Literal["transformer_lens", "token trees", "hooks"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
Estimates = dict[Site, dict[int, Tensor]]
"""By site and layer: [token] or [token, head]; tokens are those of the prompt and, after it, of its runs."""

Result = TypeVar("Result")


def estimates(
    model,
    run: PairRun,
    metric: Metric,
    sites: Sequence[Site],
    *,
    method: Method = "eap",
    steps: int = STEPS,
    tool: Tool | None = None,
) -> tuple[Estimates, Tool]:
    """(a_source − a_target) · ∂m/∂a at every token, and the tool that gave the gradient.

    Raises:
        MechrefusalError: an unknown method, no steps; the metric has no gradient, or no tool (or not this one) gives
            one.
    """
    points = shares(method, steps)
    first: dict[Tool, Callable[[], Estimates]] = {}
    if method == "eap":  # TransformerLens' tool knows the gradient in one run only
        first["transformer_lens"] = lambda: _by_transformer_lens(model, run, metric, sites)

    def by_runner(runner: Runner) -> Estimates:
        return _by_runner(PairGradients(runner, run, metric), sites, points)

    return by_tools(model, first, by_runner, sites, tool)


def shares(method: str, steps: int) -> tuple[float, ...]:
    """Where the gradient is taken: how far the embedding is from the target's (0) to the source's (1).

    Integrated gradients as published: k / steps for k = 1 … steps.

    Raises:
        MechrefusalError: an unknown method, or fewer steps than 1.
    """
    if method not in get_args(Method):
        raise MechrefusalError(f"unknown gradient method '{method}'; use {' or '.join(map(repr, get_args(Method)))}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MechrefusalError(f"steps is {steps!r}: give the number of runs between the two prompts, at least 1")
    return (0.0,) if method == "eap" else tuple(k / steps for k in range(1, steps + 1))


def by_tools(
    model,
    first: Mapping[Tool, Callable[[], Result]],
    by_runner: Callable[[Runner], Result],
    sites: Collection[Site],
    tool: Tool | None,
) -> tuple[Result, Tool]:
    """What the first tool that works gives, and its name; `tool` alone is tried where it is given.

    Args:
        first: tools that are tried before our own passes.
        by_runner: our own passes, on the model's runner for `sites`, and through hooks if that gives no gradient.

    Raises:
        MechrefusalError: none of them works.
    """
    make: dict[Tool, Callable[[], Result]] = dict(first)
    runner = runner_of(model, sites=tuple(sites))
    make.setdefault(runner.name, lambda: by_runner(runner))
    make.setdefault("hooks", lambda: by_runner(HookedRunner(model, "asked for")))
    reasons = []
    for name in make if tool is None else (tool,):
        if name not in make:
            why = runner.why if name == "token trees" else "it has no integrated gradients"
            reasons.append(f"{name}: {why}")
            continue
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return make[name](), name
        except FAILURES as error:
            reasons.append(f"{name}: {failure(error)}")
    raise MechrefusalError(f"no gradient for attribution patching ({'; '.join(reasons)}); use exact patching")


class PairGradients:
    """Both prompts of a pair with every run after them, ready to be run with gradients."""

    def __init__(self, runner: Runner, run: PairRun, metric: Metric) -> None:
        self.model, self.run, self.metric = runner.model, run, metric
        self.source, self.target = (
            runner.batch([Asked(prompt, run.reader.runs, run.reader.kept)]) for prompt in (run.source, run.target)
        )

    def recorded(self, batch: Batch, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Flat activations at `places` of a prompt as it is."""
        with torch.no_grad():
            cache = batch.run(keep=places).cache
        return {place: cache[place] for place in places}

    def by_position(self, values: Float[Tensor, "place ..."]) -> Tensor:
        """Flat values summed over what stands at the same position, after different runs too; on the CPU."""
        position = torch.full((self.target.n_tokens,), -1)
        for places in self.target.places:
            position[places.cpu()] = torch.arange(len(places))
        known = position >= 0  # the others are padding
        total = torch.zeros(int(position.max()) + 1, *values.shape[1:], dtype=values.dtype)
        return total.index_add(0, position[known], values.cpu()[known])

    def score(self, edits: Sequence[Edit]) -> Float[Tensor, ""]:
        """The metric of the target under `edits`, differentiable.

        Raises:
            MechrefusalError: it is not.
        """
        logits = self.target.run(edits).logits
        parts = [part[None] for part in logits]
        return differentiable(self.metric, parts)


def differentiable(metric: Metric, parts: Sequence[Float[Tensor, "row place vocab"]]) -> Float[Tensor, ""]:
    """The metric of the first row.

    Raises:
        MechrefusalError: it has no gradient although the logits have one.
    """
    scores = metric.of_runs(parts) if isinstance(metric, RefusalMetric) else metric(parts[0][:, -1])
    if parts[0].requires_grad and not (isinstance(scores, Tensor) and scores.requires_grad):
        raise MechrefusalError(
            "the metric has no gradient with regard to the logits, which attribution patching needs; give one "
            "made of differentiable operations on them (no argmax, no detach), or use exact patching"
        )
    return scores[0].float()


def _by_transformer_lens(model, run: PairRun, metric: Metric, sites: Sequence[Site]) -> Estimates:
    names = {(site, layer): hook_name(layer, site) for site in sites for layer in range(model.cfg.n_layers)}
    hook_names = ["hook_embed", *names.values()]  # the hooks of gradients fire above a point that is asked for, too
    source, target = (run.padded(prompt).to(model.cfg.device) for prompt in (run.source, run.target))

    def score(logits: Float[Tensor, "run token vocab"]) -> Float[Tensor, ""]:
        return differentiable(metric, [part.float() for part in run.read(logits.split(1))])

    def leaf(activation: Tensor, hook) -> Tensor:
        return activation.detach().requires_grad_(True)  # the weights have no gradients

    with torch.no_grad():
        before = cache_activation_and_gradient(model, source, score, hook_names, compute_gradient=False)
    with model.hooks(fwd_hooks=[("hook_embed", leaf)]), warnings.catch_warnings():
        # The embedding's own input, token ids, has no gradient, and none is asked for.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        after = cache_activation_and_gradient(model, target, score, hook_names)
    products: Estimates = {site: {} for site in sites}
    for (site, layer), name in names.items():
        gradient = after.gradients[name]
        if gradient is None:
            raise ValueError(f"no gradient at {name}")
        change = before.activations[name] - after.activations[name]
        product = flat(model, site, change.double() * gradient.double()).sum(-1)
        products[site][layer] = product.unflatten(0, source.shape).sum(0).cpu()  # over the rows of the runs
    return products


def _by_runner(both: PairGradients, sites: Sequence[Site], points: Sequence[float]) -> Estimates:
    """The change at every site times the mean gradient of the metric with regard to it over `points`."""
    places: list[Place] = [(layer, site) for site in sites for layer in range(both.model.cfg.n_layers)]
    recorded = list(dict.fromkeys([EMBEDDED, *places]))
    source, target = (both.recorded(batch, recorded) for batch in (both.source, both.target))
    total: dict[Place, Tensor] = {}
    for share in points:
        graph: dict[Place, Tensor] = {}
        score = both.score([between(source, target, share), *watching(places, graph)])
        gradients = torch.autograd.grad(score, [graph[place] for place in places], materialize_grads=True)
        for place, gradient in zip(places, gradients, strict=True):
            total[place] = total.get(place, 0) + flat(both.model, place[1], gradient).double() / len(points)
    products: Estimates = {site: {} for site in sites}
    for place in places:
        product = (source[place] - target[place]).double() * total[place]
        products[place[1]][place[0]] = both.by_position(product.sum(-1))
    return products


EMBEDDED: Place = (0, "resid_pre")
"""Where the embedding is read; gradients start there."""


def between(source: Mapping[Place, Tensor], target: Mapping[Place, Tensor], share: float) -> Edit:
    """The embedding on the way from target to source, as a leaf that has a gradient."""
    embedding = target[EMBEDDED] + share * (source[EMBEDDED] - target[EMBEDDED])
    return (*EMBEDDED, lambda activation: embedding.reshape(activation.shape).detach().requires_grad_(True))


def watching(places: Iterable[Place], into: dict[Place, Tensor]) -> list[Edit]:
    """Edits that keep activations as they pass, each in a tensor of its own, which all that follows reads."""

    def watch(place: Place) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            into[place] = activation.clone()
            return into[place]

        return edit

    return [(*place, watch(place)) for place in places]
