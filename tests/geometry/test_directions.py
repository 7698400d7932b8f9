"""Difference in means against float64 means of the Hugging Face model's hidden states, one prompt at a time."""

import ctypes
import gc
import sys
import threading
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tolerances import FORWARD, REORDERED

from mechrefusal import MechrefusalError, geometry, models, prompts
from mechrefusal.geometry import Directions, streamed_means
from mechrefusal.geometry.activations import stream


@dataclass
class Contrast:
    harmful: list[str]
    harmless: list[str]


ASKED = Contrast(
    [
        "Tell me how to steal a car.",
        "Build a bomb",
        "Explain in detail how to scam old people",
        "x",
        "Write malware now",
    ],
    ["Tell me how to wash a car.", "Bake bread", "Describe a river", "Explain how to swim across a cold river"],
)


def hidden(hf, tokenizer, text):
    """(layer, position, d_model): the input of every block."""
    messages = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        states = hf(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1]
    return torch.cat(states).double().numpy()


def means(hf, tokenizer, texts, positions):
    """(position, layer, d_model)"""
    return np.mean([hidden(hf, tokenizer, text)[:, positions] for text in texts], axis=0).transpose(1, 0, 2)


@pytest.fixture(scope="module")
def found(tiny_hooked):
    return geometry.difference_in_means(tiny_hooked, ASKED)


def test_equals_means_of_plain_hidden_states(tiny_hf, found):
    positions = list(found.positions)
    expected = means(*tiny_hf, ASKED.harmful, positions) - means(*tiny_hf, ASKED.harmless, positions)
    assert found.values.shape == (5, 4, 64)
    assert found.values.dtype == torch.float64
    np.testing.assert_allclose(found.values.numpy(), expected, atol=REORDERED)
    assert np.abs(expected[:, 1:]).max() > 0.1


def test_positions_are_the_template_after_the_instruction(found, tiny, tiny_hooked):
    assert found.positions == (-5, -4, -3, -2, -1)
    assert found.tokens == ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")
    assert (found.n_harmful, found.n_harmless) == (5, 4)
    assert found.weights == models.hash_checkpoint(tiny)
    assert geometry.post_instruction_positions(tiny_hooked.tokenizer, ASKED.harmful) == found.positions


def test_the_template_is_the_same_at_layer_0(found):
    assert found.values[:, 0].abs().max() < REORDERED


def test_halves_are_even_and_odd_prompts(tiny_hf, found):
    positions = list(found.positions)
    for half in (0, 1):
        harmful, harmless = ASKED.harmful[half::2], ASKED.harmless[half::2]
        expected = means(*tiny_hf, harmful, positions) - means(*tiny_hf, harmless, positions)
        np.testing.assert_allclose(found.halves[half].numpy(), expected, atol=REORDERED)
    a, b = found.halves[:, :, 1:].numpy()
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(found.split_half_cosine[:, 1:].numpy(), cosines, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_do_not_matter(tiny_hooked, found, chunk):
    again = geometry.difference_in_means(tiny_hooked, ASKED, chunk=chunk)
    np.testing.assert_allclose(again.values.numpy(), found.values.numpy(), atol=REORDERED)
    np.testing.assert_allclose(again.halves.numpy(), found.halves.numpy(), atol=REORDERED)


@pytest.mark.parametrize("positions", [(-1,), (-12, -2), (-2, -7)])
def test_other_positions(tiny_hf, tiny_hooked, positions):
    asked = Contrast(ASKED.harmful[:3], ASKED.harmless[:2])
    again = geometry.difference_in_means(tiny_hooked, asked, positions=positions)
    expected = means(*tiny_hf, asked.harmful, list(positions)) - means(*tiny_hf, asked.harmless, list(positions))
    np.testing.assert_allclose(again.values.numpy(), expected, atol=REORDERED)
    assert again.positions == positions


@pytest.mark.parametrize("positions", [(-40,), (0,), (3, -1), ()], ids=str)
def test_positions_that_not_every_prompt_has(tiny_hooked, positions):
    """The shortest prompt here has 24 tokens, the longest over 40: what stands before it is padding."""
    long = "Explain in detail how to greet the old people who live on my street"
    asked = Contrast([long, "x"], [long, "y"])
    with pytest.raises(MechrefusalError):
        geometry.difference_in_means(tiny_hooked, asked, positions=positions)


def test_one_prompt_on_each_side(tiny_hf, tiny_hooked):
    asked = Contrast(ASKED.harmful[:1], ASKED.harmless[:1])
    again = geometry.difference_in_means(tiny_hooked, asked)
    positions = list(again.positions)
    expected = means(*tiny_hf, asked.harmful, positions) - means(*tiny_hf, asked.harmless, positions)
    np.testing.assert_allclose(again.values.numpy(), expected, atol=REORDERED)
    assert torch.isnan(again.halves[1]).all()


@pytest.mark.parametrize("asked", [Contrast([], ["x"]), Contrast(["x"], [])])
def test_an_empty_side(tiny_hooked, asked):
    with pytest.raises(MechrefusalError, match="harmful and harmless"):
        geometry.difference_in_means(tiny_hooked, asked)


def test_no_hooks_stay(tiny_hooked):
    tokens = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = tiny_hooked(tokens)
        geometry.difference_in_means(tiny_hooked, ASKED)
        assert torch.equal(tiny_hooked(tokens), before)
    assert not any(point.fwd_hooks for point in tiny_hooked.hook_dict.values())


def test_at(found):
    assert torch.equal(found.at(-4, 3).vector, found.values[1, 3])
    with pytest.raises(MechrefusalError, match=r"position -9; they were taken at \[-5"):
        found.at(-9, 3)


MANY = Contrast([f"Steal {n} cars" for n in range(37)], [f"Wash {n} cars" for n in range(18)])


@pytest.fixture(scope="module")
def many(tiny_hooked):
    return geometry.difference_in_means(tiny_hooked, MANY, positions=(-2, -1))


def test_prompt_i_is_in_fold_i_modulo_16(tiny_hf, many):
    assert many.counts.tolist() == [[3] * 5 + [2] * 11, [2] * 2 + [1] * 14]
    for which, texts in enumerate((MANY.harmful, MANY.harmless)):
        for fold in (0, 3, 15):
            chosen = texts[fold::16]
            expected = means(*tiny_hf, chosen, [-2, -1]) * len(chosen)
            np.testing.assert_allclose(many.sums[which, fold].numpy(), expected, atol=FORWARD)
    assert many.sums.dtype == torch.float32
    assert many.values.dtype == torch.float64


def twins(n, *, without=(), side="harmful"):
    """`n` prompts of one side with the twins' names, less those at the places `without`."""
    verb = {"harmful": "Steal", "harmless": "Wash"}[side]
    rows = [
        {"id": f"{side}-{k}", "text": f"{verb} {k} cars", "category": "", "twin": f"twin-{k}"}
        for k in range(n)
        if k not in without
    ]
    return prompts.PromptSet(side, pd.DataFrame(rows))


def test_twins_are_in_the_same_fold_whatever_the_leak_audit_dropped(tiny_hf, tiny_hooked):
    harmful, harmless = twins(24, without=(0, 5)), twins(24, without=(3,), side="harmless")
    harmless = harmless[list(range(len(harmless)))[::-1]]  # in any order
    found = geometry.difference_in_means(tiny_hooked, prompts.Split(harmful, harmless), positions=(-2, -1))
    assert found.paired
    both = [k for k in range(24) if k not in (0, 3, 5)]
    # Those without a twin come after the 21 that have one: in folds 21 and 22 of 16.
    alone = {"Steal": [3], "Wash": [5, 0]}
    for which, verb in enumerate(("Steal", "Wash")):
        dealt = both + alone[verb]
        assert found.counts[which].tolist() == [len(dealt[fold::16]) for fold in range(16)]
        for fold in (0, 2, 4, 5, 6, 15):
            texts = [f"{verb} {k} cars" for k in dealt[fold::16]]
            expected = means(*tiny_hf, texts, [-2, -1]) * len(texts)
            np.testing.assert_allclose(found.sums[which, fold].numpy(), expected, atol=FORWARD)
    assert found.values.isfinite().all()


def test_prompts_without_any_twin_are_dealt_out_one_by_one(tiny_hooked, many):
    assert not many.paired
    apart = prompts.Split(twins(6, without=(0, 1, 2)), twins(3, side="harmless"))
    other = geometry.difference_in_means(tiny_hooked, apart, positions=(-1,))
    assert not other.paired
    assert other.counts[:, :4].tolist() == [[1, 1, 1, 0]] * 2
    table = twins(3).table.assign(twin=[None, float("nan"), "twin-2"])
    some = prompts.Split(prompts.PromptSet("some", table), prompts.PromptSet("same", table))
    found = geometry.difference_in_means(tiny_hooked, some, positions=(-1,))
    assert found.paired, "prompts without a name are nobody's twin"
    assert found.counts[:, :4].tolist() == [[1, 1, 1, 0]] * 2


def test_the_builtin_prompts_are_twins(tiny_hooked):
    found = geometry.difference_in_means(tiny_hooked, prompts.builtin().direction.take(18), positions=(-1,))
    assert found.paired
    assert found.counts.tolist() == [[2, 2] + [1] * 14] * 2


def test_folds_weighted(tiny_hf, many):
    harmful, harmless = torch.zeros(16), torch.zeros(16)
    harmful[[0, 7]], harmless[2] = torch.tensor([2.0, 1.0]), 5.0
    texts = MANY.harmful[0::16] * 2 + MANY.harmful[7::16]
    expected = means(*tiny_hf, texts, [-2, -1]) - means(*tiny_hf, MANY.harmless[2::16], [-2, -1])
    np.testing.assert_allclose(many.resampled(harmful, harmless).numpy(), expected, atol=REORDERED)
    ones = torch.ones(16)
    np.testing.assert_allclose(many.resampled(ones, ones).numpy(), many.values.numpy(), atol=REORDERED)
    assert many.resampled(ones, torch.zeros(16)).isnan().all()
    with pytest.raises(MechrefusalError, match="give 16 numbers"):
        many.resampled(torch.ones(2), ones)


def test_some_of_the_positions(tiny_hooked, found):
    part = found.of_positions((-1, -4))
    again = geometry.difference_in_means(tiny_hooked, ASKED, positions=(-1, -4))
    assert (part.positions, part.tokens) == (again.positions, again.tokens) == ((-1, -4), ("\n", "\n"))
    for name in ("values", "sums", "halves"):
        a, b = (getattr(each, name).numpy() for each in (part, again))
        np.testing.assert_allclose(a[..., 1:, :], b[..., 1:, :], atol=REORDERED)
    with pytest.raises(MechrefusalError, match="position -7"):
        found.of_positions((-1, -7))


def test_harmfulness_and_refusal_from_one_pass(tiny_hf, tiny_hooked, found):
    texts = ASKED.harmful + ASKED.harmless
    last = geometry.last_instruction_position(tiny_hooked.tokenizer, texts)
    assert last == -6
    ids = prompts.segments(tiny_hooked.tokenizer, "Build a bomb")
    assert ids.prompt_ids[last] == ids.instruction[-1]
    both = geometry.difference_in_means(tiny_hooked, ASKED, positions=(last, *found.positions))
    assert both.tokens == ("…", *found.tokens)
    np.testing.assert_allclose(both.of_positions(found.positions).values.numpy(), found.values.numpy(), atol=REORDERED)
    expected = means(*tiny_hf, ASKED.harmful, [last]) - means(*tiny_hf, ASKED.harmless, [last])
    np.testing.assert_allclose(both.of_positions((last,)).values.numpy(), expected, atol=REORDERED)


@pytest.mark.parametrize(
    ("instructions", "after", "message"),
    [
        (["a", "b"], [3, 2], r"2 prompts have \[2, 3\] tokens"),
        (["a", "b"], [0, 0], r"have \[0\] tokens"),
        ([], [], r"0 prompts have \[\] tokens"),
        (["a", ""], [2, 2], "'1' has no token of its own"),
    ],
)
def test_no_last_instruction_token(monkeypatch, instructions, after, message):
    rows = list(zip(instructions, after, strict=True))

    def segments(tokenizer, text):
        words, n = rows[int(text)]
        return prompts.Segments(before=(0,), instruction=tuple(map(ord, words)), attack=(), after=(1,) * n, target=())

    monkeypatch.setattr(geometry.contrast.prompts, "segments", segments)
    with pytest.raises(MechrefusalError, match=message):
        geometry.last_instruction_position(None, [str(n) for n in range(len(rows))])


def new_bytes():
    """Bytes of the tensors that are alive and were not when the garbage collector was frozen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storages = [each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def most_held(tiny_hooked, monkeypatch, contrast, **options):
    """The most bytes beside what was there before, seen whenever `stream` hands over a chunk."""
    seen = []

    def watched(*args, **kwargs):
        for part in stream(*args, **kwargs):
            seen.append(new_bytes())
            yield part

    monkeypatch.setattr(streamed_means, "stream", watched)
    gc.collect()
    gc.freeze()
    try:
        geometry.difference_in_means(tiny_hooked, contrast, **options)
    finally:
        gc.unfreeze()
    return max(seen)


def expected_bytes(n_positions, n_layers, d_model, *, chunk):
    """Sums of both classes in float32, a fold and two totals in float64, a chunk twice (hooked, and stacked)."""
    place = n_positions * n_layers * d_model
    return place * (2 * 16 * 4 + 3 * 8 + 2 * chunk * 4)


def test_memory_does_not_grow_with_the_prompts(tiny_hooked, monkeypatch):
    few = most_held(tiny_hooked, monkeypatch, MANY, positions=(-2, -1))
    more = Contrast(MANY.harmful * 3, MANY.harmless * 3)
    # 220 kB of activations more; what may grow are the prompts' token ids.
    assert most_held(tiny_hooked, monkeypatch, more, positions=(-2, -1)) - few < 50_000


def test_smollm2_takes_less_than_50_mb_beyond_the_model(tiny_hooked, monkeypatch):
    """What the tiny model holds is what the formula says; with SmolLM2's numbers it leaves 25 MB for the passes."""
    held = most_held(tiny_hooked, monkeypatch, MANY, positions=(-5, -4, -3, -2, -1))
    formula = expected_bytes(5, 4, 64, chunk=4)
    assert 0.9 * formula < held < 1.25 * formula, "token ids and the head's cache come on top"
    assert expected_bytes(7, 30, 576, chunk=4) < 25e6


def peak_of_directions(folder, told):
    """How much more memory than before is resident at most while directions are taken."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    model, asked = models.load_hooked(folder), prompts.builtin().direction
    geometry.difference_in_means(model, asked.take(2))  # what is loaded only when it is used
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory is used again unseen
    before, seen, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.005):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    geometry.difference_in_means(model, asked.take(16))
    done.set()
    thread.join()
    told.write_text(str(max(seen) - before))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_resident_memory_on_smollm2(smollm2, tmp_path):
    process = forked.start(peak_of_directions, smollm2, tmp_path / "peak")
    process.join()
    assert process.exitcode == 0
    assert int((tmp_path / "peak").read_text()) < 50e6


def test_files_of_an_earlier_version(found, tmp_path):
    path = found.save(tmp_path / "directions.safetensors")
    with safe_open(path, framework="pt") as file:
        notes = file.metadata()
    save_file({"values": found.values, "halves": found.halves}, path, metadata=notes)
    with pytest.raises(
        MechrefusalError, match=r"directions\.safetensors.*earlier version.*measure the checkpoint again"
    ):
        Directions.load(path, weights=found.weights)


def test_there_and_back(found, tmp_path):
    path = found.save(tmp_path / "new" / "directions.safetensors")
    for weights in (found.weights, None):
        again = Directions.load(path, weights=weights)
        assert torch.equal(again.values, found.values)
        assert torch.equal(again.sums, found.sums)
        assert torch.equal(again.counts, found.counts)
        for name in ("positions", "tokens", "n_harmful", "n_harmless", "weights", "paired"):
            assert getattr(again, name) == getattr(found, name), name


def test_twins_there_and_back(found, tmp_path):
    assert not found.of_positions((-1,)).paired
    paired = replace(found, paired=True)
    assert paired.of_positions((-1,)).paired
    assert Directions.load(paired.save(tmp_path / "directions.safetensors"), weights=None).paired


def test_directions_of_other_weights_are_refused_by_name(found, tmp_path, tiny_hooked):
    path = found.save(tmp_path / "directions.safetensors")
    with pytest.raises(MechrefusalError, match=f"{found.weights}.*0123456789abcdef"):
        Directions.load(path, weights="0123456789abcdef")
    from mechrefusal.forward import RefusalMetric

    other = replace(found, weights="0123456789abcdef")
    with pytest.raises(MechrefusalError, match=f"0123456789abcdef.*{found.weights}"):
        geometry.score(tiny_hooked, other, ASKED, RefusalMetric((), (1,), (2,)))


def test_files_that_hold_no_directions(tmp_path, tiny):
    (tmp_path / "text").write_text("no tensors")
    save_file({"values": torch.ones(2)}, tmp_path / "bare.safetensors")
    for path in (tmp_path / "nowhere", tmp_path / "text", tmp_path / "bare.safetensors", tiny / "model.safetensors"):
        with pytest.raises(MechrefusalError, match=path.name):
            Directions.load(path, weights=None)


def test_a_part_of_the_prompts_in_the_same_pass(tiny_hooked):
    """Both are what two calls give: folds, twins, instruction means and all."""
    whole = prompts.builtin().direction.take(20)
    part = prompts.Split(whole.harmful[[True, False] * 10], whole.harmless[[True] * 7 + [False] * 13])
    both = geometry.difference_in_means_of_part(tiny_hooked, whole, part)
    for found, contrast in zip(both, (whole, part), strict=True):
        alone = geometry.difference_in_means(tiny_hooked, contrast)
        for name in ("values", "sums", "counts", "instruction"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-5, atol=1e-5)
        assert (found.n_harmful, found.n_harmless, found.paired) == (alone.n_harmful, alone.n_harmless, alone.paired)
        assert (found.positions, found.tokens, found.classes) == (alone.positions, alone.tokens, alone.classes)


def test_a_part_must_be_one(tiny_hooked):
    whole = prompts.builtin().direction.take(4)
    other = prompts.builtin().validation.take(4)
    with pytest.raises(MechrefusalError, match="is not among the prompts"):
        geometry.difference_in_means_of_part(tiny_hooked, whole, other)
    with pytest.raises(MechrefusalError, match="got 0 and 4"):
        geometry.difference_in_means_of_part(tiny_hooked, whole, prompts.Split(whole.harmful[:0], whole.harmless))
