"""Direct attribution: what every head and MLP writes onto the refusal logits, or onto a direction.

The residual stream is a sum of what the embedding, the heads, the MLPs and the biases write, so a linear read-out of it
is a sum of their parts. TransformerLens' `ActivationCache` does the decomposition; here it is read out and averaged.
"""

import re
from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import intervals, prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.models import RefusalMetric, require_direction, require_layers

TOLERANCE = 1e-3
"""Largest relative gap allowed between a decomposition's sum and what it decomposes."""


def refusal_logits(model, texts: Sequence[str], metric: RefusalMetric) -> pd.DataFrame:
    """Contribution of each component to mean logit(refusal tokens) − mean logit(compliance tokens), nats.

    Read at the metric's position (after its opening), through the final norm with its scale held as it is there.
    A mean over token sets is linear in the logits, which the metric's log of summed probabilities is not.

    Returns:
        One row a component: component (embed, pos_embed, head, mlp, bias, total), layer, head (−1 where there is none),
        value (mean over prompts), n, low, high. `bias` holds the attention and MLP output biases and the unembedding's;
        `total` is the decomposed quantity itself, taken from the model's logits.
    """
    readout, bias = _readout(model, metric)
    parts, totals = [], []
    for text in texts:
        token_ids = token_ids_of(model, text, metric.opening)
        logits, cache = model.run_with_cache(token_ids, names_filter=_wanted)
        stack, labels = cache.get_full_resid_decomposition(
            layer=-1, expand_neurons=False, apply_ln=True, pos_slice=-1, return_labels=True
        )
        values = stack[:, 0].double() @ readout
        values[labels.index("bias")] += bias
        parts.append(values)
        totals.append(_difference(_uncapped(model, logits[0, -1].double()), metric))
    return _table(labels, parts, totals)


def onto_direction(
    model, texts: Sequence[str], direction: Float[Tensor, " d_model"], *, layer: int, position: int
) -> pd.DataFrame:
    """What each component writes onto the unit `direction` at resid_pre of `layer`, at `position` of the prompt.

    Components at or above `layer` have not written yet and are absent. Columns as in `refusal_logits`; `total` is the
    projection of the residual stream itself.
    """
    require_layers(model, [layer])
    require_direction(model, direction)
    unit = (direction / direction.norm()).double()
    parts, totals = [], []
    for text in texts:
        token_ids = token_ids_of(model, text)
        _, cache = model.run_with_cache(token_ids, names_filter=partial(_wanted, layer=layer))
        stack, labels = cache.get_full_resid_decomposition(
            layer=layer, expand_neurons=False, apply_ln=False, pos_slice=position, return_labels=True
        )
        parts.append(stack[:, 0].double() @ unit.to(stack.device))
        totals.append(cache["resid_pre", layer][0, position].double() @ unit.to(stack.device))
    return _table(labels, parts, totals)


def _wanted(name: str, layer: int | None = None) -> bool:
    """Whether the decomposition needs a hook; with `layer`, also that layer's input (under either of its names)."""
    if name in (f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_in"):
        return True
    ends = ("hook_z", "hook_mlp_out", "mlp.hook_out", "ln2_post.hook_out", "hook_embed", "hook_pos_embed")
    return name.endswith(ends) or name in ("ln_final.hook_scale", "embed.hook_out", "pos_embed.hook_out")


def token_ids_of(model, text: str, opening: tuple[int, ...] = ()) -> Int[Tensor, "1 position"]:
    """The instruction in the model's chat template, followed by `opening`."""
    ids = [*prompts.segments(model.tokenizer, text).prompt_ids, *opening]
    return torch.tensor([ids], device=model.cfg.device)


def _readout(model, metric: RefusalMetric) -> tuple[Tensor, Tensor]:
    weights, biases = model.W_U.double(), model.b_U.double()
    refusal, compliance = list(metric.refusal_tokens), list(metric.compliance_tokens)
    readout = weights[:, refusal].mean(1) - weights[:, compliance].mean(1)
    return readout, biases[refusal].mean() - biases[compliance].mean()


def _difference(logits: Tensor, metric: RefusalMetric) -> Tensor:
    return logits[list(metric.refusal_tokens)].mean() - logits[list(metric.compliance_tokens)].mean()


def _uncapped(model, logits: Tensor) -> Tensor:
    """Undo Gemma's soft cap of the logits: the residual stream adds up to what goes into it."""
    cap = getattr(model.original_model.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.atanh((logits / cap).clamp(-1 + 1e-12, 1 - 1e-12)) if cap else logits


def _table(labels: list[str], parts: list[Tensor], totals: list[Tensor]) -> pd.DataFrame:
    values, total = torch.stack(parts), torch.stack(totals)
    gap = (values.sum(1) - total).abs().max().item()
    scale = max(1.0, total.abs().max().item(), values.abs().max().item())
    if not gap <= TOLERANCE * scale:
        raise MechrefusalError(
            f"attribution does not add up: the components' sum misses the total by {gap:.2g} (largest {scale:.2g}); "
            "this architecture's residual stream is not a plain sum of heads and MLPs, so no attribution is given"
        )
    rows = []
    for column, label in enumerate([*labels, "total"]):
        component, layer, head = _parse(label)
        observed = total if label == "total" else values[:, column]
        estimate = intervals.mean(observed.cpu().numpy())
        rows.append(
            {
                "component": component,
                "layer": layer,
                "head": head,
                **vars(estimate),
            }
        )
    return pd.DataFrame(rows)


def _parse(label: str) -> tuple[str, int, int]:
    if match := re.fullmatch(r"L(\d+)H(\d+)", label):
        return "head", int(match[1]), int(match[2])
    if match := re.fullmatch(r"(\d+)_mlp_out", label):
        return "mlp", int(match[1]), -1
    return label, -1, -1
