"""Rule 5: passes of either runner against plain passes of the hooked transformer, one by one, nothing shared."""

import gc
from collections.abc import Sequence

import pytest
import torch
from architectures import build
from runners import through_hooks
from tolerances import COMPOUND, FORWARD, REORDERED
from torch.nn.functional import cross_entropy

from mechrefusal import MechrefusalError, models
from mechrefusal.causal import Ablation, Addition, AnswerPasses, Chain, Passes, ablate, add, intervened
from mechrefusal.causal.operations import orthonormal
from mechrefusal.forward import (
    choosing,
    hooked_runner,
    low_precision,
    runner,
    tree_forward,
    tree_runner,
    unhooked_model,
)
from mechrefusal.forward.unhooked import unhooked

pytestmark = pytest.mark.slow

VOCAB, D_MODEL, LAYERS, CONTEXT = 1000, 64, 4, 512
SOME = ("llama", "gemma2", "gpt2", "gpt-neox")
WINDOWED = ("mistral", "gemma2", "gemma3")


def ids(seed: int, n: int) -> tuple[int, ...]:
    """`n` token ids drawn from `seed`."""
    return tuple(torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(scale: float = 1.0) -> torch.Tensor:
    return scale * random(D_MODEL, seed=3)


HEAD = ids(0, 9)
PROMPTS = [(*HEAD, *ids(1, 3)), (*HEAD, *ids(2, 17)), (*HEAD[:5], *ids(3, 6)), HEAD, ids(4, 20), (*HEAD, *ids(1, 3))]
"""Of 9 to 26 tokens: beginnings in common, one the beginning of others, one of its own, the same one twice."""

RUNS = {
    "nothing": ((),),
    "an opening": (ids(5, 3),),
    "several": (ids(6, 2), (), (*ids(6, 2), *ids(7, 4)), ids(8, 1), ids(6, 2)),
}
INTERVENTIONS = {
    "none": lambda: None,
    "ablation": lambda: Ablation(random(D_MODEL)),
    "ablation of three": lambda: Ablation(random(3, D_MODEL)),
    "dose 0.5": lambda: Ablation(random(D_MODEL), dose=0.5),
    "dose -2": lambda: Ablation(random(D_MODEL), dose=-2.0),
    "dose 0": lambda: Ablation(random(D_MODEL), dose=0.0),
    "three at dose 0.5": lambda: Ablation(random(3, D_MODEL), dose=0.5),
    "addition at layer 0": lambda: Addition(step(), 0),
    "addition in the middle": lambda: Addition(step(), 2, coefficient=-1.5),
    "addition at the last layer": lambda: Addition(step(), 3, coefficient=2.0),
}
FEW = ("none", "ablation", "three at dose 0.5", "addition in the middle")


@pytest.fixture(scope="module")
def llama(family):
    return family("llama").hooked


@pytest.fixture
def fall_back(monkeypatch):
    through_hooks(monkeypatch)


def one_by_one(model, prompts, runs, intervention=None) -> list[torch.Tensor]:
    """For each run, logits at the end of every prompt and at each of its tokens: a plain pass each, from the start."""
    found = []
    with opened(model, intervention):
        for run in runs:
            rows = [model(torch.tensor([[*p, *run]]), return_type="logits")[0, len(p) - 1 :] for p in prompts]
            found.append(torch.stack(rows))
    return found


def opened(model, intervention):
    """The context that a user would open."""
    if isinstance(intervention, Ablation):
        return ablate(model, intervention.directions, dose=intervention.dose)
    if isinstance(intervention, Addition):
        return add(model, intervention.direction, layer=intervention.layer, coefficient=intervention.coefficient)
    return intervened(model, None)


def same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], atol: float = FORWARD) -> None:
    """Within `atol` in log-probabilities, and in logits of the size of one."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.log_softmax(-1), other.log_softmax(-1), atol=atol, rtol=0)
        torch.testing.assert_close(one, other, atol=atol * max(1.0, float(other.abs().max())), rtol=0)


def check(model, intervention, prompts=PROMPTS, runs=RUNS["an opening"]) -> Passes:
    with torch.no_grad():
        made = Passes(model, prompts, runs)
        same(made.logits(intervention), one_by_one(model, prompts, runs, intervention))
    return made


# Numbers


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_logits_are_those_of_plain_passes(family, architecture, name):
    model = family(architecture).hooked
    made = check(model, INTERVENTIONS[name]())
    assert made.runner.name == "token trees"
    if name not in ("none", "dose 0"):
        with torch.no_grad():
            changed = made.logits(INTERVENTIONS[name]())[0] - made.logits()[0]
        assert changed.abs().max() > 0.02, "the intervention does nothing here"


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("runs", ["nothing", "several"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_any_runs(family, architecture, name, runs):
    check(family(architecture).hooked, INTERVENTIONS[name](), runs=RUNS[runs])


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], [(7,)], [(7,), PROMPTS[1]]], ids=["one", "of a token", "both"])
def test_few_prompts(llama, name, prompts):
    for runs in RUNS.values():
        check(llama, INTERVENTIONS[name](), prompts, runs)


def test_the_order_of_prompts_and_runs_is_that_of_the_logits(llama):
    with torch.no_grad():
        expected = Passes(llama, PROMPTS, RUNS["several"]).logits()
        order = [4, 0, 3, 2, 5, 1]
        shuffled = Passes(llama, [PROMPTS[i] for i in order], RUNS["several"][::-1]).logits()
    same(shuffled, [logits[order] for logits in expected[::-1]], atol=REORDERED)


@pytest.mark.parametrize("name", ["none", "ablation", "addition in the middle"])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_windows_shorter_than_the_prompts(family, windowed, architecture, name):
    made = check(windowed(architecture), INTERVENTIONS[name](), runs=RUNS["several"])
    assert made.runner.name == "token trees"
    with torch.no_grad():  # the same weights without a window
        wide = Passes(family(architecture).hooked, PROMPTS, RUNS["several"]).logits(INTERVENTIONS[name]())
        assert (wide[0] - made.logits(INTERVENTIONS[name]())[0]).abs().max() > 1e-2


@pytest.mark.parametrize("limit", ["tokens", "bytes"])
@pytest.mark.parametrize("name", FEW)
def test_many_groups_give_what_one_gives(llama, monkeypatch, name, limit):
    whole = Passes(llama, PROMPTS, RUNS["several"])
    if limit == "tokens":
        monkeypatch.setitem(runner.TOKENS_AT_ONCE, "cpu", 60)
    else:
        monkeypatch.setattr(runner, "LOGIT_BYTES", 3 * 18 * 4 * llama.cfg.d_vocab)
    parts = check(llama, INTERVENTIONS[name](), runs=RUNS["several"])
    sizes = [[len(batch.numbers) // len(RUNS["several"]) for batch in made._batches] for made in (whole, parts)]
    assert sizes[0] == [6]
    assert sizes[1] == ([2, 2, 2] if limit == "tokens" else [3, 3])
    monkeypatch.setitem(runner.TOKENS_AT_ONCE, "cpu", 1)
    assert len(check(llama, INTERVENTIONS[name](), runs=RUNS["several"])._batches) == 6


def test_one_set_of_passes_for_one_intervention_after_another(llama):
    """In any order, with nothing of the one left in the next."""
    with torch.no_grad():
        made = Passes(llama, PROMPTS, RUNS["an opening"])
        expected = {name: one_by_one(llama, PROMPTS, made.runs, of()) for name, of in INTERVENTIONS.items()}
        for name in [*INTERVENTIONS, *reversed(INTERVENTIONS)]:
            same(made.logits(INTERVENTIONS[name]()), expected[name])


def test_directions_of_any_precision(llama):
    with torch.no_grad():
        made = Passes(llama, PROMPTS)
        for dtype in (torch.float64, torch.bfloat16):
            direction = step().to(dtype)
            for given, exact in (
                (Ablation(direction), Ablation(direction.float())),
                (Addition(direction, 2), Addition(direction.float(), 2)),
            ):
                same(made.logits(given), one_by_one(llama, PROMPTS, [()], exact))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "ablation", "dose 0.5", "addition"])
def test_the_real_model(smollm2_hooked, name):
    real = smollm2_hooked
    d_model, layer = real.cfg.d_model, real.cfg.n_layers // 2
    direction = random(d_model)
    intervention = {
        "none": None,
        "ablation": Ablation(direction),
        "dose 0.5": Ablation(random(3, d_model), dose=0.5),
        "addition": Addition(5 * direction / direction.norm(), layer),
    }[name]
    texts = ("How do I bake bread?", "Tell me in one sentence how a lock works.", "Write a poem.")
    prompts = [
        real.tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False) for text in texts
    ]
    with torch.no_grad():
        made = Passes(real, prompts, RUNS["an opening"])
        assert made.runner.name == "token trees"
        same(made.logits(intervention), one_by_one(real, prompts, made.runs, intervention), atol=COMPOUND)


# Planted


@pytest.mark.parametrize("dose", [1.0, 0.5, -2.0])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt-neox"])
def test_what_an_ablation_leaves_in_the_unhooked_model(family, architecture, dose):
    """Nothing at any site at dose 1; 1 − dose of what is written at every layer, after norms that follow a part too."""
    model, rows = family(architecture).hooked, random(2, D_MODEL)
    (found, _), basis = unhooked(model), orthonormal(rows)
    assert found is not None
    before, after = {}, {}

    def noting(notes, layer, site):
        return lambda x: notes.setdefault((layer, site), x.clone())

    sites = [(layer, site) for layer in range(LAYERS) for site in ("resid_pre", "attn_out", "mlp_out")]
    edits = [(*at, noting(before, *at)) for at in sites]
    edits += Ablation(rows, dose).edits(model)
    edits += [(*at, noting(after, *at)) for at in sites]
    with torch.no_grad(), found.edited(edits):
        found.model(torch.tensor([PROMPTS[1]]), use_cache=False)
    written = before[0, "resid_pre"]
    for layer in range(LAYERS):
        part, bound = written @ basis, 2e-5 * max(1.0, float(written.abs().max()))
        assert part.abs().max() > 1e-2
        torch.testing.assert_close(after[layer, "resid_pre"] @ basis, (1 - dose) * part, atol=bound, rtol=0)
        for site in ("attn_out", "mlp_out"):
            write = before[layer, site]
            bound = 2 * REORDERED * max(1.0, float(write.abs().max()))
            torch.testing.assert_close(after[layer, site] @ basis, (1 - dose) * write @ basis, atol=bound, rtol=0)
            written = written + write


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_planted_addition_comes_out_as_the_token_that_it_stands_for(llama, layer):
    made, tokens = Passes(llama, PROMPTS), (321, 45)
    with torch.no_grad():
        for token in tokens:
            direction = 100 * llama.W_U[:, token]
            raised = made.logits(Addition(direction, layer))[0]
            lowered = made.logits(Addition(direction, layer, coefficient=-1))[0]
            assert (raised.argmax(-1) == token).all()
            assert (lowered.argmin(-1) == token).all()


# Answers


def plain_losses(model, prompts, answers, intervention=None) -> torch.Tensor:
    losses = []
    with opened(model, intervention):
        for prompt, answer in zip(prompts, answers, strict=True):
            logits = model(torch.tensor([[*prompt, *answer]]), return_type="logits")[0]
            losses.append(cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer)))
    return torch.stack(losses)


ANSWERS = [ids(20, 5), ids(21, 1), ids(22, 30), ids(23, 2), ids(24, 8), ids(20, 5)]
"""Of 1 to 30 tokens: also longer than its prompt."""


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("architecture", SOME)
def test_losses_of_answers_are_their_cross_entropy(family, architecture, name):
    model, intervention = family(architecture).hooked, INTERVENTIONS[name]()
    with torch.no_grad():
        found = AnswerPasses(model, PROMPTS, ANSWERS).losses(intervention)
        expected = plain_losses(model, PROMPTS, ANSWERS, intervention)
    assert found.shape == (6,)
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=REORDERED)


def test_losses_of_answers_in_many_groups(llama, monkeypatch):
    monkeypatch.setitem(runner.TOKENS_AT_ONCE, "cpu", 45)
    with torch.no_grad():
        made = AnswerPasses(llama, PROMPTS, ANSWERS)
        assert [len(batch.numbers) for batch in made._batches] == [2, 1, 2, 1]
        for name in FEW:
            found = made.losses(INTERVENTIONS[name]())
            expected = plain_losses(llama, PROMPTS, ANSWERS, INTERVENTIONS[name]())
            torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)


def test_an_answer_has_tokens_and_a_prompt_of_its_own(llama):
    with pytest.raises(AssertionError, match="at least one token"):
        AnswerPasses(llama, PROMPTS[:2], [ids(1, 2), ()])
    with pytest.raises(ValueError, match="zip"):
        AnswerPasses(llama, PROMPTS[:2], [ids(1, 2)])
    with pytest.raises(AssertionError, match="at least one prompt"):
        Passes(llama, [])
    with pytest.raises(AssertionError, match="at least one run"):
        Passes(llama, PROMPTS, ())


# Gradients

LEARNT = {
    "ablation": (1, lambda d: Ablation(d)),
    "ablation of three": (3, lambda d: Ablation(d)),
    "dose 0.5": (1, lambda d: Ablation(d, dose=0.5)),
    "addition at layer 0": (1, lambda d: Addition(d, 0)),
    "addition in the middle": (1, lambda d: Addition(d, 2, coefficient=-1.5)),
    "addition at the last layer": (1, lambda d: Addition(d, 3)),
}


def drawn(k: int) -> torch.Tensor:
    return random(D_MODEL, seed=6) if k == 1 else random(k, D_MODEL, seed=6)


def loss_of(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """A number that every logit has a part in."""
    parts = [(one.log_softmax(-1) * random(*one.shape, seed=9)).mean() for one in logits]
    return 30 * torch.stack(parts).sum()


def gradient(run, of, directions: torch.Tensor) -> torch.Tensor:
    learnt = directions.clone().requires_grad_()
    loss_of(run(of(learnt))).backward()
    assert learnt.grad is not None
    return learnt.grad


def alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.abs().max() > 1e-3, "nothing to compare"
    torch.testing.assert_close(found, expected, atol=2 * FORWARD * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("architecture", SOME)
def test_gradients_of_directions_are_those_of_plain_passes(family, architecture, name):
    model, (k, of) = family(architecture).hooked, LEARNT[name]
    made = Passes(model, PROMPTS[:3], RUNS["several"][:2])
    found = gradient(made.logits, of, drawn(k))
    alike(found, gradient(lambda i: one_by_one(model, PROMPTS[:3], made.runs, i), of, drawn(k)))
    assert all(weight.grad is None for weight in (*model.parameters(), *unhooked_model(model).parameters()))


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_of_directions_are_finite_differences(llama, name):
    k, of = LEARNT[name]
    made, directions = Passes(llama, PROMPTS[:3], RUNS["an opening"]), drawn(k)
    found = gradient(made.logits, of, directions)
    for towards in (found / found.norm(), random(*directions.shape, seed=11) / directions.numel() ** 0.5):
        size = 2e-2
        with torch.no_grad():
            up, down = (loss_of(made.logits(of(directions + sign * size * towards))) for sign in (1, -1))
        expected = float(up - down) / (2 * size)
        assert float((found * towards).sum()) == pytest.approx(expected, abs=0.03 * float(found.norm()))
    assert found.norm() > 1e-2


def test_gradients_of_losses_of_answers(llama):
    direction = drawn(1)
    made, found, expected = AnswerPasses(llama, PROMPTS, ANSWERS), *(direction.clone().requires_grad_() for _ in "ab")
    (made.losses(Ablation(found)) * random(6)).sum().backward()
    (plain_losses(llama, PROMPTS, ANSWERS, Ablation(expected)) * random(6)).sum().backward()
    alike(found.grad, expected.grad)


def test_no_graph_where_no_direction_asks_for_gradients(llama):
    made = Passes(llama, PROMPTS)
    assert not any(made.logits(INTERVENTIONS[name]())[0].requires_grad for name in INTERVENTIONS)
    learnt = drawn(1).requires_grad_()
    with torch.no_grad():
        assert not made.logits(Ablation(learnt))[0].requires_grad
    assert made.logits(Ablation(learnt))[0].requires_grad
    assert made.logits(Addition(learnt, 2))[0].requires_grad


def test_kept_residuals_carry_no_graph_from_one_intervention_to_the_next(llama):
    made, learnt = Passes(llama, PROMPTS), drawn(1).requires_grad_()
    for _ in range(2):  # a second backward pass through the same graph would be an error
        loss_of(made.logits(Addition(learnt, 2))).backward()
    once = learnt.grad.clone() / 2
    alike(once, gradient(made.logits, lambda d: Addition(d, 2), drawn(1)))


# Models without a faster runner


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_fallback_gives_the_same_logits(family, fall_back, architecture, name):
    made = check(family(architecture).hooked, INTERVENTIONS[name](), runs=RUNS["several"])
    assert made.runner.name == "hooks"


@pytest.mark.parametrize("name", FEW)
def test_the_fallback_with_prompts_shorter_than_what_follows_them(llama, fall_back, name):
    check(llama, INTERVENTIONS[name](), [(7,), PROMPTS[0], (8, 9)], RUNS["several"])
    with torch.no_grad():
        found = AnswerPasses(llama, PROMPTS, ANSWERS).losses(INTERVENTIONS[name]())
        expected = plain_losses(llama, PROMPTS, ANSWERS, INTERVENTIONS[name]())
    torch.testing.assert_close(found, expected, atol=FORWARD, rtol=0)


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_fallback_gives_the_same_gradients(family, fall_back, architecture, name):
    model, (k, of) = family(architecture).hooked, LEARNT[name]
    made = Passes(model, PROMPTS[:3], RUNS["several"][:2])
    found = gradient(made.logits, of, drawn(k))
    alike(found, gradient(lambda i: one_by_one(model, PROMPTS[:3], made.runs, i), of, drawn(k)))
    learnt = drawn(k).requires_grad_()
    losses = AnswerPasses(model, PROMPTS[:2], ANSWERS[:2]).losses(of(learnt))
    losses.sum().backward()
    expected = drawn(k).requires_grad_()
    plain_losses(model, PROMPTS[:2], ANSWERS[:2], of(expected)).sum().backward()
    alike(learnt.grad, expected.grad)


def test_a_model_that_disagrees_with_its_unhooked_model_falls_back(tmp_path):
    words = models.tiny.tokenizer()
    build("llama", len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = models.load_hooked(tmp_path)
    handle = model.blocks[2].mlp.register_forward_hook(lambda _, args, output: output * 1.2)
    for name in FEW:
        assert check(model, INTERVENTIONS[name]()).runner.name == "hooks"
    handle.remove()


def test_an_unhooked_model_that_runs_no_trees_falls_back_and_says_so(llama, monkeypatch):
    monkeypatch.setattr(choosing, "why_not_shared", lambda model: "it takes no position ids")
    made = check(llama, INTERVENTIONS["dose 0.5"](), PROMPTS[:3], RUNS["several"][:3])
    assert made.runner.name == "hooks"
    assert made.runner.why == "the unhooked model runs no token trees: it takes no position ids"


@pytest.mark.parametrize("name", FEW)
def test_interventions_that_the_caller_has_open_act_too(llama, name):
    """They are hooks of the hooked transformer, which the unhooked model does not have."""
    made, outer = Passes(llama, PROMPTS), Addition(step(2.0), 1)
    with torch.no_grad():
        alone = made.logits(INTERVENTIONS[name]())
        with opened(llama, outer):
            expected = one_by_one(llama, PROMPTS, [()], INTERVENTIONS[name]())
            same(made.logits(INTERVENTIONS[name]()), expected)
            inside = Passes(llama, PROMPTS)
            same(inside.logits(INTERVENTIONS[name]()), expected)
        assert (alone[0] - expected[0]).abs().max() > 0.05
        same(made.logits(INTERVENTIONS[name]()), alone, atol=REORDERED)
        same(inside.logits(INTERVENTIONS[name]()), alone)


# Low precision


@pytest.fixture
def multiplies(monkeypatch):
    """As if this machine multiplied bfloat16: the numbers are the same where it doesn't."""
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: True)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("architecture", SOME)
def test_low_precision_is_near(family, multiplies, architecture, name):
    model, intervention = family(architecture).hooked, INTERVENTIONS[name]()
    with torch.no_grad():
        made = Passes(model, PROMPTS, RUNS["an opening"], low_precision=True)
        found, expected = made.logits(intervention)[0], one_by_one(model, PROMPTS, made.runs, intervention)[0]
    assert made.low_precision
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().mean() / expected.std() < 0.03


def test_low_precision_of_answers_is_near(llama, multiplies):
    with torch.no_grad():
        made = AnswerPasses(llama, PROMPTS, ANSWERS, low_precision=True)
        found, expected = made.losses(Ablation(step())), plain_losses(llama, PROMPTS, ANSWERS, Ablation(step()))
    assert made.low_precision
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert not torch.equal(found, expected)


def test_low_precision_has_gradients(llama, multiplies):
    made = Passes(llama, PROMPTS, low_precision=True)
    for _, of in (LEARNT["ablation"], LEARNT["addition in the middle"]):
        found = gradient(made.logits, of, drawn(1))
        expected = gradient(lambda i: one_by_one(llama, PROMPTS, [()], i), of, drawn(1))
        assert torch.cosine_similarity(found, expected, dim=0) > 0.99


def test_float32_where_the_device_does_not_multiply_bfloat16(llama, monkeypatch):
    monkeypatch.setattr(low_precision, "multiplies_bfloat16", lambda device: False)
    with torch.no_grad():
        for intervention in (None, Ablation(step()), Addition(step(), 2)):
            made = Passes(llama, PROMPTS, low_precision=True)
            assert not made.low_precision
            assert torch.equal(made.logits(intervention)[0], Passes(llama, PROMPTS).logits(intervention)[0])


def test_float32_where_there_is_no_unhooked_model(llama, fall_back, multiplies):
    with torch.no_grad():
        made = Passes(llama, PROMPTS, low_precision=True)
        assert not made.low_precision
        same(made.logits(), one_by_one(llama, PROMPTS, [()]))


def test_passes_that_live_at_the_same_time_share_their_bfloat16_weights(llama, multiplies, monkeypatch):
    made, plain = [], tree_runner.bfloat16_forward
    monkeypatch.setattr(tree_runner, "bfloat16_forward", lambda model: made.append(1) or plain(model))
    first, second = (Passes(llama, PROMPTS[:2], low_precision=True) for _ in range(2))
    assert len(made) == 1
    assert torch.equal(first.logits()[0], second.logits()[0])
    del first, second
    gc.collect()
    Passes(llama, PROMPTS[:2], low_precision=True)
    assert len(made) == 2


# Cost


class Counted:
    """Tokens that go through each block of an unhooked model, and rows of logits."""

    def __init__(self, found) -> None:
        self.tokens, self.rows = [0] * LAYERS, 0
        self._found = found

    def __enter__(self):
        def count(layer):
            def hook(module, args, output):
                self.tokens[layer] += output.shape[:-1].numel()

            return hook

        def head(module, args, output):
            self.rows += output.shape[:-1].numel()

        self._handles = [mlp.register_forward_hook(count(layer)) for layer, mlp in enumerate(self._found.mlp)]
        self._handles.append(self._found.model.get_output_embeddings().register_forward_hook(head))
        return self

    def __exit__(self, *error):
        for handle in self._handles:
            handle.remove()


def test_every_token_is_run_once_and_layers_below_an_addition_are_not_run_again(llama):
    runs = RUNS["several"]
    made = Passes(llama, PROMPTS, runs)
    texts = [(*prompt, *run) for prompt in PROMPTS for run in runs]
    distinct = len({text[: n + 1] for text in texts for n in range(len(text))})
    assert distinct < sum(map(len, texts)) / 3
    places = len(
        {text[: n + 1] for p in PROMPTS for r in runs for text in [(*p, *r)] for n in range(len(p) - 1, len(text))}
    )
    with torch.no_grad():
        made.logits(Addition(step(), 2))  # takes the residual stream
        with Counted(unhooked(llama)[0]) as counted:
            made.logits(Addition(step(), 2))
        assert counted.tokens == [0, 0, distinct, distinct]
        assert counted.rows == places
        with Counted(unhooked(llama)[0]) as counted:
            made.logits(Ablation(step()))
        assert counted.tokens == [distinct] * LAYERS
        assert counted.rows == places
        with Counted(unhooked(llama)[0]) as counted:
            made.logits(Addition(step(), 3))
        assert counted.tokens == [0, 0, 0, distinct]


# Errors, and what is left behind


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        (Ablation(torch.ones(63)), r"\(63,\).*64"),
        (Ablation(torch.ones(2, 65)), r"\(65,\).*64"),
        (Ablation(torch.zeros(64)), "zero"),
        (Ablation(torch.full((64,), float("nan"))), "not finite"),
        (Ablation(torch.stack([torch.ones(64), torch.full((64,), float("inf"))])), "not finite"),
        (Ablation(torch.empty(0, 64)), "no direction"),
        (Ablation(torch.zeros(64), dose=0.5), "zero"),
        (Addition(torch.ones(65), 1), r"\(65,\).*64"),
        (Addition(torch.zeros(64), 1), "zero"),
        (Addition(torch.full((64,), float("nan")), 1), "not finite"),
        (Addition(torch.ones(2, 64), 1), "shape"),
        (Addition(torch.ones(64), 4), "layer 4 .*0 to 3"),
        (Addition(torch.ones(64), -1), "layer -1 .*0 to 3"),
    ],
)
@pytest.mark.parametrize("trees", [True, False])
def test_directions_that_point_nowhere_are_refused_before_any_pass(llama, monkeypatch, trees, intervention, said):
    if not trees:
        through_hooks(monkeypatch)
    made, answers = Passes(llama, PROMPTS), AnswerPasses(llama, PROMPTS, ANSWERS)
    runs = []
    for batch in (tree_runner.TreeBatch, hooked_runner.RowsBatch):
        monkeypatch.setattr(batch, "run", lambda *_, **__: runs.append(1))
    with pytest.raises(MechrefusalError, match=said):
        made.logits(intervention)
    with pytest.raises(MechrefusalError, match=said):
        answers.losses(intervention)
    assert not runs


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("trees", [True, False])
def test_prompts_longer_than_the_context_are_refused_by_name(family, monkeypatch, architecture, trees):
    model = family(architecture).hooked
    if not trees:
        through_hooks(monkeypatch)
    fits, run = ids(1, CONTEXT - 2), ids(2, 2)
    with torch.no_grad():
        longest = Passes(model, [PROMPTS[0], fits], (run,))
        same(longest.logits(), [torch.stack([one_by_one(model, [p], [run])[0][0] for p in (PROMPTS[0], fits)])])
        assert AnswerPasses(model, [fits], [ids(3, 3)]).losses().isfinite().all()
    said = "513 tokens.*context of 512"
    with pytest.raises(MechrefusalError, match=said):
        Passes(model, [PROMPTS[0], fits], (run, ids(2, 3)))
    with pytest.raises(MechrefusalError, match=said):
        Passes(model, [ids(1, 513)])
    with pytest.raises(MechrefusalError, match=said):
        AnswerPasses(model, [PROMPTS[0], fits], [ids(3, 1), ids(3, 4)])


@pytest.mark.parametrize("architecture", WINDOWED)
def test_the_fallback_with_windows_shorter_than_the_prompts(windowed, fall_back, architecture):
    """Rows are padded on the right, where a window does not count it."""
    made = check(windowed(architecture), Ablation(step()), runs=RUNS["several"])
    assert made.runner.name == "hooks"


def traces(model) -> list[str]:
    """What passes may leave at a hooked transformer and its unhooked model: hooks, forwards, an attention."""
    found = unhooked_model(model)
    left = [f"attention {found.config._attn_implementation}"]
    for owner in (found, model.original_model):
        for name, module in owner.named_modules():
            if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
                left.append(name)
    return left + [name for name, point in model.hook_dict.items() if point.fwd_hooks]


@pytest.mark.parametrize(
    ("intervention", "broken", "warm"),
    [
        (Ablation(step()), 1, False),
        (Addition(step(), 0), 1, False),
        (Addition(step(), 2), 1, False),  # while the residual stream is taken
        (Addition(step(), 2), 3, True),  # while lower layers are skipped
    ],
    ids=["ablation", "addition at layer 0", "taking residuals", "skipping layers"],
)
def test_a_pass_that_breaks_off_leaves_nothing_behind(llama, monkeypatch, intervention, broken, warm):
    clean, made = traces(llama), Passes(llama, PROMPTS)
    run, standing = tree_forward.TreeForward.run_tree, []

    def breaks(self, *args, **named):
        standing.append(len(traces(llama)))
        handle = self.model.model.layers[broken].mlp.register_forward_hook(lambda *_: 1 / 0)
        try:
            return run(self, *args, **named)
        finally:
            handle.remove()

    with torch.no_grad():
        if warm:
            made.logits(intervention)
        monkeypatch.setattr(tree_forward.TreeForward, "run_tree", breaks)
        with pytest.raises(ZeroDivisionError):
            made.logits(intervention)
        monkeypatch.undo()
        assert len(standing) == 1
        assert standing[0] > len(clean), "nothing stood at the model while it ran"
        assert traces(llama) == clean
        for after in (intervention, Addition(step(), 3), None):
            same(made.logits(after), one_by_one(llama, PROMPTS, [()], after))
    assert traces(llama) == clean


@pytest.mark.parametrize("trees", [True, False])
def test_the_model_and_what_the_caller_gave_are_as_before(llama, monkeypatch, trees):
    with torch.no_grad():
        before = one_by_one(llama, PROMPTS, [()])
    weights = {key: value.clone() for key, value in llama.state_dict().items()}
    clean = traces(llama)
    if not trees:
        through_hooks(monkeypatch)
    prompts, runs = [list(prompt) for prompt in PROMPTS], [list(run) for run in RUNS["several"]]
    directions, rows = step(), random(3, D_MODEL)
    given = directions.clone(), rows.clone()
    with torch.no_grad():
        made = Passes(llama, prompts, runs)
        first = [logits.clone() for logits in made.logits()]
        held = made.logits()
        for intervention in (Ablation(directions), Ablation(rows, 0.5), Addition(directions, 2, -1.0)):
            made.logits(intervention)
    assert all(torch.equal(one, other) for one, other in zip(first, held, strict=True))
    assert torch.equal(directions, given[0])
    assert torch.equal(rows, given[1])
    assert prompts == [list(prompt) for prompt in PROMPTS]
    assert runs == [list(run) for run in RUNS["several"]]
    assert all(torch.equal(value, weights[key]) for key, value in llama.state_dict().items())
    monkeypatch.undo()
    assert traces(llama) == clean
    with torch.no_grad():
        assert torch.equal(one_by_one(llama, PROMPTS, [()])[0], before[0])


def test_positions_are_for_the_model_itself(tiny_hooked):
    passes = Passes(tiny_hooked, PROMPTS[:2])
    with pytest.raises(MechrefusalError, match="chosen positions"):
        passes.logits(Ablation(torch.ones(64), positions=(-1,)))


def test_gradients_reach_a_direction_in_a_chain(tiny_hooked):
    direction = torch.ones(64, requires_grad=True)
    chain = Chain((Addition(torch.ones(64), 1), Ablation(direction)))
    for hooks_open in (False, True):
        with tiny_hooked.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)] if hooks_open else []):
            found = Passes(tiny_hooked, PROMPTS[:2]).logits(chain)[0].log_softmax(-1).square().sum()
        (gradient,) = torch.autograd.grad(found, direction)
        assert gradient.abs().max() > 0
