"""Estimates of one pair's patches from gradients, by TransformerLens' tool or by our own pass where that gives none.

`eap` takes the gradient in the run that is patched (first order); `eap-ig` its mean over runs in which the embedding is
on the way from that of the target to that of the source (integrated gradients; Hanna et al., 2403.17806).
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from mechrefusal.causal.patching.metric import Metric
from mechrefusal.causal.patching.sites import PairRun, Site, hook_name
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.unhooked import Edit, bridge_hooks, twin
from mechrefusal.forward.unhooked import Site as TwinSite

Method = Literal["eap", "eap-ig"]
STEPS = 5
"""Runs of `eap-ig`, as published."""

Tool = Literal["transformer_lens", "twin", "hooked"]
TOOLS: tuple[Tool, ...] = ("transformer_lens", "twin", "hooked")
Estimates = dict[Site, dict[int, Tensor]]
"""By site and layer: [token] or [token, head]; tokens are those of the prompt and, after it, of its runs."""

Found = TypeVar("Found")
Place = tuple[int, TwinSite]
"""Layer and site."""

_SITES: dict[Site, TwinSite] = {"head_z": "z", "attn_out": "attn_out", "mlp_out": "mlp_out", "resid_pre": "resid_pre"}


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
    both = Both(model, run, metric)
    wanted = {_SITES[site] for site in sites}
    make: dict[Tool, Callable[[], Estimates]] = {
        "twin": lambda: _own(both, sites, points, on_twin=True),
        "hooked": lambda: _own(both, sites, points, on_twin=False),
    }
    if method == "eap":  # TransformerLens' tool knows the gradient in one run only
        make = {"transformer_lens": lambda: _by_transformer_lens(both, sites), **make}
    return by_tools(model, make, wanted, tool)


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
    model, make: Mapping[Tool, Callable[[], Found]], sites: Collection[TwinSite], tool: Tool | None
) -> tuple[Found, Tool]:
    """What the first tool that works gives, and its name; `tool` alone is tried where it is given.

    Raises:
        MechrefusalError: none of them works.
    """
    reasons = []
    for name in make if tool is None else (tool,):
        if name not in make:
            reasons.append(f"{name}: it has no integrated gradients")
            continue
        if name == "twin" and not ((plain := twin(model)) and all(plain.has(site) for site in sites)):
            reasons.append("twin: the hooked transformer has none that agrees, or hooks are open")
            continue
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return make[name](), name
        except (ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
            if should_reduce_batch_size(error):
                raise  # that memory has run out says nothing about the tool
            reasons.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    raise MechrefusalError(f"no gradient for attribution patching ({'; '.join(reasons)}); use exact patching")


class Both:
    """Both prompts with every run after them, [run, token] in rows padded on the right."""

    def __init__(self, model, run: PairRun, metric: Metric) -> None:
        self.model, self.run, self.metric = model, run, metric
        self.source, self.target = (run.padded(prompt).to(model.cfg.device) for prompt in (run.source, run.target))

    def logits(self, tokens: Int[Tensor, "run token"], edits: Sequence[Edit], *, on_twin: bool) -> Tensor:
        """Logits [run, token, vocab] under `edits`, on the twin or through hooks."""
        found = twin(self.model) if on_twin else None
        if found is None:
            with self.model.hooks(fwd_hooks=bridge_hooks(edits)):
                return self.model(tokens, return_type="logits")
        with found.edited(edits):
            return found.model(tokens, use_cache=False).logits

    def recorded(
        self, tokens: Int[Tensor, "run token"], places: Sequence[Place], *, on_twin: bool
    ) -> dict[Place, Tensor]:
        """Activations [run, token, ...] at `places` of a prompt as it is."""
        found: dict[Place, Tensor] = {}
        with torch.no_grad():
            self.logits(tokens, keeping(places, found), on_twin=on_twin)
        return {at: activation.detach() for at, activation in found.items()}

    def score(self, logits: Float[Tensor, "run token vocab"]) -> Float[Tensor, ""]:
        """The metric of one prompt, differentiable.

        Raises:
            MechrefusalError: it is not.
        """
        parts = [part.float() for part in self.run.read(logits.split(1))]
        found = self.metric.of_runs(parts) if isinstance(self.metric, RefusalMetric) else self.metric(parts[0][:, -1])
        if logits.requires_grad and not (isinstance(found, Tensor) and found.requires_grad):
            raise MechrefusalError(
                "the metric has no gradient with regard to the logits, which attribution patching needs; give one "
                "made of differentiable operations on them (no argmax, no detach), or use exact patching"
            )
        return found[0].float()


def _by_transformer_lens(both: Both, sites: Sequence[Site]) -> Estimates:
    model = both.model
    names = {(site, at): f"blocks.{at}.{hook_name(site)}" for site in sites for at in range(model.cfg.n_layers)}
    wanted = ["hook_embed", *names.values()]  # the hooks of gradients fire above a point that is asked for, too

    def leaf(activation: Tensor, hook) -> Tensor:
        return activation.detach().requires_grad_(True)  # the weights have no gradients

    with torch.no_grad():
        source = cache_activation_and_gradient(model, both.source, both.score, wanted, compute_gradient=False)
    with model.hooks(fwd_hooks=[("hook_embed", leaf)]), warnings.catch_warnings():
        # The embedding's own input, token ids, has no gradient, and none is asked for.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        target = cache_activation_and_gradient(model, both.target, both.score, wanted)
    found: Estimates = {site: {} for site in sites}
    for (site, layer), name in names.items():
        gradient = target.gradients[name]
        if gradient is None:
            raise ValueError(f"no gradient at {name}")
        change = source.activations[name] - target.activations[name]
        found[site][layer] = _contracted(model, site, change, gradient)
    return found


def _own(both: Both, sites: Sequence[Site], points: Sequence[float], *, on_twin: bool) -> Estimates:
    """The change at every site times the mean gradient of the metric with regard to it over `points`."""
    places: list[Place] = [(layer, _SITES[site]) for site in sites for layer in range(both.model.cfg.n_layers)]
    wanted = list(dict.fromkeys([EMBEDDED, *places]))
    source, target = (both.recorded(prompt, wanted, on_twin=on_twin) for prompt in (both.source, both.target))
    total: dict[Place, Tensor] = {}
    for share in points:
        graph: dict[Place, Tensor] = {}
        edits = [between(source, target, share), *keeping(places, graph)]
        score = both.score(both.logits(both.target, edits, on_twin=on_twin))
        gradients = torch.autograd.grad(score, [graph[at] for at in places], materialize_grads=True)
        for at, gradient in zip(places, gradients, strict=True):
            total[at] = total.get(at, 0) + gradient.double() / len(points)
    found: Estimates = {site: {} for site in sites}
    for site in sites:
        for layer in range(both.model.cfg.n_layers):
            at = (layer, _SITES[site])
            found[site][layer] = _contracted(both.model, site, source[at] - target[at], total[at])
    return found


EMBEDDED: Place = (0, "resid_pre")
"""Where the embedding is read; gradients start there."""


def between(source: Mapping[Place, Tensor], target: Mapping[Place, Tensor], share: float) -> Edit:
    """The embedding on the way from target to source, as a leaf that has a gradient."""
    embedding = target[EMBEDDED] + share * (source[EMBEDDED] - target[EMBEDDED])
    return (*EMBEDDED, lambda _: embedding.detach().requires_grad_(True))


def keeping(places: Iterable[Place], into: dict[Place, Tensor]) -> list[Edit]:
    """Edits that keep activations as they pass, each in a tensor of its own, which all that follows reads."""

    def keep(at: Place) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            into[at] = activation.clone()
            return into[at]

        return edit

    return [(*at, keep(at)) for at in places]


def _contracted(model, site: Site, change: Tensor, gradient: Tensor) -> Tensor:
    """Σ over features and over the rows of the runs, in float64: [token], or [token, head] for heads."""
    product = change.double() * gradient.double()
    if site == "head_z" and product.ndim == 3:
        product = product.unflatten(-1, (-1, model.cfg.d_head))
    return product.sum((0, -1)).cpu()
