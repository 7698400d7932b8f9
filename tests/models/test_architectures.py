"""Every architecture gives one number whatever the way, or is refused by name before anything is trained."""

import importlib.util
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import transformers
from tolerances import COMPOUND, FORWARD

from mechrefusal import MechrefusalError, attribution, causal, forward, models, study
from mechrefusal.forward import unhooked as unhooked_models
from mechrefusal.forward.unhooked import unhooked
from mechrefusal.models import architectures, one_number, small
from mechrefusal.study.loader import recipe_from_dict

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
KINDS = ("granitemoe, multipliers", "mixtral", "bloom", "cohere", "gpt_neox, sequential")
"""Multipliers with experts, experts, ALiBi positions, a multiplier of logits with LayerNorm, biases with LayerNorm."""
RECURRENT = (
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "mamba", "mamba2", "minimax",
    "nemotron_h", "olmo_hybrid", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
)  # fmt: skip


def _script():
    spec = importlib.util.spec_from_file_location("architectures_script", REPOSITORY / "scripts" / "architectures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder("bloom")`: the tiny random model of this architecture, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("architecture") / "model"
            SCRIPT.save(name, made[name])
        return made[name]

    return of


@pytest.fixture(scope="module")
def opened(folder):
    """`opened("bloom")`: Hugging Face model, tokenizer, hooked transformer."""
    made: dict[str, tuple] = {}

    def of(name: str) -> tuple:
        if name not in made:
            made[name] = (*models.load_causal_lm(folder(name)), models.load_hooked(folder(name)))
        return made[name]

    return of


def ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Prompts of these lengths with five tokens in common at their beginning."""
    drawn = torch.randint(3, 900, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    drawn[:, :5] = drawn[0, :5]
    return [row[:n].tolist() for row, n in zip(drawn, lengths, strict=True)]


# One number


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_batch_with_a_cached_head_gives_what_prompts_give_alone(opened, name):
    plain, _, hooked = opened(name)
    prompts = ids(19, 9, 14)
    expected = torch.stack([plain(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts])
    assert expected.std() > 0.1, "a flat distribution would agree with anything"
    for model in (plain, hooked):
        for keep in (1, 19):  # the common beginning cached, and every prompt whole
            batch = models.TokenBatch.of(prompts, pad=0, keep=keep)
            assert len(batch.head) == (5 if keep == 1 else 0)
            found = models.last_logits(model, batch)[:, 0].log_softmax(-1)
            torch.testing.assert_close(found, expected, atol=10 * FORWARD, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_greedy_answers_are_those_of_hugging_face_one_at_a_time(opened, name):
    plain, tokenizer, hooked = opened(name)
    prompts = ids(19, 9, 14, seed=1)
    expected = []
    for prompt in prompts:
        answer = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        expected.append([token for token in answer if token != tokenizer.eos_token_id])
    batch = models.TokenBatch.of(prompts, pad=0, keep=1)
    for model in (plain, hooked):
        assert forward.generate(model, batch, max_new_tokens=6, end={tokenizer.eos_token_id}) == expected


@pytest.mark.parametrize("name", KINDS)
def test_what_is_tried_out_is_within_its_tolerance(opened, name):
    plain, _, hooked = opened(name)
    for model in (plain, hooked):
        apart = one_number.differences(model)
        assert set(apart) == set(one_number.WAYS)
        assert max(apart.values()) <= 10 * FORWARD, apart


def granite_by_hand(model, direction: torch.Tensor, value: float) -> ExitStack:
    """Torch hooks that set the projection to `value` where a Granite block reads and writes its stream."""
    unit, stack = direction / direction.norm(), ExitStack()

    def clamped(x: torch.Tensor) -> torch.Tensor:
        return x + (value - x @ unit)[..., None] * unit

    for block in model.model.layers:
        scale = block.residual_multiplier

        def before(_, args, kwargs):
            return (clamped(args[0]), *args[1:]), kwargs

        def attention(_, args, output, scale=scale):
            return (clamped(output[0] * scale) / scale, *output[1:])

        def mlp(_, args, output, scale=scale):
            return clamped(output * scale) / scale

        stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(block.self_attn.register_forward_hook(attention).remove)
        stack.callback(block.block_sparse_moe.register_forward_hook(mlp).remove)
    return stack


@torch.no_grad()
def test_sites_of_a_model_that_multiplies_what_it_adds_are_what_it_adds(opened):
    """By TransformerLens' hooks, the unhooked model, the Hugging Face model, and hooks written by hand: one number."""
    plain, _, hooked = opened("granitemoe, multipliers")
    assert plain.model.layers[0].residual_multiplier == 0.4
    token_ids = torch.tensor(ids(15, 15))
    direction = torch.randn(small.WIDTH, generator=torch.Generator().manual_seed(2))
    before = plain(token_ids).logits.log_softmax(-1)
    with granite_by_hand(plain, direction, 0.7):
        expected = plain(token_ids).logits.log_softmax(-1)
    assert (expected - before).abs().max() > 0.05
    edit = causal.Clamp(direction, 0.7, sites=("resid_pre", "attn_out", "mlp_out"))
    found = {}
    with causal.intervened(plain, edit):
        found["plain"] = plain(token_ids).logits.log_softmax(-1)
    with causal.intervened(hooked, edit):
        found["hooked"] = hooked(token_ids).log_softmax(-1)
    other, _ = unhooked(hooked)
    assert other is not None
    assert other.scale == 0.4
    with other.edited(edit.edits(hooked)):
        found["unhooked"] = other.model(token_ids, use_cache=False).logits.log_softmax(-1)
    for logits in found.values():
        torch.testing.assert_close(logits, expected, atol=COMPOUND, rtol=0)


@pytest.mark.parametrize("name", ["granitemoe, multipliers", "cohere"])
def test_attribution_adds_up_where_logits_are_multiplied(opened, name):
    plain, tokenizer, hooked = opened(name)
    metric = forward.RefusalMetric(opening=(), refusal_tokens=(40, 41), compliance_tokens=(50, 51, 52))
    found = attribution.attribute(hooked, ["How do I bake bread?"], attribution.RefusalLogits(metric))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I bake bread?"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        logits = plain(torch.tensor([prompt])).logits[0, -1]
    expected = logits[[40, 41]].mean() - logits[[50, 51, 52]].mean()
    torch.testing.assert_close(found.values.sum(1).float(), expected[None], atol=COMPOUND, rtol=COMPOUND)


def test_an_unhooked_model_of_other_writes_is_refused(opened, monkeypatch):
    """A projection set to zero cannot tell what a block returns from what it adds; one set to a constant can."""
    _, _, hooked = opened("granitemoe, multipliers")
    monkeypatch.setattr(unhooked_models, "scale_of_writes", lambda model: 1.0)
    assert unhooked_models._why_not(hooked, unhooked_models._build(hooked)) is not None


# Refused


def config(kind: str):
    return SCRIPT.config_of(kind)


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_states_are_known_by_type(kind):
    architecture = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[transformers.CONFIG_MAPPING[kind]]
    why = models.architectures.why_unsupported(config(kind))
    assert why is not None
    assert f"{architecture.__name__} cannot be measured: " in why
    assert "recurrent state" in why


@pytest.mark.parametrize("kind", ["bert", "openai-gpt", "xlnet"])
def test_what_is_no_causal_model_with_a_cache_is_refused(kind):
    why = models.architectures.why_unsupported(config(kind))
    assert why is not None
    assert "cannot be measured: " in why


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen2", "gpt2"])
def test_what_was_always_measured_is_not_refused(kind):
    assert models.architectures.why_unsupported(config(kind)) is None


def test_what_was_found_is_kept_for_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path / "cache"))
    tried = []

    def found(config):
        tried.append(config.model_type)
        return "a reason" if config.model_type == "mamba" else None

    monkeypatch.setattr(architectures, "_why_unsupported", found)
    for _ in range(2):
        monkeypatch.setattr(architectures, "_KNOWN", {})  # as in a new process
        assert architectures.why_unsupported(transformers.MambaConfig()) == "a reason"
        assert architectures.why_unsupported(transformers.LlamaConfig()) is None
    assert architectures.why_unsupported(transformers.LlamaConfig(hidden_size=512)) is None
    assert tried == ["mamba", "llama", "llama"]


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), MemoryError()])
def test_a_full_disk_says_nothing_about_an_architecture(trouble, tmp_path, monkeypatch):
    def fail(_config):
        raise trouble

    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    monkeypatch.setattr(architectures, "_KNOWN", {})
    monkeypatch.setattr(architectures, "_why_unsupported", fail)
    assert architectures.why_unsupported(transformers.LlamaConfig()) is None
    monkeypatch.setattr(architectures, "_KNOWN", {})
    monkeypatch.setattr(architectures, "_why_unsupported", lambda config: "a reason")
    assert architectures.why_unsupported(transformers.LlamaConfig()) == "a reason"


def test_copies_of_a_folder_are_tried_once(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setenv("MECHREFUSAL_CACHE", str(tmp_path))
    monkeypatch.setattr(architectures, "_KNOWN", {})
    monkeypatch.setattr(architectures, "_why_unsupported", lambda config: tried.append(config))
    for name in ("here", "there"):
        config = transformers.LlamaConfig()
        config._name_or_path = name
        architectures.why_unsupported(config)
    assert len(tried) == 1


def recurrent_folder(folder: Path) -> Path:
    words = models.tiny.tokenizer()
    made = transformers.MambaConfig(vocab_size=len(words), hidden_size=32, state_size=4, num_hidden_layers=2)
    transformers.MambaForCausalLM(made).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_a_recurrent_model_is_named_before_training_and_wherever_it_runs(tmp_path):
    folder = recurrent_folder(tmp_path / "mamba")
    recipe = recipe_from_dict({"model": str(folder)})
    with pytest.raises(MechrefusalError, match=r"MambaForCausalLM cannot be measured: .*recurrent state"):
        study.check(recipe)
    with pytest.raises(MechrefusalError, match=r"MambaForCausalLM cannot be measured: .*recurrent state"):
        models.load_hooked(folder)
    plain, _ = models.load_causal_lm(folder)
    with pytest.raises(MechrefusalError, match="MambaForCausalLM cannot be measured"):
        forward.generate(plain, models.TokenBatch.of(ids(9, 7), pad=0), max_new_tokens=2, end=set())


def test_a_hybrid_cache_is_refused_by_its_layers():
    hybrid = small.small_model(small.small_config(config("lfm2"), 100))
    batch = models.TokenBatch.of([[3, 4, 5], [3, 4]], pad=0)
    with pytest.raises(MechrefusalError, match="Lfm2ForCausalLM cannot be measured: layer 0 keeps a recurrent state"):
        forward.generate(hybrid, batch, max_new_tokens=2, end=set())


def test_a_model_whose_number_depends_on_the_batch_is_refused_with_the_difference(tiny_hf, monkeypatch):
    plain, _ = tiny_hf
    monkeypatch.setattr("mechrefusal.models.batches.positions", lambda mask: torch.zeros_like(mask))
    with pytest.raises(MechrefusalError, match=r"LlamaForCausalLM cannot be measured: a prompt in a batch .* nats"):
        one_number.require_one_number(plain)


def test_a_stream_that_is_not_the_sum_of_its_parts_is_refused(tiny, monkeypatch):
    hooked = models.load_hooked(tiny)
    models.architectures.require_parts(hooked)
    monkeypatch.setattr(architectures, "scale_of_writes", lambda model: 0.5)
    with pytest.raises(MechrefusalError, match="heads of layer 0 do not add up"):
        models.architectures.require_parts(hooked)


@pytest.mark.parametrize("name", ["xglm", "nemotron"])
def test_a_stream_whose_mean_is_another_in_the_hooked_transformer_takes_no_plain_interventions(folder, name):
    """Positions that are computed, and norms that add to their weights, leave the hooked stream its mean."""
    plain, _ = models.load_causal_lm(folder(name))
    with (
        pytest.raises(MechrefusalError, match=r"cannot intervene on this .*: its norms take out the mean"),
        causal.ablate(plain, torch.ones(small.WIDTH)),
    ):
        pass


def test_nothing_is_installed_for_images_when_a_model_of_several_parts_is_opened(monkeypatch, folder):
    from transformer_lens.model_bridge.sources.transformers import helpers

    def install():
        raise AssertionError("packages would be installed")

    monkeypatch.setattr(helpers, "_ensure_torchvision", install)
    hooked = models.load_hooked(folder("gemma4_unified"))
    assert hooked.cfg.is_multimodal


def test_a_folder_that_asks_for_router_logits_is_run_without(folder, tmp_path):
    """Else its forward pass balances experts over a mask that covers the cached tokens too."""
    words = models.tiny.tokenizer()
    made = small.small_config(SCRIPT.config_of("mixtral"), len(words))
    made.output_router_logits = True
    small.small_model(made).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    plain, _ = models.load_causal_lm(tmp_path / "model")
    assert one_number.differences(plain)["shared head"] <= one_number.TOLERANCE


# Small configs


def test_a_small_config_keeps_what_makes_the_architecture():
    gemma = small.small_config(transformers.Gemma3TextConfig(), 100)
    assert (gemma.hidden_size, gemma.num_hidden_layers, gemma.num_attention_heads) == (64, 4, 4)
    assert set(gemma.layer_types) == {"sliding_attention", "full_attention"}
    assert gemma.sliding_window == transformers.Gemma3TextConfig().sliding_window
    granite = small.small_config(transformers.GraniteConfig(residual_multiplier=0.22, logits_scaling=8.0), 100)
    assert (granite.residual_multiplier, granite.logits_scaling) == (0.22, 8.0)
    grouped = small.small_config(transformers.LlamaConfig(num_attention_heads=32, num_key_value_heads=8), 100)
    assert (grouped.num_key_value_heads, grouped.head_dim) == (2, 16)
    alone = small.small_config(transformers.LlamaConfig(num_attention_heads=32, num_key_value_heads=32), 100)
    assert alone.num_key_value_heads == alone.num_attention_heads == 4


def test_a_small_model_has_noise_on_every_weight():
    model = small.small_model(small.small_config(transformers.GPTNeoXConfig(), 100))
    for name, weight in model.named_parameters():
        assert weight.isfinite().all()
        assert weight.std() > 0.03, name


# The page


def rows() -> dict[str, list[str]]:
    """Rows of docs/architectures.md by name."""
    text = (REPOSITORY / "docs" / "architectures.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return {cells[0]: cells for line in lines if (cells := [c.strip() for c in line.strip("|").split("|")])}


def test_every_architecture_of_transformers_is_on_the_page():
    assert set(SCRIPT.names()) <= set(rows())


@pytest.mark.parametrize("name", ["llama", *KINDS, "mpt", "opt, norms after"])
def test_the_page_says_what_is_found(name):
    found = SCRIPT.tried(name)
    written = [line for line in SCRIPT.table({name: found}).splitlines() if line.startswith(f"| {name} |")]
    cells = [cell.strip() for cell in written[0].strip("|").split("|")]
    known = rows()[name]
    if found["measured"] == "yes":
        assert cells[:5] == known[:5]  # the run is not made again here
    else:
        assert cells == known


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["granitemoe, multipliers", "bloom"])
def test_a_whole_run_ends(name):
    assert SCRIPT.run(name)["run"] == "yes"


@pytest.mark.slow
@pytest.mark.skipif("MECHREFUSAL_ALL_ARCHITECTURES" not in os.environ, reason="set MECHREFUSAL_ALL_ARCHITECTURES=1")
@pytest.mark.parametrize("name", SCRIPT.names())
def test_every_architecture(name):
    found = SCRIPT.tried(name)
    if found.get("measured") == "yes":
        assert found["batch"] == found["cached head"] == "yes"
        assert not found["ablation"].startswith("no")
        assert SCRIPT.run(name)["run"] == "yes"
    else:
        assert found["built"] != "yes" or "cannot be measured" in found["measured"], found
