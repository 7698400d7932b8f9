"""Where models lie, and in which numbers: over two devices and in bfloat16 as on one in float32; no device is named
outside one file."""

import ast
import re
from pathlib import Path

import pretend_devices
import pytest
import torch

import mechrefusal
from mechrefusal import MechrefusalError, attribution, causal, devices, evaluation, forward, geometry, models, prompts
from mechrefusal.attribution import token_sources
from mechrefusal.attribution.readouts import Onto
from mechrefusal.causal.knockout.components import knock_out
from mechrefusal.models import Placement, placement, rounding

FIRST, SECOND = torch.device("cpu:1"), torch.device("cpu:2")
OVER_TWO = {
    **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1"), str(FIRST)),
    **dict.fromkeys(("model.layers.2", "model.layers.3", "model.norm", "lm_head"), str(SECOND)),
}
NAMES = re.compile(r"(cpu|cuda|mps|xpu|npu)(:\d+)?")
ASKED = prompts.builtin()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.tiny.make(tmp_path_factory.mktemp("untied") / "model", tied=False)


@pytest.fixture(scope="module")
def metric(tiny_hooked):
    return forward.RefusalMetric((), (11, 12), (40, 41))


def measured(model, metric):
    """What measures of every room read off a model."""
    split, pairs = ASKED.direction.take(3), ASKED.pairs[:1]
    directions = geometry.difference_in_means(model, split)
    scores = geometry.score(model, directions, ASKED.validation.take(2), metric, places=[(-1, 2), (-1, 3)])
    texts = split.harmful.texts
    return {
        "runner": forward.runner_of(model).name,
        "directions": directions.values,
        "scores": torch.tensor(scores.table[["bypass", "induce", "kl"]].to_numpy()),
        "heads": torch.tensor(causal.patching.heads(model, pairs, metric).table["raw"].to_numpy()),
        "stream": torch.tensor(causal.patching.residual(model, pairs, metric).table["raw"].to_numpy()),
        "attributed": attribution.direct.attribute(model, texts, Onto(directions.at(-1, 3).vector, 3)).values,
        "sources": torch.tensor(
            token_sources.sources(model, texts[:1], Onto(directions.at(-1, 3).vector, 3)).table["value"].to_numpy()
        ),
        "lens": attribution.lens.logit_lens(model, texts, metric).refusal,
        "knocked out": torch.tensor(
            knock_out(model, texts[:2], split.harmless.texts[:2], metric, layers=[1, 3]).table["refusal"].to_numpy()
        ),
    }


def test_measures_over_two_devices_are_those_on_one(folder, metric):
    one = models.load_hooked(folder)
    expected = measured(one, metric)
    answers = evaluation.generate(one, ASKED.direction.harmful.texts[:2], max_new_tokens=4)
    with pretend_devices.devices():
        model = models.load_hooked(folder, device_map=OVER_TWO)
        assert {weight.device for weight in model.original_model.parameters()} == {FIRST, SECOND}
        assert model.blocks[1].attn.W_Q.device == FIRST
        assert model.blocks[2].attn.W_Q.device == SECOND
        found = measured(model, metric)
        assert evaluation.generate(model, ASKED.direction.harmful.texts[:2], max_new_tokens=4) == answers
        found = {name: each.cpu() if isinstance(each, torch.Tensor) else each for name, each in found.items()}
    assert found.pop("runner") == expected.pop("runner") == "token trees"
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-4, rtol=1e-4, equal_nan=True, msg=name)


def test_tensors_of_two_pretended_devices_do_not_meet():
    with pretend_devices.devices():
        first, second = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        with pytest.raises(RuntimeError, match="meet"):
            first + second
        with pytest.raises(RuntimeError, match="of the host meet"):
            first + torch.ones(2)
        assert (first + second.to(FIRST)).device == FIRST


def test_a_map_spreads_a_model_that_is_known_by_its_outline_alone(folder):
    files = models.loaded_files(folder)
    outline = models.weights.load_weights(files, dtype=torch.float32, in_memory=False)
    whole = sum(weight.numel() * 4 for weight in outline.parameters())
    assert {weight.device.type for weight in outline.parameters()} == {"meta"}
    room = {"cpu:1": str(int(0.7 * whole)), "cpu:2": str(int(0.7 * whole))}
    for spread in ("auto", "balanced", "sequential"):
        made = Placement(device_map=spread, max_memory=room).devices(outline)
        shares = placement.shares_of(outline, made)
        assert set(shares) == {FIRST, SECOND}, spread
        assert sum(shares.values()) == pytest.approx(1)
        assert all(share <= 0.7 for share in shares.values()), spread
        blocks = [made[f"model.layers.{layer}"] for layer in range(4)]
        assert blocks == sorted(blocks, key=str), "blocks are in order"
    assert Placement(device_map="auto", max_memory=dict.fromkeys(room, "1GiB")).devices(outline) == {"": FIRST}
    with pytest.raises(MechrefusalError, match=r"weights of this LlamaForCausalLM take .* room for .* on cpu:1"):
        Placement(device_map="auto", max_memory=dict.fromkeys(room, "1KiB")).devices(outline)
    with pytest.raises(MechrefusalError, match=r"names no place for 'model\.norm\.weight'"):
        Placement(device_map={k: v for k, v in OVER_TWO.items() if k != "model.norm"}).devices(outline)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "float64"}, "dtype is 'float64': give one of float32, bfloat16, auto"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"device_map": "everywhere"}, "device_map is 'everywhere'"),
        ({"device": "cpu", "device_map": "auto"}, "a device or several"),
        ({"max_memory": {"cuda:0": "1GiB"}}, "give device_map"),
        ({"device_map": "auto", "max_memory": {"cuda:0": "much"}}, "'much' is no amount of memory"),
        ({"place": "cpu"}, "'place' says nothing about a model's place"),
    ],
)
def test_what_cannot_be_is_named(given, said):
    with pytest.raises(MechrefusalError, match=re.escape(said)):
        Placement().given(**given)


def test_a_gpu_that_is_not_there_is_named(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MechrefusalError, match=r"no device 'cuda:3' \(0 GPUs"):
        models.load_causal_lm(tiny, device="cuda:3")


def test_bfloat16_is_as_near_as_its_rounding_is_estimated(tiny, tiny_hooked, tiny_hf):
    model = models.load_hooked(tiny, dtype="bfloat16")
    assert model.blocks[0].attn.W_Q.dtype == model.W_E.dtype == torch.bfloat16
    assert model.unembed.weight.dtype == torch.float32, "logits are not rounded"
    assert forward.runner_of(model).name == "token trees"
    ids = torch.randint(3, 900, (3, 30), generator=torch.Generator().manual_seed(5))
    low, _ = models.load_causal_lm(tiny, dtype="bfloat16")

    def run():
        with torch.no_grad():
            return low(ids).logits.float().log_softmax(-1)

    exact = rounding.Allowance(1e-3, 1e-3)
    allowance = rounding.allowed(low, run, exact)
    with torch.no_grad():
        expected = tiny_hf[0](ids).logits.log_softmax(-1)
        hooked = model(ids).log_softmax(-1)
    assert allowance.found(hooked, run()).holds
    off = (run() - expected).square().mean(-1).sqrt()
    assert 0.1 < (off / allowance.spread).mean() < 1, "the estimate is of the size of the error itself"
    assert rounding.allowed(tiny_hf[0], run, exact) is exact, "float32 has its fixed allowance"
    with torch.no_grad():
        low.model.layers[1].mlp.down_proj.weight.mul_(0.8)
    assert not allowance.found(hooked, run()).holds, "a fault is larger"


def test_measures_in_bfloat16_are_near(folder, metric):
    found, expected = (measured(models.load_hooked(folder, dtype=dtype), metric) for dtype in ("bfloat16", "float32"))
    assert found.pop("runner") == expected.pop("runner")
    for name, values in expected.items():
        far = (found[name] - values).norm() / values.norm()
        assert 0 < far < 0.1, (name, far)
    for intervention in (
        causal.Ablation(torch.ones(64)), causal.Addition(torch.ones(64), 1), causal.Clamp(torch.ones(64), 0.3),
    ):  # fmt: skip
        (_, _, edit), *_ = intervention.edits(models.load_hooked(folder, dtype="bfloat16"))
        moved = edit(torch.randn((1, 5, 64), generator=torch.Generator().manual_seed(0)).bfloat16())
        assert moved.dtype == torch.bfloat16


def test_the_recipe_says_where_a_checkpoint_lies(tiny):
    checkpoint = models.Checkpoint.open(tiny, placement=Placement(dtype="bfloat16"))
    plain = models.Checkpoint.open(tiny)
    assert models.load_causal_lm(checkpoint)[0].dtype == torch.bfloat16
    assert models.load_causal_lm(checkpoint, dtype="float32")[0].dtype == torch.float32
    assert checkpoint == plain
    assert checkpoint.weights == plain.weights
    assert (checkpoint.computed, plain.computed) == (f"{plain.weights} in bfloat16", plain.weights)
    assert models.bytes_to_load(checkpoint) == models.bytes_to_load(plain) // 2
    assert models.bytes_to_hook(plain) - models.bytes_to_hook(checkpoint) == models.bytes_to_load(checkpoint)


def test_no_device_is_named_outside_one_file():
    """In code: what is printed or documented may say what a user gives."""
    package = Path(mechrefusal.__file__).parent
    named = []
    for path in sorted(package.rglob("*.py")):
        if path == Path(devices.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names_one = isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES.fullmatch(node.value)
            asks_torch = (
                isinstance(node, ast.Attribute)
                and node.attr in ("cuda", "mps", "xpu")
                and isinstance(node.value, ast.Name)
                and node.value.id == "torch"
            )
            if names_one or asks_torch:
                named.append(f"{path.relative_to(package)}:{node.lineno}")
    assert named == []
