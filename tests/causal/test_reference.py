"""Ablation to a reference, against edits of the plain model's block inputs that know each token's class by hand."""

from dataclasses import replace

import pytest
import torch
from architectures import FAMILIES
from runners import through_hooks

from mechrefusal import MechrefusalError, causal, evaluation
from mechrefusal.causal import Ablation, Addition, AnswerPasses, Passes, Reference
from mechrefusal.causal.reference import require_reference
from mechrefusal.forward import runner
from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.token_classes import ANSWER, HEAD, INSTRUCTION, TokenClasses

LAYERS, WIDTH, FIRST = 4, 64, 1
BEFORE, AFTER = 2, 3
CLASSES = TokenClasses(BEFORE, AFTER)
HELD = tuple(kind != HEAD for kind in range(len(CLASSES)))
TOLERANCE = 1e-4
"""nats"""


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(seed, n):
    return tuple(torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


MEANS = 2 * random(LAYERS, len(CLASSES), WIDTH, seed=9)
REFERENCE = Reference("harmless mean", MEANS, CLASSES, HELD, FIRST)
ROWS = random(2, WIDTH, seed=5)
SHARED = ids(0, 6)
PROMPTS = [(*SHARED, *ids(1, 5)), (*SHARED, *ids(2, 9)), (*SHARED[:4], *ids(3, 6)), ids(4, 12), (*SHARED, *ids(1, 5))]
"""Of 10 to 15 tokens: beginnings in common, one prompt of its own, the same one twice."""
RUNS = {"nothing": ((),), "one": (ids(5, 3),), "several": (ids(6, 2), (), (*ids(6, 2), *ids(7, 3)))}


def basis(rows):
    return torch.linalg.qr(torch.atleast_2d(rows).T).Q


def kinds(length, n_run):
    """The class of every token of a prompt of `length` tokens and `n_run` after it, counted by hand."""
    found = []
    for place in range(length + n_run):
        if place < BEFORE:
            found.append(HEAD)
        elif place < length - AFTER:
            found.append(INSTRUCTION)
        elif place < length:
            found.append(3 + place - (length - AFTER))
        else:
            found.append(ANSWER)
    return found


def by_hand(hf, prompt, run=(), rows=ROWS, means=MEANS, first=FIRST):
    """Log-probabilities at the end of the prompt and at each token of the run, every block input edited."""
    q, of = basis(rows), kinds(len(prompt), len(run))
    held = torch.tensor([kind != HEAD for kind in of])

    def at(layer):
        def edit(x):
            wanted = means[layer][of] @ q
            return x + torch.where(held[:, None], wanted - x @ q, 0.0) @ q.T

        return edit

    edits = [(layer, "resid_pre", at(layer)) for layer in range(first, LAYERS)]
    with torch.no_grad(), HuggingFaceModel.of(hf).edited(edits):
        logits = hf(torch.tensor([[*prompt, *run]])).logits[0, len(prompt) - 1 :]
    return logits.log_softmax(-1)


def plain(model, intervention, prompt, run=()):
    """The same under `causal.intervened`, of either kind of model."""
    with torch.no_grad(), causal.intervened(model, intervention, after_prompt=[len(run)] if run else None):
        found = model(torch.tensor([[*prompt, *run]]))
    logits = found if isinstance(found, torch.Tensor) else found.logits
    return logits[0, len(prompt) - 1 :].log_softmax(-1)


def stream(hf, intervention, prompt):
    """(layer, token, d_model) before and after the intervention at every block input."""
    seen = {"before": {}, "after": {}}

    def keep(when, layer):
        return lambda x: seen[when].update({layer: x[0].clone()}) or x

    def edits(when):
        return [(layer, "resid_pre", keep(when, layer)) for layer in range(LAYERS)]

    place = HuggingFaceModel.of(hf)
    with place.edited(edits("before")), causal.intervened(hf, intervention), place.edited(edits("after")):
        hf(torch.tensor([prompt]))
    return [torch.stack([seen[when][layer] for layer in range(LAYERS)]) for when in ("before", "after")]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# Classes of tokens


def test_classes_of_tokens_by_hand():
    assert len(CLASSES) == 6
    index = torch.arange(10)[None]
    found = CLASSES.of(index, 8 - index)  # a prompt of eight and two tokens after it
    assert found.tolist() == [[HEAD, HEAD, INSTRUCTION, INSTRUCTION, INSTRUCTION, 3, 4, 5, ANSWER, ANSWER]]
    assert [CLASSES.at(position) for position in (-3, -2, -1)] == [3, 4, 5]
    without = TokenClasses(0, 0).of(index, 8 - index)
    assert without.tolist() == [[INSTRUCTION] * 8 + [ANSWER] * 2]
    # A prompt so short that head and end are all there is, and one whose end overlaps nothing.
    assert CLASSES.of(torch.arange(5)[None], 5 - torch.arange(5)[None]).tolist() == [[HEAD, HEAD, 3, 4, 5]]


# What is left


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_block_input_has_the_projection_of_its_class(family, name, k):
    hf, prompt, rows = family(name).hf, PROMPTS[1], ROWS[:k]
    q = basis(rows)
    _, without = stream(hf, None, prompt)
    before, after = stream(hf, Ablation(rows if k > 1 else rows[0], reference=REFERENCE), prompt)
    of = kinds(len(prompt), 0)
    assert set(of) == {HEAD, INSTRUCTION, 3, 4, 5}
    for layer in range(LAYERS):
        if layer < FIRST:
            assert torch.equal(after[layer], without[layer])
            continue
        wanted = MEANS[layer][of] @ q
        torch.testing.assert_close((after[layer] @ q)[BEFORE:], wanted[BEFORE:], atol=2e-5, rtol=1e-5)
        # The rest of the stream is left alone, and the head altogether.
        beside = torch.eye(WIDTH) - q @ q.T
        torch.testing.assert_close(after[layer] @ beside, before[layer] @ beside, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(after[layer][:BEFORE], without[layer][:BEFORE], atol=1e-6, rtol=0)
        assert ((without[layer] @ q)[BEFORE:] - wanted[BEFORE:]).abs().max() > 0.1, "they were there already"


def test_generated_tokens_have_their_own_mean(family):
    hf, q = family("llama").hf, basis(ROWS)
    prompt, run, seen = PROMPTS[0], RUNS["one"][0], {}
    keep = [(2, "resid_pre", lambda x: seen.update(x=x[0].clone()) or x)]
    held = causal.intervened(hf, Ablation(ROWS, reference=REFERENCE), after_prompt=[len(run)])
    with held, HuggingFaceModel.of(hf).edited(keep):
        hf(torch.tensor([[*prompt, *run]]))
    wanted = MEANS[2][ANSWER] @ q
    torch.testing.assert_close(seen["x"][-3:] @ q, wanted.expand(3, -1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dose", [1.0, 0.5])
def test_twice_is_once_at_dose_one_alone(family, dose):
    hf, intervention = family("llama").hf, Ablation(ROWS, dose, reference=REFERENCE)
    once, twice = plain(hf, intervention, PROMPTS[1]), plain(hf, [intervention, intervention], PROMPTS[1])
    assert ((once - twice).abs().max() < TOLERANCE) == (dose == 1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dose", [0.5, 0.0, -1.0, 1 - 1e-7])
def test_a_dose_takes_its_part_of_every_deviation_once(family, name, dose):
    """1 − dose of the deviation of all that was written from where the reference is: a write is not halved twice."""
    hf, q, prompt = family(name).hf, basis(ROWS), PROMPTS[1]
    before, after = stream(hf, Ablation(ROWS, dose, reference=REFERENCE), prompt)
    of = kinds(len(prompt), 0)
    written = before[FIRST] @ q
    for layer in range(FIRST, LAYERS):
        if layer > FIRST:
            written = written + (before[layer] - after[layer - 1]) @ q
        wanted = (1 - dose) * written + dose * MEANS[layer][of] @ q
        bound = 5e-5 * max(1.0, float(written.abs().max()))
        torch.testing.assert_close((after[layer] @ q)[BEFORE:], wanted[BEFORE:], atol=bound, rtol=0)
        torch.testing.assert_close(after[layer][:BEFORE], before[layer][:BEFORE], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dose_zero_is_nothing_and_dose_one_all(family, name):
    hf, prompt = family(name).hf, PROMPTS[1]

    def at(dose):
        return plain(hf, Ablation(ROWS, dose, reference=REFERENCE), prompt)

    nothing, everything = plain(hf, None, prompt), plain(hf, Ablation(ROWS, reference=REFERENCE), prompt)
    assert (nothing - everything).abs().max() > 0.05, "the ablation does nothing here"
    torch.testing.assert_close(at(0.0), nothing, atol=1e-5, rtol=0)
    assert torch.equal(at(1.0), everything)
    torch.testing.assert_close(at(1 - 1e-7), everything, atol=TOLERANCE, rtol=0)
    assert (at(0.5) - everything).abs().max() > 1e-3


def test_an_intervention_remembers_nothing_from_pass_to_pass(family):
    """What a dose keeps of one pass must not reach the next one, of another length or not."""
    hf, intervention = family("llama").hf, Ablation(ROWS, 0.5, reference=REFERENCE)
    expected = [plain(hf, intervention, prompt) for prompt in PROMPTS]
    with causal.intervened(hf, intervention):
        found = [hf(torch.tensor([prompt])).logits[0, -1:].log_softmax(-1) for prompt in PROMPTS]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


# The same on every kind of model


def check_everywhere(made, prompts, runs, *, tolerance=TOLERANCE):
    intervention = Ablation(ROWS, reference=REFERENCE)
    through = Passes(made.hooked, prompts, runs).logits(intervention)
    for run, logits in zip(runs, through, strict=True):
        for prompt, found in zip(prompts, logits, strict=True):
            expected = by_hand(made.hf, prompt, run)
            for where in (
                found.log_softmax(-1), plain(made.hf, intervention, prompt, run),
                plain(made.hooked, intervention, prompt, run),
            ):  # fmt: skip
                assert where.shape == expected.shape
                torch.testing.assert_close(where, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("runs", RUNS)
def test_log_probabilities_are_those_by_hand(family, name, runs):
    check_everywhere(family(name), PROMPTS, RUNS[runs])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_of_every_architecture_are_those_by_hand(family, name):
    check_everywhere(family(name), PROMPTS[:3], RUNS["several"])


@pytest.mark.parametrize("prompts", [PROMPTS[3:4], PROMPTS[:1] * 2, PROMPTS[2:4]], ids=["one", "identical", "alone"])
def test_few_prompts(family, prompts):
    check_everywhere(family("llama"), prompts, RUNS["one"])


@pytest.mark.parametrize("dose", [1.0, 0.5])
@pytest.mark.parametrize("how", ["tree", "hooks", "caller's hook", "groups"])
def test_passes_are_plain_passes_however_they_run(family, monkeypatch, how, dose):
    made, intervention = family("llama"), Ablation(ROWS, dose, reference=REFERENCE)
    if how == "hooks":
        through_hooks(monkeypatch)
    if how == "groups":
        monkeypatch.setitem(runner.TOKENS_AT_ONCE, "cpu", 40)
    ready = Passes(made.hooked, PROMPTS, RUNS["several"])
    seen = []
    if how == "caller's hook":
        made.hooked.add_hook("blocks.0.hook_resid_pre", lambda value, hook: seen.append(1))
    try:
        found = ready.logits(intervention)
    finally:
        made.hooked.reset_hooks()
    assert bool(seen) == (how == "caller's hook")
    assert len(ready._batches) > 1 or how != "groups"
    for run, logits in zip(RUNS["several"], found, strict=True):
        for prompt, each in zip(PROMPTS, logits, strict=True):
            expected = plain(made.hf, intervention, prompt, run)
            torch.testing.assert_close(each.log_softmax(-1), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("trees", [True, False])
def test_losses_of_answers(family, monkeypatch, trees):
    made, intervention = family("llama"), Ablation(ROWS, reference=REFERENCE)
    if not trees:
        through_hooks(monkeypatch)
    answers = [ids(20 + i, 1 + i) for i in range(len(PROMPTS))]
    found = AnswerPasses(made.hooked, PROMPTS, answers).losses(intervention)
    for prompt, answer, loss in zip(PROMPTS, answers, found.tolist(), strict=True):
        steps = by_hand(made.hf, prompt, answer[:-1])
        expected = -sum(float(step[token]) for step, token in zip(steps, answer, strict=True)) / len(answer)
        assert loss == pytest.approx(expected, abs=TOLERANCE)


def test_beside_other_interventions(family):
    """In the order of the list, above and below each other."""
    made, prompt = family("llama"), PROMPTS[1]
    held, added = Ablation(ROWS, reference=REFERENCE), Addition(random(WIDTH, seed=7), 2, 3.0)
    found = [plain(made.hf, each, prompt) for each in ([held, added], [added, held])]
    for one, each in zip(found, ([held, added], [added, held]), strict=True):
        torch.testing.assert_close(plain(made.hooked, each, prompt), one, atol=TOLERANCE, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3


# Generation


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gemma3"))])
def test_generation(family, name):
    """A batch padded on the left = one prompt at a time = transformers' generate with a cache = no cache at all."""
    made, new = family(name), 5
    texts = ["How do I pick a lock", "Tell me a story about a cat", "Tell me a story about a cat"]
    template = [[{"role": "user", "content": text}] for text in texts]
    given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True, "padding": True}
    rows = made.tokenizer.apply_chat_template(template, **given)
    assert (rows["attention_mask"] == 0).any()
    intervention = Ablation(ROWS, reference=REFERENCE)
    expected, steps = [], []
    for ids_, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
        prompt, answer = tuple(ids_[mask.bool()].tolist()), []
        for _ in range(new):
            answer.append(int(by_hand(made.hf, prompt, tuple(answer))[-1].argmax()))
        expected.append(tuple(answer))
        steps.append(by_hand(made.hf, prompt, tuple(answer[:-1])))
    greedy = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with causal.intervened(made.hf, intervention):
        given = made.hf.generate(**rows, **greedy, output_logits=True, return_dict_in_generate=True)
        together = evaluation.complete(made.hf, texts, tokenizer=made.tokenizer, max_new_tokens=new).token_ids
        alone = [
            evaluation.complete(made.hf, [text], tokenizer=made.tokenizer, max_new_tokens=new).token_ids[0]
            for text in texts
        ]
    with causal.intervened(made.hooked, intervention):
        hooked = evaluation.complete(made.hooked, texts, max_new_tokens=new).token_ids
    out = given.sequences
    # Answers alone would hardly show that pads were taken for the beginning of a prompt.
    found = torch.stack(given.logits, 1).float().log_softmax(-1)
    torch.testing.assert_close(found, torch.stack(steps), atol=TOLERANCE, rtol=0)
    assert [tuple(row.tolist()) for row in out[:, rows["input_ids"].shape[1] :]] == expected
    assert list(together) == alone == list(hooked)
    for found, wanted in zip(together, expected, strict=True):
        assert found == wanted[: len(found)]
        assert len(found) == new or wanted[len(found)] == made.tokenizer.eos_token_id
    free = made.hf.generate(**rows, **greedy)
    assert not torch.equal(free, out), "the intervention changes no answer here"


# Zero, and errors


def test_without_a_reference_it_is_the_published_ablation(family):
    """x − QQᵀx at every site, also where the reference would hold: None is no reference of zeros."""
    hf, q, prompt = family("llama").hf, basis(ROWS), PROMPTS[1]

    def out(x):
        return x - x @ q @ q.T

    sites = [(layer, site, out) for layer in range(LAYERS) for site in ("resid_pre", "attn_out", "mlp_out")]
    with HuggingFaceModel.of(hf).edited(sites):
        expected = hf(torch.tensor([prompt])).logits[0, -1:].log_softmax(-1)
    torch.testing.assert_close(plain(hf, Ablation(ROWS), prompt), expected, atol=1e-5, rtol=0)
    assert torch.equal(plain(hf, Ablation(ROWS, reference=None), prompt), plain(hf, Ablation(ROWS), prompt))
    zeros = replace(REFERENCE, means=torch.zeros_like(MEANS))
    assert (plain(hf, Ablation(ROWS, reference=zeros), prompt) - expected).abs().max() > 1e-3


def test_first_layer():
    assert Ablation(ROWS, reference=REFERENCE).first_layer == FIRST
    assert Ablation(ROWS).first_layer == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"means": MEANS[:3]}, "means of 3 layers of width 64; this model has 4 of 64: take it from this model"),
        ({"means": MEANS[..., :63]}, "means of 4 layers of width 63; this model has 4 of 64"),
        ({"first_layer": 4}, "layer 4 .*0 to 3"),
        ({"means": torch.full_like(MEANS, torch.nan)}, "'harmless mean' is not finite"),
    ],
)
def test_references_that_are_none_are_named(family, changed, said):
    hooked, intervention = family("llama").hooked, Ablation(ROWS, reference=replace(REFERENCE, **changed))
    for model in (hooked, family("llama").hf):
        with pytest.raises(MechrefusalError, match=said), causal.intervened(model, intervention):
            pass
    with pytest.raises(MechrefusalError, match=said):
        Passes(hooked, PROMPTS[:1]).logits(intervention)


def test_means_that_are_not_used_may_be_anything(family):
    """Those of classes that are not held, and of layers below the first one."""
    means = MEANS.clone()
    means[:FIRST], means[:, HEAD] = torch.nan, torch.nan
    found = plain(family("llama").hf, Ablation(ROWS, reference=replace(REFERENCE, means=means)), PROMPTS[1])
    expected = plain(family("llama").hf, Ablation(ROWS, reference=REFERENCE), PROMPTS[1])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_names():
    require_reference("harmless")
    require_reference("zero")
    with pytest.raises(MechrefusalError, match="unknown reference 'harmful': give one of harmless, zero"):
        require_reference("harmful")
