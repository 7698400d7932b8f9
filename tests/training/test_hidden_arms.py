"""Arms whose terms read or change activations: their losses against ones computed with plain hooks, row by row."""

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from killed import SETTINGS, half_resembling, inputs
from tolerances import FORWARD, REORDERED
from torch.nn import functional
from transformers import AutoModelForCausalLM

from mechrefusal import MechrefusalError, causal, prompts, training
from mechrefusal.forward.token_classes import TokenClasses
from mechrefusal.forward.tree_forward import TreeForward
from mechrefusal.models import load_causal_lm
from mechrefusal.training.arms.circuit_breakers import CircuitBreakersSettings
from mechrefusal.training.arms.lat import LATSettings
from mechrefusal.training.arms.refat import ReFATSettings
from mechrefusal.training.guide_settings import GuideSettings
from mechrefusal.training.latent_attack import DELTAS, LatentAttack
from mechrefusal.training.losses import IGNORED, Hidden, Reads, Term, cross_entropy
from mechrefusal.training.rerouting import kept, rerouted
from mechrefusal.training.under import Under

pytestmark = pytest.mark.slow

ONE_STEP = replace(
    SETTINGS, steps=1, anchors=(0, 1), gradient_accumulation=1, learning_rate=1.0, lr_scheduler="constant",
    max_grad_norm=0.0,
)  # fmt: skip
HIDDEN = {
    "refat": ReFATSettings(cases_per_step=3, probability=0.5, every=2, n_prompts=3),
    "circuit_breakers": CircuitBreakersSettings(cases_per_step=3, utility_weight=0.3),
    "lat": LATSettings(cases_per_step=2, inner_steps=3, epsilon=0.5),
}


def rows(tokenizer, given, n: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The first utility rows, as they are drawn: (prompt, answer)."""
    made = [
        training.data.conversation(tokenizer, row["prompt"], row["answer"], max_length=256, name="row")
        for row in given["utility"]
    ]
    drawn = list(training.data.schedule(made, n, seed=ONE_STEP.seed, name="utility"))
    split = []
    for row in drawn:
        border = sum(label == IGNORED for label in row["labels"])
        split.append((tuple(row["input_ids"][:border]), tuple(row["input_ids"][border:])))
    return split


def cases(given, n: int):
    """The first cases, as they are drawn."""
    behaviours = given["behaviours"]
    pairs = zip(behaviours.texts, behaviours.table["target"], strict=True)
    made = [SimpleNamespace(behaviour=text, target=target, suffix="") for text, target in pairs]
    return list(training.data.schedule(made, n, seed=ONE_STEP.seed, name="cases"))


def pair(tokenizer, behaviour: str, answer: str, *, end_of_turn: bool):
    parts = prompts.segments(tokenizer, behaviour, target=answer, end_of_turn=end_of_turn)
    return parts.prompt_ids, parts.target


def token_losses(model, prompt, answer):
    """Cross-entropy of each answer token, of one row by itself."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1]
    return functional.cross_entropy(logits, torch.tensor(answer), reduction="none")


def adding(delta, *, at):
    """A hook that adds `delta` to some tokens of the only row."""

    def hook(_, args):
        x = args[0].clone()
        x[0, at] += delta
        return (x, *args[1:])

    return hook


def terms_of(folder) -> dict[str, float]:
    table = training.read_log(folder, "terms")
    return table[table["step"] == 1].set_index("term")["value"].to_dict()


def test_refat_is_cross_entropy_with_each_layers_direction_taken_out(tiny, tmp_path):
    given = inputs(tiny)
    own = replace(HIDDEN["refat"], probability=1.0)
    log = training.train("refat", **given, out=tmp_path, settings=ONE_STEP, arm_settings=own)
    model, tokenizer = load_causal_lm(given["base"])

    def last(texts):
        ids = [prompts.segments(tokenizer, text).prompt_ids for text in texts]
        states = [model(torch.tensor([each]), output_hidden_states=True).hidden_states for each in ids]
        return [torch.stack([state[layer][0, -1] for state in states]) for layer in range(4)]

    # Three prompts a side are drawn by a stream of their own.
    harmless = list(dict.fromkeys(row["prompt"] for row in given["utility"]))
    order = [
        torch.randperm(n, generator=training.data.random_stream(0, f"means {side} 0"))[:3].tolist()
        for side, n in (("harmful", 5), ("harmless", len(harmless)))
    ]
    with torch.no_grad():
        harmful_means = last([given["behaviours"].texts[i] for i in order[0]])
        harmless_means = last([harmless[i] for i in order[1]])
    directions = [a.double().mean(0) - b.double().mean(0) for a, b in zip(harmful_means, harmless_means, strict=True)]

    def without(layer: int):
        unit = (directions[layer] / directions[layer].norm()).float()
        return lambda _, args: (args[0] - (args[0] @ unit)[..., None] * unit, *args[1:])

    drawn = cases(given, 3)
    losses = []
    with ExitStack() as stack:
        for layer in (1, 2, 3):  # the last three quarters of four
            stack.callback(model.model.layers[layer].register_forward_pre_hook(without(layer)).remove)
        for case in drawn:
            losses.append(token_losses(model, *pair(tokenizer, case.behaviour, ONE_STEP.refusal, end_of_turn=True)))
    refuse = torch.cat(losses).mean()
    utility = torch.cat([token_losses(model, *row) for row in rows(tokenizer, given, 4)]).mean()
    assert terms_of(tmp_path) == pytest.approx({"refuse": float(refuse), "utility": float(utility)}, rel=FORWARD)
    assert log["loss"][0] == pytest.approx(float(refuse + utility), rel=FORWARD)
    (refuse + utility).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert log["grad_norm"][0] == pytest.approx(float(norm), rel=1e-3)


def test_with_probability_0_refat_refuses_plainly(tiny, tmp_path):
    given = inputs(tiny)
    values = {}
    for probability in (0.0, 0.5, 1.0):
        own = replace(HIDDEN["refat"], probability=probability, cases_per_step=5)
        training.train("refat", **given, out=tmp_path / str(probability), settings=ONE_STEP, arm_settings=own)
        values[probability] = terms_of(tmp_path / str(probability))["refuse"]
    model, tokenizer = load_causal_lm(given["base"])
    pairs = [pair(tokenizer, text, ONE_STEP.refusal, end_of_turn=True) for text in given["behaviours"].texts]
    plain = torch.cat([token_losses(model, *each) for each in pairs]).mean()
    assert values[0.0] == pytest.approx(float(plain), rel=FORWARD)
    low, high = sorted((values[0.0], values[1.0]))
    assert low < values[0.5] < high, "some rows are run without the direction, and some with it"


def test_circuit_breakers_are_the_published_losses(tiny, tmp_path):
    given = inputs(tiny)
    settings = replace(ONE_STEP, steps=4, anchors=(0, 2, 4), learning_rate=2e-3)
    log = training.train(
        "circuit_breakers", **given, out=tmp_path, settings=settings, arm_settings=HIDDEN["circuit_breakers"]
    )
    base, tokenizer = load_causal_lm(given["base"])
    now = AutoModelForCausalLM.from_pretrained(tmp_path / "step-00002")

    def states(model, ids):
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states

    layers, step = (1, 2), 2  # 10 and 20 of 32, of four layers; the third step is that of the anchor's weights
    table = given["behaviours"].table
    made = [
        SimpleNamespace(behaviour=b, target=t) for b, t in zip(given["behaviours"].texts, table["target"], strict=True)
    ]
    drawn = list(training.data.schedule(made, 12, seed=0, name="cases"))[3 * step : 3 * step + 3]
    cosines, norms = [], []
    for case in drawn:
        prompt, answer = pair(tokenizer, case.behaviour, case.target, end_of_turn=False)
        a, b = (states(model, (*prompt, *answer)) for model in (now, base))
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        pairs = [(a[layer][0, places], b[layer][0, places]) for layer in layers]
        cosines.append(torch.stack([functional.cosine_similarity(*each, dim=-1).relu() for each in pairs]).mean(0))
    utility = rows(tokenizer, given, 16)[4 * step : 4 * step + 4]
    refusals = [pair(tokenizer, text, settings.refusal, end_of_turn=True) for text in given["behaviours"].texts]
    refusals = list(training.data.schedule(refusals, 8, seed=0, name="harmful"))[2 * step : 2 * step + 2]
    for prompt, answer in [*utility, *refusals]:
        ids = (*prompt, *answer[:-1])  # what follows the last label's place is not run
        a, b = (states(model, ids) for model in (now, base))
        norms.append(torch.stack([(a[layer][0] - b[layer][0]).norm(dim=-1) for layer in layers]).mean(0))
    answers = [token_losses(now, *row) for row in [*utility, *refusals]]
    rerouting, retain, plain = torch.cat(cosines).mean(), torch.cat(norms).mean(), torch.cat(answers).mean()
    terms = training.read_log(tmp_path, "terms")
    logged = terms[terms["step"] == step + 1].set_index("term")["value"].to_dict()
    assert logged["rerouting"] == pytest.approx(float(rerouting), rel=FORWARD)
    assert logged["retain"] == pytest.approx(float(retain), rel=1e-3)
    t = step / 4
    loss = 10 * (1 - t / 2) * rerouting + 10 * t / 2 * retain + 0.3 * plain
    assert log["loss"][step] == pytest.approx(float(loss), rel=1e-3)


def test_losses_of_rerouting_on_small_tensors():
    h = {0: torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 1: torch.tensor([[1.0, 1.0], [3.0, 4.0]])}
    h0 = {0: torch.tensor([[2.0, 0.0], [1.0, 0.0]]), 1: torch.tensor([[-1.0, -1.0], [0.0, 0.0]])}
    assert rerouted(Hidden(h, h0)).tolist() == pytest.approx([0.5, 0.0])
    assert kept(Hidden(h, h0)).tolist() == pytest.approx([(1 + 8**0.5) / 2, (5**0.5 + 5) / 2])
    same = {0: torch.zeros(3, 2, requires_grad=True)}
    kept(Hidden(same, {0: torch.zeros(3, 2)})).sum().backward()
    assert same[0].grad.tolist() == [[0.0, 0.0]] * 3, "the norm has a gradient of NaN where nothing has changed"


def test_latent_attacks_are_short_and_make_the_target_likelier(tiny_hf, tiny):
    model, tokenizer = tiny_hf
    given = inputs(tiny)
    drawn = cases(given, 3)
    attack = LatentAttack.of((0, 2), epsilon=0.7, steps=8, learning_rate=0.1, refusal="No, I cannot.")
    deltas = attack.found(model, tokenizer, drawn)
    assert deltas.shape[:2] == (3, 2)
    assert deltas.norm(dim=-1).max() == pytest.approx(0.7, rel=1e-5)
    assert not model.training
    assert all(weight.requires_grad for weight in model.parameters())
    for number, case in enumerate(drawn):
        prompt, answer = pair(tokenizer, case.behaviour, case.target, end_of_turn=False)
        before = token_losses(model, prompt, answer).mean()

        with ExitStack() as stack:
            for i, layer in enumerate((0, 2)):
                hook = adding(deltas[number, i, : len(prompt)], at=slice(0, len(prompt)))
                stack.callback(model.model.layers[layer].register_forward_pre_hook(hook).remove)
            after = token_losses(model, prompt, answer).mean()
        assert after < before
        branch = training.rows.Branch.continuing(prompt, answer)
        output = attack.run(
            TreeForward(model),
            [branch, branch],
            {DELTAS: deltas},
            reads=(),
            n_prompt=[len(prompt)] * 2,
            cases=[number, 0],
        )
        own = functional.cross_entropy(output.logits[: len(answer)], torch.tensor(answer))
        assert float(own) == pytest.approx(float(after), rel=FORWARD)


@pytest.mark.parametrize(
    ("arm", "guide"),
    [
        *((arm, None) for arm in HIDDEN),
        ("sft", GuideSettings(hold_weight=0.5, shift_weight=0.3, apart_weight=0.2, redundant_weight=0.4)),
    ],
    ids=[*HIDDEN, "guided sft"],
)
def test_trees_and_rows_in_full_give_the_same(tiny, tmp_path, arm, guide, monkeypatch):
    given, settings = half_resembling(tiny), replace(SETTINGS, steps=2, anchors=(0, 2), learning_rate=1e-4)
    logs = []
    for name in ("tree", "rows"):
        if name == "rows":
            monkeypatch.setattr("mechrefusal.forward.tree_forward.shares", lambda model: False)
            monkeypatch.setattr("mechrefusal.training.trainer.shares", lambda model: False)
            monkeypatch.setattr("mechrefusal.forward.tree_forward.why_not_shared", lambda model: "of a test")
        log = training.train(
            arm,
            **given,
            out=tmp_path / name,
            settings=settings,
            arm_settings=HIDDEN.get(arm),
            guide=guide,
        )
        logs.append((log, training.read_log(tmp_path / name, "terms")))
    (a, of_a), (b, of_b) = logs
    assert of_a[["step", "term"]].equals(of_b[["step", "term"]])
    first = (a["step"] == 1).to_numpy(), (of_a["step"] == 1).to_numpy()
    # The first step is of the same weights; the second one is of weights that rounding has led apart.
    for chosen, tolerance in ((first, REORDERED), ([~each for each in first], FORWARD)):
        assert chosen[0].any()
        assert a["loss"][chosen[0]].tolist() == pytest.approx(b["loss"][chosen[0]].tolist(), rel=tolerance)
        values, others = (each["value"][chosen[1]].tolist() for each in (of_a, of_b))
        assert values == pytest.approx(others, rel=tolerance, abs=1e-5)
    assert a["grad_norm"].tolist() == pytest.approx(b["grad_norm"].tolist(), rel=1e-3)


@pytest.mark.parametrize("arm", HIDDEN)
def test_micro_batches_and_adapters(tiny, tmp_path, arm):
    """Two micro-batches are one batch; adapters train, and the frozen model is the one without them."""
    given, settings = inputs(tiny), replace(ONE_STEP, learning_rate=1e-5)
    own = replace(HIDDEN[arm], cases_per_step=2)
    own = replace(own, probability=1.0) if arm == "refat" else own
    values = []
    for parts in (1, 2):
        out = tmp_path / str(parts)
        training.train(arm, **given, out=out, settings=replace(settings, gradient_accumulation=parts), arm_settings=own)
        values.append(terms_of(out))
    assert values[0] == pytest.approx(values[1], rel=FORWARD, abs=1e-5)
    lora = replace(settings, lora=training.LoraSettings(rank=2), steps=2, anchors=(0, 2), learning_rate=1e-2)
    log = training.train(arm, **given, out=tmp_path / "lora", settings=lora, arm_settings=own)
    assert log["loss"].notna().all()
    first = terms_of(tmp_path / "lora")
    assert first == pytest.approx(values[0], rel=FORWARD, abs=1e-5), "adapters begin as nothing"


def arm_under(intervention):
    """An arm that learns to say no to three cases a step under an intervention."""
    term = Term(
        "pushed",
        cross_entropy,
        row=lambda words, case: pair(words, case.behaviour, "No.", end_of_turn=False),
        under=Under("of a test", lambda state: intervention),
    )
    return training.Arm("mine", lambda setup: setup.trainer([term], cases_per_step=3))


def test_a_reference_is_each_tokens_own(tiny, tmp_path):
    """An ablation to a mean tells tokens apart: rows are run in full, and every row knows where its prompt ends."""
    given = inputs(tiny)
    model, tokenizer = load_causal_lm(given["base"])
    generator = torch.Generator().manual_seed(0)
    direction, means = torch.randn(64, generator=generator), torch.randn(4, 8, 64, generator=generator)
    parts = prompts.segments(tokenizer, "Hello")
    n_before, n_after = len(parts.before), len(parts.after)
    held = (False, True, True, *[True] * n_after)
    reference = causal.Reference("of a test", means[:, : len(held)], TokenClasses(n_before, n_after), held, 1)
    training.train(arm_under(causal.Ablation(direction, reference=reference)), **given, out=tmp_path, settings=ONE_STEP)
    unit = direction / direction.norm()
    losses = []
    for case in cases(given, 3):
        prompt, answer = pair(tokenizer, case.behaviour, "No.", end_of_turn=False)
        n = len(prompt)
        kinds = [0] * n_before + [1] * (n - n_before - n_after) + [3 + i for i in range(n_after)] + [2] * len(answer)

        def without(layer: int, kinds=kinds):
            targets = torch.stack([means[layer, kind] @ unit for kind in kinds])
            acts = torch.tensor([float(kind > 0) for kind in kinds])

            def hook(_, args):
                change = acts * (targets - args[0][0] @ unit)
                return (args[0] + change[None, :, None] * unit, *args[1:])

            return hook

        with ExitStack() as stack:
            for layer in (1, 2, 3):
                stack.callback(model.model.layers[layer].register_forward_pre_hook(without(layer)).remove)
            losses.append(token_losses(model, prompt, answer))
    assert terms_of(tmp_path)["pushed"] == pytest.approx(float(torch.cat(losses).mean()), rel=FORWARD)


def test_positions_of_an_intervention_are_refused(tiny, tmp_path):
    arm = arm_under(causal.Addition(torch.ones(64), 1, positions=(-1,)))
    with pytest.raises(MechrefusalError, match="'of a test' acts at some positions of a prompt"):
        training.train(arm, **inputs(tiny), out=tmp_path, settings=ONE_STEP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": Reads((0, 9))}, "loss term 'mine' reads resid_post of layer 9: the model has layers 0 to 3"),
        ({"reads": Reads((0,), "z")}, "reads z of layer 0"),
        ({"reads": Reads((0,)), "loss": lambda hidden: hidden.trained[0][:, 0][:1]}, r"gave \(1,\) for \d+ tokens"),
    ],
)
def test_what_a_term_cannot_read_is_named(tiny, tmp_path, changes, message):
    term = replace(Term("mine", cross_entropy), **changes)
    with pytest.raises(MechrefusalError, match=message):
        training.train("sft", **inputs(tiny), out=tmp_path, settings=ONE_STEP, losses={"mine": term})


def test_gradient_checkpointing_is_refused(tiny, tmp_path):
    settings = replace(ONE_STEP, gradient_checkpointing=True)
    with pytest.raises(MechrefusalError, match="gradient_checkpointing would compute again"):
        training.train("refat", **inputs(tiny), out=tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (ReFATSettings, {"probability": 1.5}, "refat probability is 1.5: give a number from 0 to 1"),
        (ReFATSettings, {"every": 0}, "refat every is 0"),
        (CircuitBreakersSettings, {"depths": ()}, "depths are empty"),
        (CircuitBreakersSettings, {"depths": (0.2, 1.2)}, "depths is 1.2"),
        (LATSettings, {"inner_steps": 0}, "lat inner_steps is 0"),
    ],
)
def test_bad_settings_are_named(kind, changes, message):
    with pytest.raises(MechrefusalError, match=message):
        kind(**changes)
