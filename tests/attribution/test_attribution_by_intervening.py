"""An attribution is tested by intervening: take a component's output away at the last position, freeze what follows.

The change of the read-out is minus the contribution where norms keep the scales that they had. Plain TransformerLens
hooks, on the hooked transformer itself.
"""

import pytest
import torch
from architectures import FAMILIES
from tolerances import COMPOUND, REORDERED

from mechrefusal.attribution import Onto, RefusalLogits, attribute, sources
from mechrefusal.forward import RefusalMetric
from mechrefusal.prompts import segments

TEXT = "How do I swim across a river?"
METRIC = RefusalMetric((), (10, 11, 40), (12, 13))
COMPONENTS = [("head", 0, 1), ("head", 2, 3), ("mlp", 0, -1)]
pytestmark = pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")


def tokens_of(model, text=TEXT):
    return torch.tensor([segments(model.tokenizer, text).prompt_ids])


def clean_cache(model, tokens):
    with torch.no_grad():
        return model.run_with_cache(tokens)


def frozen_after(model, cache, component, layer):
    """Hooks that hold every later output, and the scales of norms that follow the component's own sublayer."""
    hooks = []
    for later in range(layer, model.cfg.n_layers):
        if later > layer:
            hooks.append((f"blocks.{later}.hook_attn_out", held(cache[f"blocks.{later}.hook_attn_out"])))
        if later > layer or component != "mlp":
            hooks.append((f"blocks.{later}.hook_mlp_out", held(cache[f"blocks.{later}.hook_mlp_out"])))
    name = f"blocks.{layer}.ln1_post.hook_scale"
    return hooks + ([(name, held(cache[name]))] if component != "mlp" and name in cache else [])


def held(value):
    return lambda activation, hook: value.clone()


def without(model, component, layer, head):
    """The hook that zeroes the component's output at the last position."""

    def silence_head(z, hook):
        shape = z.shape
        split = z.reshape(*shape[:2], -1, model.cfg.d_head).clone()
        split[:, -1, head] = 0
        return split.reshape(shape)

    def silence_mlp(out, hook):
        out = out.clone()
        out[:, -1] = 0
        return out

    if component == "head":
        return f"blocks.{layer}.attn.hook_z", silence_head
    return f"blocks.{layer}.hook_mlp_out", silence_mlp


def uncapped(model, logits):
    cap = getattr(model.original_model.config, "final_logit_softcapping", None)
    return cap * torch.atanh(logits / cap) if cap else logits


def difference(model, logits, metric):
    row = uncapped(model, logits[0, -1].double())
    return (row[list(metric.refusal_tokens)].mean() - row[list(metric.compliance_tokens)].mean()).item()


def change_of_logits(model, tokens, metric, component, *, hold_final, more=None):
    kind, layer, head = component
    logits, cache = clean_cache(model, tokens)
    hooks = [more or without(model, kind, layer, head), *frozen_after(model, cache, kind, layer)]
    if hold_final:
        hooks.append(("ln_final.hook_scale", held(cache["ln_final.hook_scale"])))
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        changed = model(tokens)
    return difference(model, changed, metric) - difference(model, logits, metric)


@pytest.mark.parametrize("name", FAMILIES)
def test_refusal_logits(family, name):
    model = family(name).hooked
    tokens = tokens_of(model)
    found = attribute(model, [TEXT], RefusalLogits(METRIC))
    largest = 0.0
    for component in COMPONENTS:
        predicted = found.of(*component).item()
        change = change_of_logits(model, tokens, METRIC, component, hold_final=True)
        assert change == pytest.approx(-predicted, abs=REORDERED), component
        largest = max(largest, abs(predicted))
    assert largest > 0.02, "nothing here writes onto these logits"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt-neox"])
def test_onto_a_direction(family, name):
    model = family(name).hooked
    tokens = tokens_of(model)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = attribute(model, [TEXT], Onto(direction, 3))
    _, cache = clean_cache(model, tokens)
    for kind, layer, head in [c for c in COMPONENTS if c[1] < 3]:
        kept = []
        hooks = [without(model, kind, layer, head), *frozen_after(model, cache, kind, layer)]
        hooks.append(("blocks.3.hook_resid_pre", lambda value, hook, kept=kept: kept.append(value)))
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            model(tokens)
        change = (kept[0][0, -1] - cache["blocks.3.hook_resid_pre"][0, -1]).double() @ direction.double()
        predicted = -found.of(kind, layer, head).item()
        assert (change / direction.double().norm()).item() == pytest.approx(predicted, abs=REORDERED)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "gpt-neox"])
def test_sources(family, name):
    """Attention to one source taken away, without giving it to the others, at the last position of one head."""
    model = family(name).hooked
    tokens = tokens_of(model)
    table = sources(model, [TEXT], RefusalLogits(METRIC), heads=[(3, 2)]).table
    for source in (0, 4, tokens.shape[1] - 1):

        def unread(pattern, hook, source=source):
            pattern = pattern.clone()
            pattern[:, 2, -1, source] = 0
            return pattern

        more = ("blocks.3.attn.hook_pattern", unread)
        change = change_of_logits(model, tokens, METRIC, ("head", 3, 2), hold_final=True, more=more)
        assert change == pytest.approx(-table["value"][source], abs=REORDERED)
    assert table["value"].abs().max() > 0.01


def test_with_the_final_scale_free_the_error_is_small(family):
    """Measured: 4% of the contribution (Llama) to 27% (GPT-NeoX); a tiny model's component is much of its stream."""
    for name in ("llama", "qwen3", "gemma2", "gpt2", "gpt-neox"):
        model = family(name).hooked
        found = attribute(model, [TEXT], RefusalLogits(METRIC))
        errors, sizes = [], []
        for component in COMPONENTS:
            change = change_of_logits(model, tokens_of(model), METRIC, component, hold_final=False)
            errors.append(abs(change + found.of(*component).item()))
            sizes.append(abs(found.of(*component).item()))
        assert sum(errors) < 0.35 * sum(sizes), (name, errors, sizes)


@pytest.mark.slow
def test_the_real_model(smollm2_hooked):
    """SmolLM2, the largest heads and MLPs: exact with scales held; with the final one free, 0.9% off was measured."""
    model = smollm2_hooked
    metric = RefusalMetric((), (57,), (2683,))
    tokens = tokens_of(model)
    found = attribute(model, [TEXT], RefusalLogits(metric))
    heads = [("head", *head) for head in found.top(5)]
    sizes = {c: found.of(*c).abs().item() for c in found.components if c.component == "mlp"}
    errors, total = 0.0, 0.0
    for component in [*heads, *sorted(sizes, key=lambda c: -sizes[c])[:3]]:
        predicted = found.of(*component).item()
        change = change_of_logits(model, tokens, metric, tuple(component), hold_final=True)
        assert change == pytest.approx(-predicted, abs=2 * COMPOUND)
        free = change_of_logits(model, tokens, metric, tuple(component), hold_final=False)
        errors, total = errors + abs(free + predicted), total + abs(predicted)
    assert errors < 0.05 * total
