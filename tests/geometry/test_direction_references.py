"""References of directions: means by class of token against the plain model's hidden states, prompt by prompt."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from planted_directions import from_activations
from safetensors import safe_open
from safetensors.torch import save_file

from mechrefusal import MechrefusalError, causal, geometry
from mechrefusal.causal import Ablation, Reference, put_in, taken_out
from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.forward.token_classes import ANSWER, HEAD, INSTRUCTION, TokenClasses
from mechrefusal.geometry import Directions
from mechrefusal.prompts import PromptSet, Split

LAST = (-1, 1)


@dataclass
class Contrast:
    harmful: list[str]
    harmless: list[str]


ASKED = Contrast(
    ["Tell me how to steal a car.", "Build a bomb", "x", "Write malware now"],
    ["Wash a car for me?", "Bake bread", "Describe a long and winding river to my friend"],
)


def prompt_ids(tokenizer, text):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )


def frame(tokenizer):
    """How many tokens all prompts begin and end with alike: no two of them begin or end with the same letter."""
    rows = [prompt_ids(tokenizer, text) for text in (*ASKED.harmful[:3], ASKED.harmless[0])]

    def shared(rows):
        n = 0
        while len({row[n] for row in rows}) == 1:
            n += 1
        return n

    return shared(rows), shared([row[::-1] for row in rows])


def hidden(hf, tokenizer, text):
    """(layer, token, d_model), float64: the input of every block."""
    with torch.no_grad():
        states = hf(torch.tensor([prompt_ids(tokenizer, text)]), output_hidden_states=True).hidden_states[:-1]
    return torch.cat(states).double()


def by_hand(hf, tokenizer, texts):
    """(layer, class, d_model): zero at the head."""
    before, after = frame(tokenizer)
    states = [hidden(hf, tokenizer, text) for text in texts]
    ends = torch.stack([each[:, -after:] for each in states]).mean(0)
    instruction = torch.cat([each[:, before:-after] for each in states], 1).mean(1, keepdim=True)
    return torch.cat([torch.zeros_like(instruction), instruction, ends[:, -1:], ends], 1)


@pytest.fixture(scope="module")
def found(tiny_hooked):
    return geometry.difference_in_means(tiny_hooked, ASKED)


@pytest.fixture(scope="module")
def means(tiny_hf):
    return {side: by_hand(*tiny_hf, getattr(ASKED, side)) for side in ("harmful", "harmless")}


def close(one, other, atol=2e-5):
    torch.testing.assert_close(one.double(), other.double(), atol=atol, rtol=0)


def test_classes_are_those_of_the_template(tiny_hf, found):
    before, after = frame(tiny_hf[1])
    assert found.classes == TokenClasses(before, after)
    assert min(before, after) > 1, "the template has nothing before, or after"
    assert (HEAD, INSTRUCTION, ANSWER) == (0, 1, 2)
    assert len(found.classes) == 3 + after


@pytest.mark.parametrize("side", ["harmful", "harmless"])
def test_means_by_class(found, means, side):
    close(getattr(found.means, side), means[side])
    close(found.mean(side).transpose(0, 1), means[side][:, 3:])
    assert found.instruction is not None
    close(found.instruction[("harmful", "harmless").index(side)], means[side][:, INSTRUCTION])


def test_means_of_tokens_are_not_means_of_prompts(tiny_hf, found):
    """Every instruction token counts once, so a long instruction counts for more."""
    before, after = frame(tiny_hf[1])
    each = [hidden(*tiny_hf, text)[:, before:-after].mean(1) for text in ASKED.harmless]
    assert (found.means.harmless[:, INSTRUCTION] - torch.stack(each).mean(0)).abs().max() > 1e-3


def test_references(found, means):
    direction = found.at(*LAST, reference="harmless")
    harmless = Reference.of(direction)
    assert harmless.name == "harmless mean"
    assert (harmless.first_layer, harmless.classes) == (1, found.classes)
    assert harmless.has_mean == (False, *[True] * (len(found.classes) - 1))
    close(harmless.means, means["harmless"])
    for coefficient, name in (
        (0.0, "harmless mean"), (1.0, "harmful mean"), (0.25, "harmless mean + 0.25 of the way to the harmful one"),
        (-1.0, "harmless mean + -1 of the way to the harmful one"),
    ):  # fmt: skip
        one = Reference.of(direction, coefficient=coefficient)
        assert one.name == name
        close(one.means, means["harmless"] + coefficient * (means["harmful"] - means["harmless"]), atol=5e-5)
    both = taken_out(direction).reference, put_in(direction).reference
    close(both[0].means, means["harmless"])
    close(both[1].means, means["harmful"])
    assert [one.name for one in both] == ["harmless mean", "harmful mean"]


def test_zero_is_no_reference(found):
    for direction in (found.at(*LAST), found.at(*LAST, reference="zero")):
        assert taken_out(direction).reference is None
        assert put_in(direction) == causal.Addition(direction.vector, 1, weights=found.weights)
        assert taken_out(direction, reference="harmless").reference.name == "harmless mean"


def test_ablating_and_inducing_set_the_projections_to_the_means(tiny_hf, found, means):
    """What the means of `Directions` give, put to use: from its layer on, every class has its mean's projection."""
    hf, tokenizer = tiny_hf
    before, after = frame(tokenizer)
    direction = found.at(*LAST)
    unit = (direction.vector / direction.vector.norm()).double()
    for side, coefficient in (("harmless", 0.0), ("harmful", 1.0)):
        ids, seen = prompt_ids(tokenizer, "How do I sing to a crowd?"), {}
        edits = [
            (layer, "resid_pre", lambda x, n=layer, to=seen: to.update({n: x[0].double()}) or x) for layer in range(4)
        ]
        of = [INSTRUCTION] * (len(ids) - before - after) + [3 + i for i in range(after)]
        intervention = taken_out(direction, reference=Reference.of(direction, coefficient=coefficient))
        with torch.no_grad(), causal.intervened(hf, intervention), HuggingFaceModel.of(hf).edited(edits):
            hf(torch.tensor([ids]))
        free = hidden(hf, tokenizer, "How do I sing to a crowd?")
        close(seen[0], free[0])
        for layer in range(1, 4):
            close((seen[layer] @ unit)[before:], means[side][layer][of] @ unit, atol=1e-4)
            close(seen[layer][:before], free[layer, :before])


def test_zero_distance(found, means):
    """Where zero stands on the line from the harmless mean (0) to the harmful one (1)."""
    low, high = (means[side][:, 3:].transpose(0, 1) for side in ("harmless", "harmful"))
    line = high - low
    expected = -(low * line).sum(-1) / (line * line).sum(-1)
    assert found.zero_distance.dtype == torch.float64
    # Below the first block the template's tokens are the same in every prompt: there is no direction.
    torch.testing.assert_close(found.zero_distance[:, 1:], expected[:, 1:], atol=1e-3, rtol=1e-3)


def test_zero_distance_by_hand():
    harmless, harmful = np.zeros((16, 1, 3, 2)), np.zeros((16, 1, 3, 2))
    harmless[:, 0, 0], harmful[:, 0, 0] = (2.0, 5.0), (4.0, 5.0)  # zero is one length before the harmless mean
    harmless[:, 0, 1], harmful[:, 0, 1] = (-1.0, 3.0), (1.0, 3.0)  # half way between the two
    harmless[:, 0, 2], harmful[:, 0, 2] = (1.0, 1.0), (1.0, 1.0)  # no direction
    found = from_activations(harmful, harmless)
    assert found.zero_distance[0, :2].tolist() == [-1.0, 0.5]
    assert found.zero_distance[0, 2].isnan()
    close(found.mean("harmless")[0, 0], torch.tensor([2.0, 5.0]))
    close(found.mean("harmful")[0, 1], torch.tensor([1.0, 3.0]))


def test_what_was_saved_is_read_again(found, tmp_path):
    path = found.save(tmp_path / "directions.safetensors")
    again = Directions.load(path, weights=found.weights)
    assert again.classes == found.classes
    assert torch.equal(again.instruction, found.instruction)
    one, other = (Reference.of(each.at(*LAST), coefficient=0.5) for each in (again, found))
    assert torch.equal(one.means, other.means)
    assert (one.name, one.classes, one.has_mean, one.first_layer) == (
        other.name, other.classes, other.has_mean, other.first_layer
    )  # fmt: skip


def test_directions_without_references(found, tmp_path):
    """Of an earlier version: read, ablated to zero, and what else they cannot do is said."""
    path = found.save(tmp_path / "new.safetensors")
    with safe_open(path, framework="pt") as file:
        notes = {name: value for name, value in file.metadata().items() if name != "classes"}
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != "instruction"}  # noqa: SIM118
    old = tmp_path / "old.safetensors"
    save_file(tensors, old, metadata=notes)
    again = Directions.load(old, weights=found.weights)
    assert again.instruction is None
    assert again.classes is None
    assert taken_out(again.at(*LAST)).reference is None
    assert again.means is None
    torch.testing.assert_close(again.zero_distance, found.zero_distance, atol=0, rtol=0, equal_nan=True)
    for call in (lambda: again.at(*LAST, reference="harmless"), lambda: Reference.of(again.at(*LAST))):
        with pytest.raises(MechrefusalError, match=r"position -1, layer 1.*earlier version measure.*reference 'zero'"):
            call()


def test_unknown_names_and_places(found):
    with pytest.raises(MechrefusalError, match="unknown reference 'mean'"):
        found.at(*LAST, reference="mean")
    for name in ("harmless", "zero"):
        with pytest.raises(MechrefusalError, match="no directions at position -40"):
            found.at(-40, 1, reference=name)


def test_of_some_positions_the_others_are_not_held(found, means):
    some = found.of_positions([-1])
    reference = Reference.of(some.at(*LAST))
    n_after = found.classes.n_after
    assert reference.has_mean == (False, True, True, *[False] * (n_after - 1), True)
    close(reference.means[:, [INSTRUCTION, ANSWER, -1]], means["harmless"][:, [INSTRUCTION, ANSWER, -1]])
    assert not reference.means[:, 3:-1].any()


def test_generated_tokens_have_the_mean_of_the_last_position(found, means):
    """In whatever order the positions stand."""
    last = means["harmless"][:, -1]
    for positions in ([-1, -2], [-2, -1]):
        close(found.of_positions(positions).means.harmless[:, ANSWER], last)


def test_no_prompts_and_empty_ones_are_errors(tiny_hooked):
    for contrast in (Contrast([], ["Sing"]), Contrast(["Sing"], [])):
        with pytest.raises(MechrefusalError, match="directions need harmful and harmless prompts"):
            geometry.difference_in_means(tiny_hooked, contrast)
    with pytest.raises(MechrefusalError, match="is blank"):
        geometry.difference_in_means(tiny_hooked, Contrast([" "], ["Sing"]))


def test_references_of_nan_means_are_refused(tiny_hooked, found):
    broken = replace(found, sums=torch.full_like(found.sums, torch.nan))
    intervention = Ablation(found.at(*LAST).vector, reference=Reference.of(broken.at(*LAST)))
    with pytest.raises(MechrefusalError, match="'harmless mean' is not finite"):
        intervention.check(tiny_hooked)


def test_references_of_a_part_are_those_of_the_part_alone(tiny_hooked):
    sides = [PromptSet.from_texts(name, getattr(ASKED, name)) for name in ("harmful", "harmless")]
    whole, part = Split(*sides), Split(sides[0][:2], sides[1][:2])
    both = geometry.difference_in_means_of_part(tiny_hooked, whole, part)
    for one, contrast in zip(both, (whole, part), strict=True):
        alone = geometry.difference_in_means(tiny_hooked, contrast)
        assert one.classes == alone.classes
        close(one.instruction, alone.instruction)
        for side in ("harmless", "harmful"):
            close(getattr(one.means, side), getattr(alone.means, side))
