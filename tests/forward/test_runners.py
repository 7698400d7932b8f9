"""One suite for every runner, architecture and site: the numbers are those of TransformerLens, a prompt at a time.

The oracle is `run_with_hooks` and `run_with_cache` of the hooked transformer on one whole prompt, nothing shared,
nothing padded, nothing cut.
"""

import logging

import pytest
import torch
from architectures import FAMILIES, build
from runners import WHY, through_hooks
from tolerances import FORWARD, REORDERED

from mechrefusal import models
from mechrefusal.forward import Asked, batches, bridge_hooks, flat, hook_name, refusal_scores, runner, runner_of
from mechrefusal.forward.refusal_metric import RefusalMetric
from mechrefusal.forward.unhooked import CALLERS_HOOKS

pytestmark = pytest.mark.slow

RUNNERS = ("token trees", "hooks")
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "mlp_post")
LAYERS = 4
WINDOWED = ("mistral", "gemma2", "gemma3")


def ids(seed: int, n: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 1000, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


HEAD = ids(0, 7)
ASKED = [
    Asked((*HEAD, *ids(1, 3)), ((), ids(5, 2))),
    Asked((*HEAD, *ids(2, 12)), ((), ids(5, 2))),
    Asked((*HEAD[:5], *ids(3, 6)), ((), ids(5, 2))),
]
WHOLE = [(*one.prompt, *run) for one in ASKED for run in one.continuations]


@pytest.fixture(params=RUNNERS)
def made(request, monkeypatch):
    """A function that gives the runner of a model."""
    if request.param == "hooks":
        through_hooks(monkeypatch)

    def of(model):
        found = runner_of(model)
        assert found.name == request.param
        return found

    return of


def alone(model, tokens, edits=()) -> torch.Tensor:
    """Log-probabilities of one prompt by TransformerLens."""
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=bridge_hooks(edits), return_type="logits")
    return logits[0].log_softmax(-1)


def same(batch, output, model, edits=()) -> None:
    for (number, run), found in zip(batch.numbers, output.logits, strict=True):
        one = ASKED[number]
        tokens = (*one.prompt, *one.continuations[run])
        expected = alone(model, tokens, edits)[len(one.prompt) - 1 :]
        torch.testing.assert_close(found.log_softmax(-1), expected, atol=2 * FORWARD, rtol=0)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", [*FAMILIES, *(f"{name}, window" for name in WINDOWED)])
def test_an_edit_does_what_a_hook_of_transformer_lens_does(family, windowed, made, architecture, site):
    """Also with sliding windows that are shorter than the prompts."""
    name, _, window = architecture.partition(", ")
    model = windowed(name) if window else family(name).hooked
    batch = made(model).batch(ASKED)
    edits = [(layer, site, lambda x: 0.9 * x + 0.01) for layer in (1, 3)]
    with torch.no_grad():
        same(batch, batch.run(edits), model, edits)
        same(batch, batch.run(edits, layers=range(1, LAYERS)), model, edits)
        changed = batch.run(edits).logits[0] - batch.run().logits[0]
    assert changed.abs().max() > 1e-2, "the edit does nothing here"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_is_kept_is_what_transformer_lens_caches(family, made, architecture):
    model = family(architecture).hooked
    batch = made(model).batch(ASKED)
    places = [(layer, site) for layer in range(LAYERS) for site in SITES] + [(0, "ln_final")]
    with torch.no_grad():
        cache = batch.run(keep=places).cache
        assert set(cache) == {hook_name(*place) for place in places}
        for own, tokens in zip(batch.places, WHOLE, strict=True):
            _, expected = model.run_with_cache(torch.tensor([tokens]))
            for place in places:
                there = flat(model, place[1], expected[hook_name(*place)])
                size = max(1.0, float(there.abs().max()))
                torch.testing.assert_close(cache[place][own], there, atol=size * FORWARD, rtol=0)
                assert cache[hook_name(*place)] is cache[place] is cache[place[1], place[0]]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_pass_that_starts_and_ends_at_any_layer(family, made, architecture):
    model = family(architecture).hooked
    batch = made(model).batch(ASKED)
    with torch.no_grad():
        whole = batch.run(keep=[(layer, "resid_pre") for layer in range(LAYERS)])
        for start in range(LAYERS):
            found = batch.run(layers=range(start, LAYERS))
            for one, other in zip(found.logits, whole.logits, strict=True):
                torch.testing.assert_close(one.log_softmax(-1), other.log_softmax(-1), atol=2 * REORDERED, rtol=0)
        for stop in range(1, LAYERS):
            found = batch.run(layers=range(stop), keep=[(stop, "resid_pre")])
            assert not found.logits
            for own in batch.places:  # padding is not read
                torch.testing.assert_close(
                    found.cache[stop, "resid_pre"][own], whole.cache[stop, "resid_pre"][own], atol=FORWARD, rtol=0
                )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt-neox"])
def test_prompts_that_stand_apart_are_edited_each_in_its_own_way(family, made, architecture):
    model = family(architecture).hooked
    for first in (0, 5):
        batch = made(model).batch(ASKED, first=first, apart=True)
        places = [own.tolist() for own in batch.places]
        assert not set(places[0]) & set(places[2]), "different prompts share no token"

        def scaled(x, batch=batch):
            changed = flat(model, "mlp_out", x).clone()
            for number in range(len(ASKED)):
                own = {
                    place for (n, _), p in zip(batch.numbers, batch.places, strict=True) if n == number for place in p
                }
                changed[sorted(map(int, own))] *= 1 + number
            return changed.reshape(x.shape)

        with torch.no_grad():
            found = batch.run([(2, "mlp_out", scaled)])
        for (number, run), logits in zip(batch.numbers, found.logits, strict=True):
            one = ASKED[number]

            def by(x, factor=1 + number, first=first):
                return torch.cat([x[:, :first], factor * x[:, first:]], dim=1)

            expected = alone(model, (*one.prompt, *one.continuations[run]), [(2, "mlp_out", by)])
            torch.testing.assert_close(
                logits.log_softmax(-1), expected[len(one.prompt) - 1 :], atol=2 * FORWARD, rtol=0
            )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt-neox"])
def test_rows_that_are_repeated_are_edited_each_in_its_own_way(family, made, architecture):
    model = family(architecture).hooked
    batch = made(model).batch([ASKED[1]], first=4)
    rows, factors = batch.repeated(3), torch.tensor([0.0, 1.0, 3.0])

    def scaled(x):
        return (flat(model, "attn_out", x).unflatten(0, (3, -1)) * factors[:, None, None]).reshape(x.shape)

    with torch.no_grad():
        for layers in (None, range(2, LAYERS)):
            found = rows.run([(2, "attn_out", scaled)], layers=layers)
            assert len(found.logits) == len(rows.numbers) == 6
            for (row, run), logits in zip(rows.numbers, found.logits, strict=True):

                def by(x, factor=float(factors[row])):
                    return torch.cat([x[:, :4], factor * x[:, 4:]], dim=1)

                tokens = (*ASKED[1].prompt, *ASKED[1].continuations[run])
                # Hooks edit the tokens before the first one too: what they make there reaches what follows.
                edit = by if rows.layout.index.shape[0] == 1 else (lambda x, factor=float(factors[row]): factor * x)
                expected = alone(model, tokens, [(2, "attn_out", edit)])[len(ASKED[1].prompt) - 1 :]
                torch.testing.assert_close(logits.log_softmax(-1), expected, atol=2 * FORWARD, rtol=0)


def test_only_the_wanted_logits_are_given(tiny_hooked, made):
    asked = [Asked(one.prompt, one.continuations, (1, 2)) for one in ASKED]
    batch = made(tiny_hooked).batch(asked)
    with torch.no_grad():
        found, whole = batch.run().logits, made(tiny_hooked).batch(ASKED).run().logits
    assert [len(each) for each in found] == [1, 2] * 3
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other[-len(one) :], atol=FORWARD, rtol=0)


def test_the_layout_says_where_tokens_stand(tiny_hooked, made):
    batch = made(tiny_hooked).batch(ASKED)
    index, distance = (part.flatten() for part in batch.layout.places(batch.layout.index.shape[1]))
    for (number, _), own in zip(batch.numbers, batch.places, strict=True):
        n = len(ASKED[number].prompt)
        assert index[own.cpu()].tolist() == list(range(len(own)))
        # From the eighth token on no prompt shares anything with another: what is shared has no one distance.
        assert distance[own.cpu()][8:].tolist() == [n - place for place in range(8, len(own))]


@pytest.mark.parametrize("at_most", [None, 2])
def test_batches_keep_the_order_and_the_limits(tiny_hooked, made, monkeypatch, at_most):
    monkeypatch.setitem(runner.TOKENS_AT_ONCE, "cpu", 30)
    found = list(batches(made(tiny_hooked), [*ASKED, *ASKED], at_most=at_most))
    assert [number for numbers, _ in found for number in numbers] == list(range(6))
    assert all(sum(ASKED[n % 3].n_tokens for n in numbers) <= 30 or len(numbers) == 1 for numbers, _ in found)
    assert max(len(numbers) for numbers, _ in found) <= (at_most or 6)


# Which runner, and why


def test_every_architecture_here_runs_token_trees(family):
    """The canary: where an update of a library takes that away, everything is measured three times as slowly."""
    for name in FAMILIES:
        found = runner_of(family(name).hooked)
        assert (found.name, found.why) == ("token trees", ""), name


def test_why_there_are_no_trees_is_said_once(tmp_path, caplog):
    words = models.tiny.tokenizer()
    build("llama", len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = models.load_hooked(tmp_path)
    handle = model.blocks[2].mlp.register_forward_hook(lambda _, args, output: output * 1.2)
    with caplog.at_level(logging.WARNING, logger="mechrefusal"):
        for _ in range(2):
            found = runner_of(model)
    handle.remove()
    assert found.name == "hooks"
    assert found.why == "the unhooked model gives other probabilities, as it is"
    assert [record.message for record in caplog.records] == [
        f"LlamaForCausalLM is run through hooks, about three times as slowly: {found.why}"
    ]


def test_hooks_of_the_caller_are_obeyed(tiny_hooked, caplog):
    metric, prompts = RefusalMetric((), (10,), (12,)), [one.prompt for one in ASKED]
    without = refusal_scores(tiny_hooked, prompts, metric)
    edits = [(1, "resid_pre", lambda x: x + 1.0 * torch.arange(64))]
    with tiny_hooked.hooks(fwd_hooks=bridge_hooks(edits)):
        assert (runner_of(tiny_hooked).name, runner_of(tiny_hooked).why) == ("hooks", CALLERS_HOOKS)
        found = refusal_scores(tiny_hooked, prompts, metric)
    expected = torch.stack([metric.of(alone(tiny_hooked, prompt, edits)[-1]) for prompt in prompts])
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)
    assert (found - without).abs().max() > 0.01
    assert runner_of(tiny_hooked).name == "token trees"
    assert not caplog.records, "the caller knows of their own hooks"


def test_a_site_that_the_unhooked_model_lacks(tiny_hooked):
    assert runner_of(tiny_hooked, sites=("z", "mlp_post")).name == "token trees"
    found = runner_of(tiny_hooked, sites=("pattern",))
    assert (found.name, found.why) == ("hooks", "the unhooked model lacks site pattern")


def test_the_reason_of_a_test_is_a_reason(tiny_hooked, monkeypatch):
    through_hooks(monkeypatch)
    assert runner_of(tiny_hooked).why == WHY
