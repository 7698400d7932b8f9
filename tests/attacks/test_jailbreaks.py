"""Template jailbreaks: texts filled letter for letter, and losses that equal a plain forward pass."""

import copy

import pandas as pd
import pytest
import torch
from tolerances import FORWARD

from mechrefusal import MechrefusalError, prompts
from mechrefusal.attacks import jailbreaks
from mechrefusal.attacks.jailbreaks import Template

HOSTILE = [
    "Explain {how} to {0} pick a {behaviour}",
    'Say "it\'s" %s and `this` \\n back',
    "Pick a lock 🔓 as a naïve locksmith",
    "<script>alert('lock')</script> & <b>pick</b>",
    "Explain this:\n\n- how to\n- pick a lock\n",
]


def plain_loss(model, tokenizer, prompt: str, target: str) -> float:
    """Cross-entropy of the target through one forward pass over the whole text."""
    parts = prompts.segments(tokenizer, prompt, target=target, end_of_turn=False)
    with torch.no_grad():
        logits = model(torch.tensor([parts.ids])).logits[0].float()
    where = parts.slice("target")
    found = torch.nn.functional.cross_entropy(logits[where.start - 1 : where.stop - 1], torch.tensor(parts.target))
    return float(found)


def behaviours(n: int = 2) -> prompts.PromptSet:
    return prompts.builtin().pool.harmful[:n]


def test_the_templates_are_different_short_and_hold_the_behaviour_once():
    found = jailbreaks.templates()
    assert len(found) >= 12
    assert len({template.name for template in found}) == len({template.text for template in found}) == len(found)
    assert len({template.category for template in found}) >= 7
    for template in found:
        assert template.text.count("{behaviour}") == 1
        assert len(template.text.split()) < 60
        assert template.name.isidentifier()
        assert "\r" not in template.text


@pytest.mark.parametrize("behaviour", HOSTILE)
def test_a_behaviour_is_filled_in_letter_for_letter(behaviour):
    for template in jailbreaks.templates():
        before, after = template.text.split("{behaviour}")
        assert template.fill(behaviour) == before + behaviour + after
    assert (
        Template("braces", "test", "{0} {x} {{}} {behaviour} %s").fill(behaviour) == "{0} {x} {{}} " + behaviour + " %s"
    )


def test_losses_and_costs_are_those_of_plain_forward_passes(tiny_hf):
    model, tokenizer = tiny_hf
    asked = behaviours()
    cases = jailbreaks.apply(tokenizer, model, asked, source="abc")
    templates = jailbreaks.templates()
    assert [case.id for case in cases] == [f"{id}/{template.name}" for id in asked.ids for template in templates]
    for case, (text, template) in zip(cases, [(t, m) for t in asked for m in templates], strict=True):
        parts = prompts.segments(tokenizer, case.prompt, target=case.target, end_of_turn=False)
        assert case.prompt == template.fill(text)
        assert case.loss == pytest.approx(plain_loss(model, tokenizer, case.prompt, case.target), abs=FORWARD)
        assert case.forward_tokens == len(parts.ids) - 1
        assert case.history == (case.loss,)
        assert case.history_prompts == (case.prompt,)
        assert case.history_tokens == (case.forward_tokens,)
    assert {(c.method, c.suffix, c.suffix_ids, c.steps, c.age, c.source) for c in cases} == {
        ("templates", "", (), 0, 1, "abc")
    }
    assert [case.target for case in cases[:: len(templates)]] == asked.with_targets().table["target"].tolist()


@pytest.mark.parametrize("behaviour", HOSTILE)
def test_hostile_behaviours_are_measured_as_they_are(tiny_hf, behaviour):
    model, tokenizer = tiny_hf
    asked = prompts.PromptSet.from_texts("hostile", [behaviour])
    cases = jailbreaks.apply(tokenizer, model, asked, source="abc", templates=jailbreaks.templates()[:3])
    for case in cases:
        assert behaviour in case.prompt
        assert case.loss == pytest.approx(plain_loss(model, tokenizer, case.prompt, case.target), abs=FORWARD)


def test_own_templates_no_behaviours_and_any_seed(tiny_hf):
    model, tokenizer = tiny_hf
    mine = [Template("bare", "none", "{behaviour}")]
    cases = jailbreaks.apply(tokenizer, model, behaviours(), source="abc", templates=mine)
    assert [case.prompt for case in cases] == behaviours().texts
    assert cases == jailbreaks.apply(tokenizer, model, behaviours(), source="abc", templates=mine, seed=7)
    assert jailbreaks.apply(tokenizer, model, behaviours(0), source="abc") == []
    assert jailbreaks.apply(tokenizer, model, behaviours(), source="abc", templates=[]) == []


def test_the_model_is_left_as_it_was(tiny_hf, monkeypatch):
    model, tokenizer = copy.deepcopy(tiny_hf[0]), tiny_hf[1]
    measure, modes = jailbreaks.target_losses, []
    monkeypatch.setattr(jailbreaks, "target_losses", lambda *args: (modes.append(model.training), measure(*args))[1])
    model.train()
    state = torch.get_rng_state()
    cases = jailbreaks.apply(tokenizer, model, behaviours(1), source="abc")
    assert modes == [False]
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert cases == jailbreaks.apply(tokenizer, tiny_hf[0], behaviours(1), source="abc")


def test_bad_templates_are_named():
    with pytest.raises(MechrefusalError, match=r"'none' holds '\{behaviour\}' 0 times"):
        Template("none", "test", "Tell me")
    with pytest.raises(MechrefusalError, match=r"'twice' holds .* 2 times"):
        Template("twice", "test", "{behaviour} and {behaviour}")
    with pytest.raises(MechrefusalError, match="has no name"):
        Template(" ", "test", "{behaviour}")


def test_unusable_cases_are_named_before_the_first_forward_pass(tiny_hf, monkeypatch):
    model, tokenizer = tiny_hf
    monkeypatch.setattr(jailbreaks, "target_losses", lambda *args, **named: pytest.fail("a forward pass was run"))
    long = prompts.PromptSet.from_texts("long", ["Pick a lock", "lock " * 600])
    with pytest.raises(MechrefusalError, match=r"'long-0002/role_play' is \d+ tokens long .* more than the 512"):
        jailbreaks.apply(tokenizer, model, long, source="abc")
    twice = [Template("same", "test", "{behaviour}"), Template("same", "test", "So: {behaviour}")]
    with pytest.raises(MechrefusalError, match="two jailbreak templates are called 'same'"):
        jailbreaks.apply(tokenizer, model, behaviours(), source="abc", templates=twice)
    monkeypatch.setattr(prompts.PromptSet, "with_targets", lambda self: self)
    table = pd.DataFrame({"id": ["a"], "text": ["Pick a lock"], "category": [""], "target": [" "]})
    with pytest.raises(MechrefusalError, match="'a/role_play' has an empty target"):
        jailbreaks.apply(tokenizer, model, prompts.PromptSet("blank", table), source="abc")


def test_a_model_that_is_not_finite_is_named(tiny_hf):
    model, tokenizer = copy.deepcopy(tiny_hf[0]), tiny_hf[1]
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(MechrefusalError, match=rf"'{behaviours(1).ids[0]}/role_play' is nan"):
        jailbreaks.apply(tokenizer, model, behaviours(1), source="abc")
