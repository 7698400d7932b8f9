"""First-order estimates of one pair's patches, by TransformerLens' tool or by our own pass where that gives none."""

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from mechrefusal.causal.patching.metric import Metric
from mechrefusal.causal.patching.sites import PairRun, Site, hook_name
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import RefusalMetric
from mechrefusal.models.twin import Edit, bridge_hooks, twin
from mechrefusal.models.twin import Site as TwinSite

Tool = Literal["transformer_lens", "twin", "hooked"]
TOOLS: tuple[Tool, ...] = ("transformer_lens", "twin", "hooked")
Estimates = dict[Site, dict[int, Tensor]]
"""By site and layer: [token] or [token, head]; tokens are those of the prompt and, after it, of its runs."""

_SITES: dict[Site, TwinSite] = {"head_z": "z", "attn_out": "attn_out", "mlp_out": "mlp_out", "resid_pre": "resid_pre"}


def estimates(
    model, run: PairRun, metric: Metric, sites: Sequence[Site], *, tool: Tool | None = None
) -> tuple[Estimates, Tool]:
    """(a_source − a_target) · ∂m/∂a at every token, and the tool that gave the gradient.

    Raises:
        MechrefusalError: the metric has no gradient, or no tool (or not this one) gives one.
    """
    both = _Both(model, run, metric)
    reasons = []
    for name in TOOLS if tool is None else (tool,):
        if name == "twin" and not ((plain := twin(model)) and all(plain.has(_SITES[site]) for site in sites)):
            reasons.append("twin: the hooked transformer has none that agrees, or hooks are open")
            continue
        make: dict[str, Callable[[], Estimates]] = {
            "transformer_lens": lambda: _by_transformer_lens(both, sites),
            "twin": lambda: _own(both, sites, on_twin=True),
            "hooked": lambda: _own(both, sites, on_twin=False),
        }
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return make[name](), name
        except (ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
            if should_reduce_batch_size(error):
                raise  # that memory has run out says nothing about the tool
            reasons.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    raise MechrefusalError(f"no gradient for attribution patching ({'; '.join(reasons)}); use exact patching")


class _Both:
    """Both prompts with every run after them."""

    def __init__(self, model, run: PairRun, metric: Metric) -> None:
        self.model, self.run, self.metric = model, run, metric
        self.source, self.target = (run.padded(prompt).to(model.cfg.device) for prompt in (run.source, run.target))

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


def _by_transformer_lens(both: _Both, sites: Sequence[Site]) -> Estimates:
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


def _own(both: _Both, sites: Sequence[Site], *, on_twin: bool) -> Estimates:
    """Zeros are added at every site; the gradient of the metric with regard to them is that of the site."""
    model, found_twin = both.model, twin(both.model) if on_twin else None
    places = [(layer, site) for site in sites for layer in range(model.cfg.n_layers)]

    def run(tokens: Tensor, edit: Callable[[tuple[int, Site], Tensor], Tensor]) -> Tensor:
        edits: list[Edit] = [(layer, _SITES[site], _bound(edit, (layer, site))) for layer, site in places]
        if found_twin is None:
            with model.hooks(fwd_hooks=bridge_hooks(edits)):
                return both.score(model(tokens, return_type="logits"))
        with found_twin.edited(edits):
            return both.score(found_twin.model(tokens, use_cache=False).logits)

    source: dict[tuple[int, Site], Tensor] = {}
    target: dict[tuple[int, Site], Tensor] = {}
    added: dict[tuple[int, Site], Tensor] = {}

    def keep(at: tuple[int, Site], activation: Tensor) -> Tensor:
        source[at] = activation.detach()
        return activation

    def add(at: tuple[int, Site], activation: Tensor) -> Tensor:
        target[at] = activation.detach()
        added[at] = torch.zeros_like(activation, requires_grad=True)
        return activation + added[at]

    with torch.no_grad():
        run(both.source, keep)
    score = run(both.target, add)
    gradients = torch.autograd.grad(score, [added[at] for at in places], materialize_grads=True)
    found: Estimates = {site: {} for site in sites}
    for at, gradient in zip(places, gradients, strict=True):
        found[at[1]][at[0]] = _contracted(model, at[1], source[at] - target[at], gradient)
    return found


def _bound(edit: Callable[[tuple[int, Site], Tensor], Tensor], at: tuple[int, Site]) -> Callable[[Tensor], Tensor]:
    return lambda activation: edit(at, activation)


def _contracted(model, site: Site, change: Tensor, gradient: Tensor) -> Tensor:
    """Σ over features and over the rows of the runs, in float64: [token], or [token, head] for heads."""
    product = change.double() * gradient.double()
    if site == "head_z" and product.ndim == 3:
        product = product.unflatten(-1, (-1, model.cfg.d_head))
    return product.sum((0, -1)).cpu()
