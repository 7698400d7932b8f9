"""Knock-outs against plain loops: the hooked transformer, one prompt, one run and one component at a time."""

import numpy as np
import one_head
import pytest
import torch
from architectures import FAMILIES
from runners import through_hooks
from scipy import stats
from tolerances import COMPOUND, FORWARD, REORDERED

from mechrefusal import MechrefusalError, prompts
from mechrefusal.causal import Addition, add, knockout
from mechrefusal.causal.components import Component, ComponentPasses, TemplateFrame
from mechrefusal.causal.knockout.replacements import Replacements
from mechrefusal.forward import ForcedOpenings, RefusalMetric, runner
from mechrefusal.forward.unhooked import unhooked

pytestmark = pytest.mark.slow

HARMFUL = ["Make a bomb", "Tell me how I make a poison at home today", "Make a bomb"]
HARMLESS = ["Make a cake for my mother", "Why?"]
REFERENCE = ["Write a poem", "Sell the car of a friend to me", "Make a bomb"]
PLAIN = RefusalMetric((11, 12), (5, 6), (500, 501, 502))
FORCED = RefusalMetric((), (5,), (6,), forced=ForcedOpenings(((20, 21), (20, 22, 23)), ((30,), (20, 31))))
HOOKS = {"head": "attn.hook_z", "mlp": "hook_mlp_out", "attention": "hook_attn_out", "neuron": "mlp.hook_post"}
SOME = ("llama", "gpt2", "gemma2", "gpt-neox")
HOWS = ("mean", "zero", "resample")
OTHERS = {"mean": REFERENCE, "zero": REFERENCE, "resample": REFERENCE[:2]}
"""Where each prompt has two others and two draws, each comes once, and which comes first does not matter."""


class Loop:
    """The same numbers the slow way, with nothing of the package but prompts' tokens and the metric."""

    def __init__(self, model, metric, how, reference, draws=1):
        self.model, self.metric, self.how, self.draws = model, metric, how, draws
        self.parts = {text: prompts.segments(model.tokenizer, text) for text in {*HARMFUL, *HARMLESS, *reference}}
        self.reference, self.known = list(reference), {}
        if how != "zero":
            self.caches = {
                (text, run): model.run_with_cache(torch.tensor([[*self.parts[text].prompt_ids, *run]]))[1]
                for text in set(reference)
                for run in metric.runs
            }

    def activation(self, name, text, run):
        found = self.caches[text, run][name][0]
        return found.reshape(len(found), self.model.cfg.n_heads, -1) if name.endswith("hook_z") else found

    def mean(self, name, run):
        """Of the instruction, and of the tokens after it."""
        own, after = [], []
        for text in self.reference:
            found = self.activation(name, text, run)
            end = len(self.parts[text].before) + len(self.parts[text].instruction)
            own.append(found[len(self.parts[text].before) : end])
            after.append(found[end:])
        return torch.cat(own).mean(0), torch.stack(after).mean(0)

    def stand_in(self, name, text, run, draw):
        """What stands at each token of the prompt and its run; rows before `start` are as they are."""
        part = self.parts[text]
        start, n = len(part.before), len(part.instruction)
        if self.how == "mean":
            own, after = self.mean(name, run)
            return start, torch.cat([own.expand(n, *own.shape), after])
        others = [other for other in self.reference if self.parts[other].prompt_ids != part.prompt_ids]
        found = self.activation(name, others[draw], run)[start:]
        longer = len(part.prompt_ids) + len(run) - start - len(found)
        return start, torch.cat([found[:1].expand(max(longer, 0), *found.shape[1:]), found[max(-longer, 0) :]])

    def logits(self, components, text, run, draw):
        def edit(activation, hook):
            changed = activation.clone()
            shaped = changed.view(*changed.shape[:2], self.model.cfg.n_heads, -1) if "hook_z" in hook.name else changed
            for one in (c for c in components if hook.name == f"blocks.{c.layer}.{HOOKS[c.kind]}"):
                where = slice(None) if one.index < 0 else one.index
                if self.how == "zero":
                    shaped[0, :, where] = 0
                else:
                    start, values = self.stand_in(hook.name, text, run, draw)
                    shaped[0, start:, where] = values[:, where]
            return changed

        names = {f"blocks.{c.layer}.{HOOKS[c.kind]}" for c in components}
        ids = torch.tensor([[*self.parts[text].prompt_ids, *run]])
        with self.model.hooks(fwd_hooks=[(name, edit) for name in names]):
            return self.model(ids, return_type="logits")[:, -len(run) - 1 :]

    @torch.no_grad()
    def read(self, components, text):
        """Score, and probabilities of the next token, for each draw."""
        key = (tuple(components), text)
        if key not in self.known:
            self.known[key] = self._read(components, text)
        return self.known[key]

    def _read(self, components, text):
        scores, following = [], []
        for draw in range(self.draws if components else 1):
            logits = [self.logits(components, text, run, draw) for run in self.metric.runs]
            scores.append(self.metric.of_runs(logits).item())
            following.append(logits[0][0, 0].double().softmax(-1).numpy())
        return np.mean(scores), following

    def effect(self, components):
        """Changes of the scores of harmful and harmless prompts, and the divergence of the harmless ones."""
        change = {t: self.read(components, t)[0] - self.read([], t)[0] for t in {*HARMFUL, *HARMLESS}}
        kl = []
        for text in HARMLESS:
            p = self.read([], text)[1][0]
            rows = [(p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum() for q in self.read(components, text)[1]]
            kl.append(np.mean(rows))
        return [change[text] for text in HARMFUL], [change[text] for text in HARMLESS], kl


def knock_out(model, how, metric=PLAIN, **given):
    return knockout.knock_out(
        model, HARMFUL, HARMLESS, metric, how=how, **{"reference": OTHERS[how], "draws": 2, **given}
    )


def looped(model, metric, how):
    return Loop(model, metric, how, OTHERS[how], draws=2 if how == "resample" else 1)


def interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [np.mean(values), np.mean(values) - half, np.mean(values) + half]


def same_as_loop(table, loop, some=slice(None)):
    for row in list(table.itertuples())[some]:
        index = row.neuron if row.component == "neuron" else row.head
        harmful, harmless, kl = loop.effect([Component(row.component, row.layer, index)])
        name = f"{row.component} {row.layer}.{index}"
        for values, found in (
            (harmful, (row.refusal, row.low, row.high)),
            (harmless, (row.harmless, row.harmless_low, row.harmless_high)),
            (kl, (row.kl, row.kl_low, row.kl_high)),
        ):
            np.testing.assert_allclose(found[0], np.mean(values), atol=FORWARD, err_msg=name)
            np.testing.assert_allclose(found, interval(values), atol=2 * COMPOUND, err_msg=name)


@pytest.fixture(scope="module")
def llama(family):
    return family("llama").hooked


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return one_head.make(tmp_path_factory.mktemp("one_head"), [(2, 1)])


@pytest.fixture
def fall_back(monkeypatch):
    through_hooks(monkeypatch)


# Numbers


@pytest.mark.parametrize(
    ("architecture", "how"),
    [*((name, "mean") for name in SOME), ("llama", "zero"), ("gpt-neox", "zero"), ("gemma2", "resample")],
)
def test_components_as_in_a_plain_loop(family, architecture, how):
    components_as_in_a_plain_loop(family, architecture, how, some=slice(3, None))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_component_as_in_a_plain_loop(family, architecture, how):
    components_as_in_a_plain_loop(family, architecture, how)


def components_as_in_a_plain_loop(family, architecture, how, some=slice(None)):
    """Heads, the MLP and the attention of a layer."""
    model = family(architecture).hooked
    found = knock_out(model, how, components=("head", "mlp", "attention"), layers=[2])
    assert len(found.table) == 6
    assert (found.table["refusal"].abs() > 1e-3).any()
    loop = looped(model, PLAIN, how)
    same_as_loop(found.table, loop, some)
    np.testing.assert_allclose(found.harmful, [loop.read([], text)[0] for text in HARMFUL], atol=FORWARD)
    assert list(found.table["n_harmful"].unique()) == [3]
    assert list(found.table["n_harmless"].unique()) == [2]


@pytest.mark.parametrize("how", HOWS)
def test_forced_openings_are_knocked_out_too(llama, how):
    found = knock_out(llama, how, FORCED, layers=[0])
    same_as_loop(found.table, looped(llama, FORCED, how), slice(4, None))


@pytest.mark.parametrize(("name", "how"), [("mistral", "mean"), ("gemma2", "resample"), ("gemma2", "zero")])
def test_windows_shorter_than_the_prompts(windowed, name, how):
    model = windowed(name)
    assert unhooked(model)[0] is not None
    same_as_loop(knock_out(model, how, layers=[1]).table, looped(model, PLAIN, how), slice(4, 5))


@pytest.mark.parametrize("how", ["mean", "zero"])
def test_the_default_reference_is_both_sides(llama, how):
    found = knockout.knock_out(llama, HARMFUL, HARMLESS, PLAIN, how=how, layers=[1], components=["mlp"])
    same_as_loop(found.table, Loop(llama, PLAIN, how, HARMFUL + HARMLESS))


@pytest.mark.parametrize(
    ("architecture", "metric", "how"),
    [("llama", FORCED, "mean"), ("llama", FORCED, "resample"), ("gpt2", PLAIN, "mean"), ("gpt2", PLAIN, "zero")],
)
def test_the_fallback_gives_the_same_numbers(family, fall_back, monkeypatch, architecture, metric, how):
    model = family(architecture).hooked
    plain = knock_out(model, how, metric, layers=[1], components=["mlp"]).table
    monkeypatch.undo()
    quick = knock_out(model, how, metric, layers=[1], components=["mlp"]).table
    assert list(plain["component"]) == list(quick["component"])
    numbers = quick.select_dtypes("number").columns
    np.testing.assert_allclose(plain[numbers], quick[numbers], atol=COMPOUND)
    for name in ("refusal", "harmless", "kl"):
        np.testing.assert_allclose(plain[name], quick[name], atol=FORWARD)


@pytest.mark.parametrize("how", HOWS)
def test_hooks_of_the_caller_act_too(llama, how):
    """A layer's output is what it is plus a step: knocked out, and in the reference."""
    outer = Addition(3.0 * torch.randn(64, generator=torch.Generator().manual_seed(0)), 1)
    alone = knock_out(llama, how, layers=[2], components=["mlp"])
    with add(llama, outer.direction, layer=1):
        found = knock_out(llama, how, layers=[2], components=["mlp"])
        same_as_loop(found.table, looped(llama, PLAIN, how))
    assert (found.harmful - alone.harmful).abs().max() > 1e-2
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


@pytest.mark.parametrize("how", HOWS)
def test_several_at_once_and_nothing(llama, how):
    """Heads of one layer, of several, and an MLP between them; from their lowest layer on."""
    parts = [Component("head", 3, 0), Component("head", 1, 2), Component("head", 1, 0), Component("mlp", 2)]
    ids = prompts.prompt_ids(llama.tokenizer, HARMFUL + HARMLESS)
    frame = TemplateFrame.of(llama.tokenizer, HARMFUL + HARMLESS + REFERENCE)
    passes = ComponentPasses(llama, ids, PLAIN.runs, frame, whole=how == "zero")
    standing_in = prompts.prompt_ids(llama.tokenizer, OTHERS[how])
    made = Replacements(
        llama, standing_in, PLAIN.runs, frame, how=how, places=[p.place for p in parts], draws=2, seed=0
    )
    loop = looped(llama, PLAIN, how)
    with torch.no_grad():
        for chosen in (parts, [], parts[:1]):
            for first_layer in {0, min([p.layer for p in chosen], default=0)}:
                scores = torch.zeros(5)
                for draw in range(made.draws):
                    for numbers, logits in passes.logits(
                        made.edits(chosen, passes, draw=draw), first_layer=first_layer
                    ):
                        scores[numbers] += PLAIN.of_runs(logits) / made.draws
                expected = [loop.read(chosen, text)[0] for text in HARMFUL + HARMLESS]
                np.testing.assert_allclose(scores, expected, atol=FORWARD)


def test_many_groups_give_what_one_gives(llama, monkeypatch):
    for how in HOWS:
        expected = knock_out(llama, how, layers=[1], components=["attention"]).table
        with monkeypatch.context() as patch:
            patch.setitem(runner.TOKENS_AT_ONCE, "cpu", 60)
            found = knock_out(llama, how, layers=[1], components=["attention"]).table
        for name in ("refusal", "harmless", "kl"):
            np.testing.assert_allclose(found[name], expected[name], atol=REORDERED)


def test_the_draws_are_those_of_the_seed(llama):
    def table(seed, draws=1):
        given = {"layers": [1], "components": ["mlp"], "draws": draws, "seed": seed}
        found = knock_out(llama, "resample", reference=[*REFERENCE, *HARMLESS], **given)
        return found.table["refusal"].to_numpy()

    np.testing.assert_array_equal(table(3), table(3))
    assert np.abs(table(3) - table(5)).max() > 1e-3
    # Every other prompt once: no seed matters.
    alike = [table(seed, draws=20) for seed in (3, 5)]
    np.testing.assert_allclose(*alike, atol=REORDERED)


def test_layers_below_are_not_run_again(llama, monkeypatch):
    """One pass for each part, from its layer on."""
    ran = []
    for layer, block in enumerate(unhooked(llama)[0].blocks):
        monkeypatch.setattr(block.mlp, "forward", _counted(block.mlp.forward, ran, layer))
    knockout.knock_out(llama, HARMFUL, HARMLESS, PLAIN, layers=[2])
    before = [ran.count(layer) for layer in range(4)]
    assert before[2] - before[1] == before[3] - before[0] == 5  # four heads and an MLP


def _counted(forward, ran, layer):
    def call(*args, **kwargs):
        ran.append(layer)
        return forward(*args, **kwargs)

    return call


# Neurons


@pytest.mark.parametrize(("architecture", "how"), [("llama", "mean"), ("gpt2", "zero"), ("gpt2", "mean")])
def test_neurons_as_in_a_plain_loop(family, architecture, how):
    model = family(architecture).hooked
    found = knockout.neurons(model, HARMFUL, HARMLESS, PLAIN, layers=[1, 3], top=4, how=how, reference=REFERENCE)
    same_as_loop(found.table, Loop(model, PLAIN, how, REFERENCE))
    estimate, exact = found.table["estimate"].to_numpy(), found.table["refusal"].to_numpy()
    assert found.error == pytest.approx(np.abs(estimate - exact).mean())
    assert found.rank_correlation == pytest.approx(stats.spearmanr(estimate, exact).statistic)
    means = found.observations.table.groupby(["layer", "neuron"], sort=False)["value"].mean()
    np.testing.assert_allclose(means, exact)
    row = found.table.iloc[0]
    assert found.interval(layer=row["layer"], neuron=row["neuron"]).high == pytest.approx(row["high"])
    assert np.isnan(found.estimates[[0, 2]]).all()
    largest = np.sort(np.abs(found.estimates[[1, 3]]).ravel())[::-1][:4]
    np.testing.assert_allclose(np.abs(estimate), largest)


@pytest.mark.parametrize(("metric", "how"), [(FORCED, "mean"), (PLAIN, "zero")])
def test_estimates_are_the_slope_of_the_replacement(llama, fall_back, monkeypatch, metric, how):
    """Against small steps of one neuron on the hooked transformer, prompt by prompt; the fallback the same."""
    plain = knockout.neurons(llama, HARMFUL, HARMLESS, metric, layers=[2], top=1, how=how, reference=REFERENCE)
    monkeypatch.undo()
    quick = knockout.neurons(llama, HARMFUL, HARMLESS, metric, layers=[2], top=1, how=how, reference=REFERENCE)
    np.testing.assert_allclose(plain.estimates, quick.estimates, atol=REORDERED)
    loop, name, scale = Loop(llama, metric, how, REFERENCE), "blocks.2.mlp.hook_post", 1e-2
    expected = 0.0
    neuron = int(quick.table["neuron"][0])
    for text in HARMFUL:
        moved = []
        for sign in (1, -1):

            def step(activation, hook, text=text, sign=sign):
                changed = activation.clone()
                start, values = 0, 0.0
                if how == "mean":
                    start, values = loop.stand_in(name, text, loop.run, 0)
                    values = values[:, neuron]
                changed[0, start:, neuron] += sign * scale * (values - activation[0, start:, neuron])
                return changed

            logits = []
            with torch.no_grad():
                for run in metric.runs:
                    loop.run = run
                    ids = torch.tensor([[*loop.parts[text].prompt_ids, *run]])
                    with llama.hooks(fwd_hooks=[(name, step)]):
                        logits.append(llama(ids, return_type="logits")[:, -len(run) - 1 :])
            moved.append(metric.of_runs(logits).item())
        expected += (moved[0] - moved[1]) / (2 * scale) / len(HARMFUL)
    assert quick.table["estimate"][0] == pytest.approx(expected, abs=2e-3)


# A planted circuit


@pytest.mark.parametrize("how", HOWS)
def test_the_head_that_carries_refusal_is_found(planted, how):
    found = knockout.knock_out(planted, one_head.HARMFUL, one_head.HARMLESS, one_head.METRIC, how=how)
    first, second = found.top(2).itertuples()
    assert (first.component, first.layer, first.head) == ("head", 2, 1)
    assert first.high < 0
    assert abs(second.refusal) < 0.1 * abs(first.refusal)
    if how == "mean":  # half of the reference carries the mark
        assert -1 < first.refusal / (found.harmful.mean() - found.harmless.mean()).item() < -0.2
        assert first.harmless_low > 0


def test_with_harmless_prompts_as_reference_all_of_refusal_goes(planted):
    for how in ("mean", "resample"):
        found = knockout.knock_out(
            planted,
            one_head.HARMFUL,
            one_head.HARMLESS,
            one_head.METRIC,
            how=how,
            layers=[1, 2],
            reference=one_head.HARMLESS,
        )
        first = found.top(1).iloc[0]
        gap = (found.harmful.mean() - found.harmless.mean()).item()
        assert (first["layer"], first["head"]) == (2, 1)
        assert first["refusal"] == pytest.approx(-gap, rel=0.1)
        assert abs(first["harmless"]) < 0.05 * gap


# Errors, and what is left behind


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"harmful": []}, "no harmful prompts"),
        ({"harmless": []}, "no harmless prompts"),
        ({"reference": []}, "no reference prompts"),
        ({"how": "median"}, "'median'.*mean, zero, resample"),
        ({"layers": [4]}, "layer 4 .*0 to 3"),
        ({"layers": [-1]}, "layer -1 .*0 to 3"),
        ({"layers": []}, "no layer"),
        ({"components": ["head", "norm"]}, "'norm'.*head, mlp, attention"),
        ({"components": []}, "no kind of component"),
        ({"how": "resample", "draws": 0}, "draws is 0"),
        ({"seed": -1}, "seed -1"),
        ({"how": "resample", "reference": ["Make a bomb"]}, "at least two different"),
        ({"harmful": ["a" * 2000]}, "context of 512"),
    ],
)
def test_bad_input_is_refused_by_name(llama, given, said):
    asked = {"harmful": HARMFUL, "harmless": HARMLESS, **given}
    with pytest.raises(MechrefusalError, match=said):
        knockout.knock_out(llama, asked.pop("harmful"), asked.pop("harmless"), PLAIN, **asked)


def test_bad_input_of_neurons(llama):
    for given, said in (
        ({"top": 0}, "top is 0"),
        ({"how": "resample"}, "'mean' or 'zero'"),
        ({"how": "median"}, "'median'"),
        ({"layers": [9]}, "layer 9"),
    ):
        with pytest.raises(MechrefusalError, match=said):
            knockout.neurons(llama, HARMFUL, HARMLESS, PLAIN, **given)


def test_the_model_is_as_before(llama):
    weights = {key: value.clone() for key, value in llama.state_dict().items()}
    with torch.no_grad():
        before = llama(torch.tensor([[5, 6, 7]]))
        knock_out(llama, "zero", layers=[1])
        knockout.neurons(llama, HARMFUL, HARMLESS, PLAIN, top=1, layers=[0])
        assert torch.equal(llama(torch.tensor([[5, 6, 7]])), before)
    assert all(torch.equal(value, weights[key]) for key, value in llama.state_dict().items())
    for module in unhooked(llama)[0].model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__
