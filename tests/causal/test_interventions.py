"""Rule 4: ablation and addition against hand-written hooks on the Hugging Face model."""

from dataclasses import FrozenInstanceError
from functools import partial

import pytest
import torch
from tolerances import FORWARD, REORDERED

from mechrefusal import MechrefusalError, causal
from mechrefusal.causal import Ablation, Addition

SITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
TOKENS = torch.randint(3, 1024, (2, 20), generator=torch.Generator().manual_seed(0))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens)


def seen(model, names, tokens=TOKENS):
    """What stands at hook points after the hooks that are active now."""
    kept = {}

    def keep(value, hook, name):
        kept[name] = value.detach().clone()

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(keep, name=name)) for name in names]):
        model(tokens)
    return kept


def plain(hf, *, blocks=None, parts=None, only=None):
    """Logits of a Llama of Hugging Face with functions applied to block inputs and to what each part writes."""
    handles = []
    for layer, block in enumerate(hf.model.layers):
        if blocks is not None and only in (None, layer):
            handles.append(block.register_forward_pre_hook(lambda _, given: (blocks(given[0]), *given[1:])))
        if parts is not None:
            handles.append(block.self_attn.register_forward_hook(lambda *a: (parts(a[2][0]), *a[2][1:])))
            handles.append(block.mlp.register_forward_hook(lambda *a: parts(a[2])))
    try:
        with torch.no_grad():
            return hf(TOKENS).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gpt-neox"])
def test_nothing_is_left_along_the_direction(family, name, k):
    model = family(name).hooked
    rows = random(k, 64)
    names = [f"blocks.{layer}.{site}" for layer in range(4) for site in SITES] + ["blocks.3.hook_resid_post"]
    unit = torch.linalg.qr(rows.T).Q
    before = seen(model, names)
    with causal.ablate(model, rows if k > 1 else rows[0]):
        after = seen(model, names)
    for site in names:
        assert (before[site] @ unit).abs().max() > 1e-2, f"{site} had nothing to ablate"
        assert (after[site] @ unit).abs().max() < REORDERED * max(1, after[site].abs().max()), site


def test_ablation_equals_hooks_on_the_plain_model(tiny_hf, tiny_hooked):
    direction = random(64)
    unit = direction / direction.norm()

    def project_out(x):
        return x - (x @ unit)[..., None] * unit

    expected = plain(tiny_hf[0], blocks=project_out, parts=project_out).log_softmax(-1)
    with causal.ablate(tiny_hooked, direction * 17):
        found = logits(tiny_hooked).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)
    assert (found - logits(tiny_hooked).log_softmax(-1)).abs().max() > 0.05


def test_subspace_equals_projection_by_hand(tiny_hf, tiny_hooked):
    rows = random(3, 64)
    inside = (torch.linalg.pinv(rows.double()) @ rows.double()).float()

    def project_out(x):
        return x - x @ inside

    expected = plain(tiny_hf[0], blocks=project_out, parts=project_out).log_softmax(-1)
    with causal.ablate(tiny_hooked, rows):
        torch.testing.assert_close(logits(tiny_hooked).log_softmax(-1), expected, atol=FORWARD, rtol=0)


def test_dependent_rows_span_what_they_span(tiny_hooked):
    a, b = random(2, 64)
    with causal.ablate(tiny_hooked, torch.stack([a, b])):
        expected = logits(tiny_hooked)
    for rows in ([a, b, a + b], [a, a, b, -3 * b], [1e4 * a, 1e-1 * b]):
        with causal.ablate(tiny_hooked, torch.stack(rows)):
            torch.testing.assert_close(logits(tiny_hooked), expected, atol=FORWARD, rtol=0)


def test_length_and_sign_do_not_matter(tiny_hooked):
    direction = random(64)
    with causal.ablate(tiny_hooked, direction):
        expected = logits(tiny_hooked)
    for same in (direction * 1e-6, direction * -1e6, direction.double()):
        with causal.ablate(tiny_hooked, same):
            torch.testing.assert_close(logits(tiny_hooked), expected, atol=REORDERED, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "gemma2"])
def test_ablating_twice_is_ablating_once(family, name):
    model, rows = family(name).hooked, random(2, 64)
    with causal.ablate(model, rows):
        once = logits(model)
        with causal.ablate(model, rows):
            twice = logits(model)
        again = logits(model)
    torch.testing.assert_close(twice, once, atol=REORDERED * max(1.0, float(once.abs().max())), rtol=0)
    assert torch.equal(once, again)


DOSES = (0.0, 0.5, 1.0, 1.5, -2.0)


def stream(model, directions, dose):
    """resid_pre of every layer and the last resid_post under a dose; what would be there of the same writes without."""
    writes = ["blocks.0.hook_resid_pre"]
    writes += [f"blocks.{layer}.{site}" for layer in range(4) for site in ("hook_attn_out", "hook_mlp_out")]
    written = {}

    def note(value, hook, name):
        written[name] = value.detach().clone()

    streams = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post"]
    notes = [(name, partial(note, name=name)) for name in writes]
    with model.hooks(fwd_hooks=notes), causal.ablate(model, directions, dose=dose):  # noted before they are ablated
        found = seen(model, streams)
    sums = torch.stack([written[name] for name in writes]).cumsum(0)[::2]
    return torch.stack([found[name] for name in streams]), sums


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dose", DOSES)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gpt-neox"])
def test_a_dose_takes_its_part_of_every_write_once(family, name, dose, k):
    """At every layer the residual stream keeps 1 − dose of its part along the directions, and all of the rest."""
    rows = random(k, 64)
    unit = torch.linalg.qr(rows.T).Q
    found, written = stream(family(name).hooked, rows if k > 1 else rows[0], dose)
    assert found.shape == written.shape == (5, 2, 20, 64)
    parts = written @ unit
    assert parts.abs().amax((1, 2, 3)).min() > 1e-2, "a layer had nothing to ablate"
    bound = 2 * REORDERED * max(1.0, float(written.abs().max()))
    torch.testing.assert_close(found @ unit, (1 - dose) * parts, atol=bound, rtol=0)
    torch.testing.assert_close(found, written - dose * parts @ unit.T, atol=bound, rtol=0)


@pytest.mark.parametrize("dose", [0.5, -2.0])
def test_a_dose_equals_hooks_on_the_plain_model(tiny_hf, tiny_hooked, dose):
    direction = random(64)
    unit = direction / direction.norm()

    def weaken(x):
        return x - dose * (x @ unit)[..., None] * unit

    handle = tiny_hf[0].model.layers[0].register_forward_pre_hook(lambda _, given: (weaken(given[0]), *given[1:]))
    try:
        expected = plain(tiny_hf[0], parts=weaken).log_softmax(-1)
    finally:
        handle.remove()
    with causal.ablate(tiny_hooked, 5 * direction, dose=dose):
        found = logits(tiny_hooked).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)
    assert (found - logits(tiny_hooked).log_softmax(-1)).abs().max() > 0.02


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
def test_dose_one_is_the_default_and_what_writes_alone_come_to(family, name):
    model, rows = family(name).hooked, random(2, 64)
    with causal.ablate(model, rows):
        expected = logits(model)
    with causal.ablate(model, rows, dose=1.0):
        assert torch.equal(logits(model), expected)
    with causal.ablate(model, rows, dose=1 - 1e-7):  # once for every write
        torch.testing.assert_close(logits(model), expected, atol=FORWARD, rtol=0)


def test_dose_zero_changes_nothing(tiny_hooked):
    before = logits(tiny_hooked)
    with causal.ablate(tiny_hooked, random(3, 64), dose=0):
        torch.testing.assert_close(logits(tiny_hooked), before, atol=REORDERED, rtol=0)


def test_doses_follow_one_another(tiny_hooked):
    """Half of it, and half of what is left, is three quarters."""
    direction = random(64)
    with causal.ablate(tiny_hooked, direction, dose=0.75):
        expected = logits(tiny_hooked)
    with causal.ablate(tiny_hooked, direction, dose=0.5), causal.ablate(tiny_hooked, direction, dose=0.5):
        torch.testing.assert_close(logits(tiny_hooked), expected, atol=FORWARD, rtol=0)


def test_where_an_ablation_acts(tiny_hooked):
    everywhere = [(layer, site) for layer in range(4) for site in ("resid_pre", "attn_out", "mlp_out")]
    direction = random(64)
    assert [edit[:2] for edit in Ablation(direction).edits(tiny_hooked)] == everywhere
    once = [(layer, site) for layer, site in everywhere if site != "resid_pre" or layer == 0]
    assert [edit[:2] for edit in Ablation(direction, dose=0.5).edits(tiny_hooked)] == once
    assert Ablation(direction).first_layer == 0


def test_where_an_addition_acts(tiny_hooked):
    direction, activation = random(64), random(2, 3, 64, seed=1)
    given = activation.clone()
    addition = Addition(direction, 2, coefficient=-1.5)
    [(layer, site, edit)] = addition.edits(tiny_hooked)
    assert (layer, site, addition.first_layer) == (2, "resid_pre", 2)
    torch.testing.assert_close(edit(activation), given - 1.5 * direction, atol=REORDERED, rtol=0)
    assert torch.equal(activation, given)
    assert edit(activation.bfloat16()).dtype == torch.bfloat16


def test_an_intervention_is_a_value(tiny_hooked):
    direction = random(64)
    for intervention, context in (
        (Ablation(direction, dose=0.5), causal.ablate(tiny_hooked, direction, dose=0.5)),
        (Ablation(direction), causal.ablate(tiny_hooked, direction)),
        (Addition(direction, 1, 2.0), causal.add(tiny_hooked, direction, layer=1, coefficient=2.0)),
    ):
        with context:
            expected = logits(tiny_hooked)
        for _ in range(2):
            with causal.intervened(tiny_hooked, intervention):
                assert torch.equal(logits(tiny_hooked), expected)
    with pytest.raises(FrozenInstanceError):
        Ablation(direction).dose = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Addition(direction, 1).layer = 2  # type: ignore[misc]


def test_no_intervention_changes_nothing(tiny_hooked):
    before = logits(tiny_hooked)
    with causal.intervened(tiny_hooked, None):
        assert torch.equal(logits(tiny_hooked), before)


@pytest.mark.parametrize("rows", ["one", "three", "orthonormal", "of other lengths"])
@pytest.mark.parametrize("dose", [1.0, 0.5])
def test_gradients_of_an_ablated_activation_are_those_of_the_projection(tiny_hooked, rows, dose):
    """Against x − dose · Dᵀ(DDᵀ)⁻¹Dx in float64."""
    drawn = random(3, 64)
    directions = {
        "one": drawn[0],
        "three": drawn,
        "orthonormal": torch.linalg.qr(drawn.T).Q.T.contiguous(),
        "of other lengths": drawn * torch.tensor([[20.0], [1.0], [0.1]]),
    }[rows].requires_grad_()
    x, weight = random(7, 64, seed=1), random(7, 64, seed=2)
    edit = Ablation(directions, dose).edits(tiny_hooked)[0][2]
    (edit(x) * weight).sum().backward()
    exact = torch.atleast_2d(directions.detach().double()).requires_grad_()
    inside = exact.T @ torch.linalg.inv(exact @ exact.T) @ exact
    ((x.double() - dose * x.double() @ inside) * weight.double()).sum().backward()
    assert exact.grad.abs().max() > 0.1
    bound = REORDERED * float(exact.grad.abs().max())
    torch.testing.assert_close(directions.grad.double().view(exact.shape), exact.grad, atol=bound, rtol=0)


def test_dependent_rows_have_no_gradient(tiny_hooked):
    """The span of rows that depend on each other jumps with any of them: what gives no derivative says so."""
    a, b = random(2, 64)
    directions = torch.stack([a, b, a + b]).requires_grad_()
    assert not Ablation(directions).edits(tiny_hooked)[0][2](random(7, 64)).requires_grad


@pytest.mark.parametrize("dose", [1.0, 0.5])
def test_directions_of_the_caller_stay_as_they_are(tiny_hooked, dose):
    for directions in (random(64), random(3, 64)):
        given = directions.clone()
        with causal.ablate(tiny_hooked, directions, dose=dose):
            logits(tiny_hooked)
        assert torch.equal(directions, given)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("coefficient", [1.0, -2.5])
def test_add_equals_a_hook_on_the_plain_model(tiny_hf, tiny_hooked, layer, coefficient):
    direction = random(64)
    expected = plain(tiny_hf[0], blocks=lambda x: x + coefficient * direction, only=layer).log_softmax(-1)
    with causal.add(tiny_hooked, direction, layer=layer, coefficient=coefficient):
        found = logits(tiny_hooked).log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)


def test_adding_there_and_back(tiny_hooked):
    direction, before = random(64), logits(tiny_hooked)
    with causal.add(tiny_hooked, direction, layer=1), causal.add(tiny_hooked, direction, layer=1, coefficient=-1):
        torch.testing.assert_close(logits(tiny_hooked), before, atol=FORWARD, rtol=0)
    with causal.add(tiny_hooked, direction, layer=1, coefficient=0):
        assert torch.equal(logits(tiny_hooked), before)


INTERVENTIONS = {
    "ablate": lambda model, d: causal.ablate(model, d),
    "add": lambda model, d: causal.add(model, d, layer=1),
}


@pytest.mark.parametrize("name", INTERVENTIONS)
class TestEither:
    def test_the_model_is_as_before(self, tiny_hooked, name):
        before, weights = logits(tiny_hooked), {k: v.clone() for k, v in tiny_hooked.state_dict().items()}
        with INTERVENTIONS[name](tiny_hooked, random(64)):
            inside = logits(tiny_hooked)
        assert not torch.allclose(inside, before, atol=1e-2)
        assert torch.equal(logits(tiny_hooked), before)
        assert all(torch.equal(value, weights[key]) for key, value in tiny_hooked.state_dict().items())

    def test_the_model_is_as_before_after_an_exception(self, tiny_hooked, name):
        before = logits(tiny_hooked)

        def fail(value, hook):
            raise RuntimeError("in the forward pass")

        with pytest.raises(KeyError), INTERVENTIONS[name](tiny_hooked, random(64)):
            raise KeyError("in the block")
        assert torch.equal(logits(tiny_hooked), before)
        with (
            pytest.raises(RuntimeError, match="in the forward pass"),
            INTERVENTIONS[name](tiny_hooked, random(64)),
            tiny_hooked.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", fail)]),
        ):
            logits(tiny_hooked)
        assert torch.equal(logits(tiny_hooked), before)

    def test_hooks_of_the_caller_stay(self, tiny_hooked, name):
        seen_by_caller = []
        tiny_hooked.add_hook("blocks.0.hook_resid_pre", lambda value, hook: seen_by_caller.append(1))
        try:
            with INTERVENTIONS[name](tiny_hooked, random(64)):
                logits(tiny_hooked)
            logits(tiny_hooked)
        finally:
            tiny_hooked.reset_hooks()
        assert len(seen_by_caller) == 2

    def test_tensors_of_the_caller_are_not_edited(self, tiny_hooked, name):
        direction, tokens = random(64), TOKENS.clone()
        given, held = direction.clone(), {}
        with (
            torch.no_grad(),
            tiny_hooked.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda v, hook: held.update(value=v))]),
        ):
            tiny_hooked(tokens)
            kept = held["value"].clone()
            value = held["value"]
            with INTERVENTIONS[name](tiny_hooked, direction):
                tiny_hooked(tokens)
        assert torch.equal(direction, given)
        assert torch.equal(tokens, TOKENS)
        assert torch.equal(value, kept)

    @pytest.mark.parametrize(
        ("direction", "said"),
        [
            (torch.ones(63), r"\(63,\).*64"),
            (torch.ones(2, 3, 64), "shape"),
            (torch.zeros(64), "zero"),
            (torch.full((64,), float("nan")), "not finite"),
            (torch.cat([torch.ones(63), torch.tensor([float("inf")])]), "not finite"),
        ],
        ids=["width", "dimensions", "zero", "nan", "infinity"],
    )
    def test_directions_that_point_nowhere(self, tiny_hooked, name, direction, said):
        before = logits(tiny_hooked)
        with pytest.raises(MechrefusalError, match=said), INTERVENTIONS[name](tiny_hooked, direction):
            pass
        assert torch.equal(logits(tiny_hooked), before)


def test_one_bad_row_of_a_subspace(tiny_hooked):
    with pytest.raises(MechrefusalError, match="zero"), causal.ablate(tiny_hooked, torch.eye(64)[:3] * torch.tensor(
        [[1.0], [0.0], [1.0]]
    )):  # fmt: skip
        pass


def test_subspace_of_no_rows(tiny_hooked):
    with pytest.raises(MechrefusalError), causal.ablate(tiny_hooked, torch.empty(0, 64)):
        pass


@pytest.mark.parametrize("layer", [-1, 4, 100])
def test_layer_that_is_not_there(tiny_hooked, layer):
    with (
        pytest.raises(MechrefusalError, match=f"layer {layer} .*0 to 3"),
        causal.add(tiny_hooked, random(64), layer=layer),
    ):
        pass


def test_random_direction_of_the_same_norm():
    direction = random(64, seed=3) * 7
    first, same, other = (causal.random_like(direction, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert first.dtype == direction.dtype
    for found in (first, other):
        assert found.norm().item() == pytest.approx(direction.norm().item(), rel=REORDERED)
        assert abs(torch.cosine_similarity(found, direction, dim=0)) < 0.5
    assert abs(torch.cosine_similarity(first, other, dim=0)) < 0.5


def test_random_direction_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    causal.random_like(torch.ones(8), seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_doses_and_coefficients_are_finite(tiny_hooked, value):
    direction = torch.ones(tiny_hooked.cfg.d_model)
    with pytest.raises(MechrefusalError, match="dose"), causal.ablate(tiny_hooked, direction, dose=value):
        pass
    with (
        pytest.raises(MechrefusalError, match="coefficient"),
        causal.add(tiny_hooked, direction, layer=0, coefficient=value),
    ):
        pass
