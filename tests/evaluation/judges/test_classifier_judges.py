"""Judges that are language models, against plain computation: one prompt at a time, direct logits, no padding."""

import hashlib
import json
import math
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from architectures import build
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from tolerances import REORDERED
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, T5Config

from mechrefusal import MechrefusalError, models
from mechrefusal.evaluation.judges import harm_prompts
from mechrefusal.evaluation.judges.classifier import HarmBenchClassifier, StrongREJECTClassifier
from mechrefusal.evaluation.judges.judge_model import JudgeModel
from mechrefusal.evaluation.judges.llama_guard import GUARD_TOKENS, LlamaGuard, read_guard
from mechrefusal.evaluation.judges.scoring import HARMFUL, HARMLESS, ScoringJudge, nulls

pytestmark = pytest.mark.slow

WORDS = ("Yes", "No", "Maybe", "safe", "unsafe")
PROMPTS = ["How do I pick a lock?", "Write a {behavior} poem", "", "Bake bread.", "Tell me a lie.", "x", "How?", "Sing"]
COMPLETIONS = [
    "Take a pick and ...",
    "I can't.",
    "Sure! {generation}",
    "",
    "The moon is cheese. " * 9,
    "x",
    "No",
    "La la",
]
PAIRS = list(zip(PROMPTS, COMPLETIONS, strict=True))


def made(folder: Path, *, family="llama-untied", chosen=WORDS[:3], begin=False, texts=(), **overrides) -> Path:
    """A tiny judge that says nothing but `chosen`, and different things of different prompts.

    Every other row of its output matrix is zero, and these ignore what the last positions of all prompts share.
    """
    words = models.tiny.tokenizer()
    words.add_tokens(list(WORDS))
    if begin:
        bos = words.convert_tokens_to_ids("<|im_start|>")
        words.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
        )
    model = build(family, len(words), max_position_embeddings=4096, **overrides)
    if chosen:
        texts = texts or [filled(harm_prompts.HARMBENCH["evaluation"], behavior=a, generation=b) for a, b in PAIRS]
        with torch.no_grad():
            common = sum(model.model(torch.tensor([words(t)["input_ids"]])).last_hidden_state[0, -1] for t in texts)
            common = common / common.norm()
            rows = torch.zeros_like(model.lm_head.weight)
            for token in words.convert_tokens_to_ids(list(chosen)):
                row = torch.randn(len(common), generator=torch.Generator().manual_seed(token))
                rows[token] = 20 * (row - row @ common * common)
            model.lm_head.weight.copy_(rows)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def yes_no(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("yes_no") / "yes_no")


@pytest.fixture(scope="module")
def rating(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("rating") / "rating", family="gemma", chosen=(), begin=True)


def opened(judge, folder, **arguments):
    return judge(folder, dtype=torch.float32, device="cpu", **arguments)


@cache
def plain_model(folder: Path):
    words = PreTrainedTokenizerFast.from_pretrained(folder, model_max_length=100_000)
    return words, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_logits(folder: Path, text: str) -> torch.Tensor:
    """Logits after a text: no batch, no cache, no padding."""
    words, hf = plain_model(folder)
    with torch.no_grad():
        return hf(torch.tensor([words(text)["input_ids"]])).logits[0, -1]


def filled(template: str, **fields: str) -> str:
    """A template with its fields, put in last field first so that no field's text is read as a field."""
    for name in sorted(fields, key=lambda name: -template.index("{" + name + "}")):
        at = template.index("{" + name + "}")
        template = template[:at] + fields[name] + template[at + len(name) + 2 :]
    return template


def test_harmbench_reads_the_greedy_next_token(yes_no):
    words = PreTrainedTokenizerFast.from_pretrained(yes_no)
    judge = opened(HarmBenchClassifier, yes_no)
    table = judge.judge(PROMPTS, COMPLETIONS)
    answers = []
    for prompt, completion in PAIRS:
        text = filled(harm_prompts.HARMBENCH["evaluation"], behavior=prompt, generation=completion)
        answers.append(words.decode([int(plain_logits(yes_no, text).argmax())]))
    assert set(answers) == {"Yes", "No", "Maybe"}, "the test covers all three"
    meaning = {"Yes": (HARMFUL, 1.0), "No": (HARMLESS, 0.0), "Maybe": (None, None)}
    assert [
        (label, None if math.isnan(score) else score)
        for label, score in zip(table["label"], table["score"], strict=True)
    ] == [meaning[answer] for answer in answers]
    assert nulls(table) == answers.count("Maybe")
    for answer, because in zip(answers, table["because"], strict=True):
        assert answer in because
        assert ("neither yes nor no" in because) == (answer == "Maybe")
    assert list(table.columns) == ["label", "score", "because"]
    assert table["score"].dtype == "float64"
    assert isinstance(judge, ScoringJudge)


def test_harmbench_shows_the_context_of_a_contextual_behaviour(yes_no):
    judge = opened(HarmBenchClassifier, yes_no)
    contexts = ["Once upon a time.", None, "", "A recipe.", None, None, "ctx", "  "]
    table = judge.judge(PROMPTS, COMPLETIONS, contexts=contexts)
    words = PreTrainedTokenizerFast.from_pretrained(yes_no)
    for row, (prompt, completion, context) in enumerate(zip(PROMPTS, COMPLETIONS, contexts, strict=True)):
        if context:
            template = harm_prompts.HARMBENCH_CONTEXTUAL
            text = filled(template, context=context, behavior=prompt, generation=completion)
        else:
            text = filled(harm_prompts.HARMBENCH["evaluation"], behavior=prompt, generation=completion)
        logits = plain_logits(yes_no, text)
        token = int(logits.argmax())
        assert f"{words.decode([token])!r} (probability {logits.softmax(-1)[token]:.2f})" in table["because"][row]
    with pytest.raises(MechrefusalError, match="contexts must be one a prompt"):
        judge.judge(PROMPTS, COMPLETIONS, contexts=["only one"])
    with pytest.raises(MechrefusalError, match="context 1 to judge is 3"):
        judge.judge(PROMPTS[:2], COMPLETIONS[:2], contexts=[None, 3])


def test_harmbench_sees_the_first_512_tokens_of_a_completion(tmp_path, monkeypatch):
    folder = made(tmp_path / "judge", begin=True)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    assert words("a")["input_ids"][0] == words.bos_token_id
    long = "one two three four five. " * 200
    kept = words.decode(words(long)["input_ids"][:512], skip_special_tokens=True)
    assert long.startswith(kept)
    assert len(kept) < len(long)
    judge = opened(HarmBenchClassifier, folder)
    asked = []
    monkeypatch.setattr(JudgeModel, "judged", spied(JudgeModel.judged, asked))
    table = judge.judge(["a", "a", "a"], [long, kept, f"{kept[:50]}<|im_end|>"])
    assert "only the first 512 of" in table["because"][0]
    assert not any("only" in because for because in table["because"][1:])
    for ids, shown in zip(asked[0], [kept, kept, kept[:50]], strict=True):
        assert ids == words(filled(harm_prompts.HARMBENCH["evaluation"], behavior="a", generation=shown))["input_ids"]


def spied(judged, asked):
    """`JudgeModel.judged` that notes the token ids that it is given."""

    def noting(self, prompts, *arguments, **options):
        asked.append(list(prompts))
        return judged(self, prompts, *arguments, **options)

    return noting


def test_both_published_wordings_of_harmbench_have_their_own_name(yes_no):
    evaluation = opened(HarmBenchClassifier, yes_no)
    card = opened(HarmBenchClassifier, yes_no, prompt="model_card")
    assert evaluation.name == f"harmbench_evaluation_1(yes_no@{models.hash_checkpoint(yes_no)[:8]})"
    assert card.name == f"harmbench_model_card_1(yes_no@{models.hash_checkpoint(yes_no)[:8]})"
    text = filled(harm_prompts.HARMBENCH["model_card"], behavior="a", generation="b")
    expected = plain_logits(yes_no, text).softmax(-1).max()
    assert f"(probability {expected:.2f})" in card.judge(["a"], ["b"])["because"][0]
    with pytest.raises(MechrefusalError, match="no prompt 'other'"):
        HarmBenchClassifier(yes_no, prompt="other")


def test_strongreject_is_the_expected_rating(rating):
    words = PreTrainedTokenizerFast.from_pretrained(rating)
    judge = opened(StrongREJECTClassifier, rating)
    table = judge.judge(PROMPTS, COMPLETIONS)
    digits = words.convert_tokens_to_ids(list("12345"))
    for row, (prompt, completion) in enumerate(PAIRS):
        shown = f"<|im_start|>{completion}"
        text = filled(harm_prompts.STRONGREJECT_FINETUNED, forbidden_prompt=prompt, response=shown)
        logits = plain_logits(rating, text).double()
        weights = [math.exp(logits[digit]) for digit in digits]
        mean = sum(place * weight for place, weight in enumerate(weights, start=1)) / sum(weights)
        assert table["score"][row] == pytest.approx((mean - 1) / 4, abs=REORDERED)
        assert f"expected rating {mean:.2f} of 5" in table["because"][row]
        mass = sum(weights) / logits.exp().sum().item()
        assert f"hold {mass:.2f} of the probability" in table["because"][row]
    assert table["score"].nunique() == len(PROMPTS)
    assert table["label"].isna().all()
    assert nulls(table) == 0
    assert judge.name == f"strongreject_finetuned_1(rating@{models.hash_checkpoint(rating)[:8]})"


def test_strongreject_sees_the_last_512_tokens_of_a_completion(rating):
    words = PreTrainedTokenizerFast.from_pretrained(rating)
    long = "one two three four five. " * 200
    ids = words(long)["input_ids"]
    kept = words.decode([ids[0], *ids[-511:]])
    assert kept.startswith("<|im_start|>")
    assert long.endswith(kept.removeprefix("<|im_start|>"))
    table = opened(StrongREJECTClassifier, rating).judge(["a"], [long])
    assert f"only the last 512 of {len(ids)} tokens" in table["because"][0]
    digits = words.convert_tokens_to_ids(list("12345"))
    text = filled(harm_prompts.STRONGREJECT_FINETUNED, forbidden_prompt="a", response=kept)
    shares = plain_logits(rating, text)[digits].softmax(-1)
    assert table["score"][0] == pytest.approx(float(shares @ torch.tensor([0, 0.25, 0.5, 0.75, 1])), abs=REORDERED)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_depend_on_the_batch(yes_no, rating, batch_size):
    order = [5, 1, 7, 0, 3, 2, 6, 4]
    for judge, folder in ((HarmBenchClassifier, yes_no), (StrongREJECTClassifier, rating), (LlamaGuard, yes_no)):
        whole = opened(judge, folder).judge(PROMPTS, COMPLETIONS)
        table = opened(judge, folder, batch_size=batch_size).judge(
            [PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order]
        )
        pd.testing.assert_frame_equal(table, whole.iloc[order].reset_index(drop=True), rtol=REORDERED)


def test_nothing_to_judge_and_what_is_no_text(yes_no):
    for judge in (opened(HarmBenchClassifier, yes_no), opened(LlamaGuard, yes_no)):
        table = judge.judge([], [])
        assert list(table.columns) == ["label", "score", "because"]
        assert len(table) == 0
        with pytest.raises(MechrefusalError, match="one completion a prompt"):
            judge.judge(["a"], [])
        with pytest.raises(MechrefusalError, match="not a string"):
            judge.judge(["a"], [None])


def test_a_prompt_beyond_the_context_is_a_null(tmp_path):
    folder = made(tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    base = len(PreTrainedTokenizerFast.from_pretrained(folder)(harm_prompts.HARMBENCH["evaluation"])["input_ids"])
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": base + 30}))
    table = opened(HarmBenchClassifier, folder).judge(["a", "lock " * 60, "b"], ["x", "y", "z"])
    assert nulls(table.iloc[[1]]) == 1
    assert "its context holds" in table["because"][1]
    alone = opened(HarmBenchClassifier, folder).judge(["a", "b"], ["x", "z"])
    pd.testing.assert_frame_equal(table.iloc[[0, 2]].reset_index(drop=True), alone)


def test_logits_that_are_not_finite_are_nulls(yes_no, rating):
    for judge in (opened(HarmBenchClassifier, yes_no), opened(StrongREJECTClassifier, rating)):
        hook = judge._judge.model.register_forward_hook(
            lambda _, __, output: output.__setitem__("logits", output.logits * float("nan"))
        )
        table = judge.judge(["a", "b"], ["x", "y"])
        hook.remove()
        assert nulls(table) == 2
        assert set(table["because"]) == {"the judge's logits are not finite"}


def conversation(prompt: str, completion: str) -> str:
    """What the tiny model's chat template shows of two turns, and the mark of the third."""
    return (
        "<|im_start|>system\nYou are a tiny assistant<|im_end|>\n"
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{completion}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_llama_guard_reads_the_first_line_of_a_greedy_answer(tmp_path):
    texts = [conversation(prompt, completion) for prompt, completion in PAIRS]
    texts += [f"{text}{word}" for text in texts for word in ("safe", "unsafe", "\n")]
    folder = made(tmp_path / "guard", chosen=("safe", "unsafe", "Ċ", "<|im_end|>"), texts=texts)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    judge = opened(LlamaGuard, folder)
    prompts = [f"{prompt} {i}" for i in range(5) for prompt in PROMPTS]
    table = judge.judge(prompts, COMPLETIONS * 5)
    for row, (prompt, completion) in enumerate(zip(prompts, COMPLETIONS * 5, strict=True)):
        text = conversation(prompt, completion)
        ids, found = words(text)["input_ids"], []
        with torch.no_grad():
            while len(found) < GUARD_TOKENS:
                token = hf(torch.tensor([[*ids, *found]])).logits[0, -1].argmax().item()
                if token == words.eos_token_id:
                    break
                found.append(token)
        expected = read_guard(words.decode(found, skip_special_tokens=True))
        assert (table["label"][row], table["because"][row]) == (expected.label, expected.because)
        assert table["score"][row] == pytest.approx(expected.score, nan_ok=True)
    assert table["label"].nunique() == 2, "the test covers safe, unsafe and neither"
    assert 0 < nulls(table) < len(table)
    digest = hashlib.sha256(words.chat_template.encode()).hexdigest()[:8]
    assert judge.name == f"llama_guard_1(guard@{models.hash_checkpoint(folder)[:8]}, template {digest})"


@pytest.mark.parametrize(
    ("answer", "label", "score", "because"),
    [
        ("\n\nsafe", HARMLESS, 0.0, "safe"),
        ("unsafe\nS1,S10", HARMFUL, 1.0, "unsafe: S1,S10"),
        ("Unsafe \n S9", HARMFUL, 1.0, "unsafe: S9"),
        ("unsafe", HARMFUL, 1.0, "unsafe"),
        ("unsafe S1", None, None, "answered 'unsafe S1', whose first line is neither safe nor unsafe"),
        ("I think it is safe", None, None, None),
        ("", None, None, "answered '', whose first line is neither safe nor unsafe"),
    ],
)
def test_what_an_answer_of_llama_guard_means(answer, label, score, because):
    row = read_guard(answer)
    assert row.label == label
    assert math.isnan(row.score) if score is None else row.score == score
    assert because is None or row.because == because


def test_llama_guard_adapts_to_its_chat_template(tmp_path, yes_no):
    parts = "{% for m in messages %}[{{ m['role'] }}]{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
    shutil.copytree(yes_no, tmp_path / "parts")
    (tmp_path / "parts" / "chat_template.jinja").write_text(parts)
    asked = opened(LlamaGuard, tmp_path / "parts")
    expected = plain_logits(yes_no, "[user]ab[assistant]cd")
    words = PreTrainedTokenizerFast.from_pretrained(yes_no)
    assert words.decode([int(expected.argmax())]) in asked.judge(["ab"], ["cd"])["because"][0]

    shutil.copytree(yes_no, tmp_path / "blind")
    (tmp_path / "blind" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(MechrefusalError, match=r"blind' does not show a user's and an assistant's turn"):
        LlamaGuard(tmp_path / "blind")
    (tmp_path / "blind" / "chat_template.jinja").unlink()
    with pytest.raises(MechrefusalError, match="no chat template"):
        LlamaGuard(tmp_path / "blind")


def test_a_judge_that_is_an_adapter(tmp_path, rating):
    from peft import LoraConfig, get_peft_model

    hf = AutoModelForCausalLM.from_pretrained(rating, dtype=torch.float32)
    adapted = get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    PreTrainedTokenizerFast.from_pretrained(rating).save_pretrained(merged)

    judge = opened(StrongREJECTClassifier, tmp_path / "adapter")
    expected = opened(StrongREJECTClassifier, merged).judge(PROMPTS, COMPLETIONS)["score"]
    found = judge.judge(PROMPTS, COMPLETIONS)["score"]
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), abs=REORDERED)
    without = opened(StrongREJECTClassifier, rating).judge(PROMPTS, COMPLETIONS)["score"]
    assert (found - without).abs().max() > 1e-3
    assert "adapter@" in judge.name
    assert f"+rating@{models.hash_checkpoint(rating)[:8]}" in judge.name

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(MechrefusalError, match="gone' does not exist"):
        StrongREJECTClassifier(tmp_path / "adapter")
    again = opened(StrongREJECTClassifier, tmp_path / "adapter", base=rating)
    assert again.judge(PROMPTS, COMPLETIONS)["score"].equals(found)
    other = made(tmp_path / "other", family="llama-untied")
    with pytest.raises(MechrefusalError, match="does not fit the base model"):
        StrongREJECTClassifier(tmp_path / "adapter", base=other)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(MechrefusalError, match=r"does not fit the base model .*missing adapter keys"):
        StrongREJECTClassifier(tmp_path / "adapter", base=rating)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(MechrefusalError, match=r"has no adapter_model\.safetensors"):
        StrongREJECTClassifier(tmp_path / "adapter", base=rating)


def test_a_judge_that_cannot_be_loaded(tmp_path, yes_no, monkeypatch):
    with pytest.raises(MechrefusalError, match=r"nowhere' does not exist; give a Hugging Face folder or a hub name"):
        HarmBenchClassifier(tmp_path / "nowhere")

    def no_network(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(MechrefusalError, match=r"'cais/HarmBench-Llama-2-13b-cls' is no folder.*no route to host\)"):
        HarmBenchClassifier()

    shutil.copytree(yes_no, tmp_path / "mute", ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    with pytest.raises(MechrefusalError, match=r"mute' cannot be used: .* no tokenizer"):
        HarmBenchClassifier(tmp_path / "mute")

    shutil.copytree(yes_no, tmp_path / "t5")
    T5Config(vocab_size=1024, d_model=8, d_ff=8, num_layers=1, num_heads=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(MechrefusalError, match=r"t5' cannot be used: .* cannot be loaded"):
        HarmBenchClassifier(tmp_path / "t5")

    shutil.copytree(yes_no, tmp_path / "words")
    few = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "yes": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=few, unk_token="<unk>", eos_token="</s>").save_pretrained(
        tmp_path / "words"
    )
    with pytest.raises(MechrefusalError, match=r"words' has no token '1'"):
        StrongREJECTClassifier(tmp_path / "words")


def test_a_judge_from_the_hub_is_named_after_its_commit(yes_no, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    shutil.copytree(yes_no, snapshot)
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert JudgeModel.open("owner/judge", dtype=torch.float32, device="cpu").id == "owner/judge@01234567"
    JudgeModel.open("owner/judge@v2", dtype=torch.float32, device="cpu")
    assert asked == [("owner/judge", None), ("owner/judge", "v2")]


def test_the_published_prompts_are_not_edited():
    texts = {
        **harm_prompts.HARMBENCH,
        "contextual": harm_prompts.HARMBENCH_CONTEXTUAL,
        "finetuned": harm_prompts.STRONGREJECT_FINETUNED,
        "system": harm_prompts.STRONGREJECT_RUBRIC_SYSTEM,
        "rubric": harm_prompts.STRONGREJECT_RUBRIC,
    }
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()} == {
        "evaluation": "788f4f6aa1491c43",
        "model_card": "4016eb2e1758f37c",
        "contextual": "5d6bb9e3cf4d1e5f",
        "finetuned": "d90102b02d66b34a",
        "system": "7919b6d41af2dc9f",
        "rubric": "0a282b857e1e53ff",
    }, "a prompt that changes needs a new version in the judge's name"
    assert harm_prompts.STRONGREJECT_FINETUNED.endswith("### Answer: ")
