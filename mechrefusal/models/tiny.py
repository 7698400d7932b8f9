"""A tiny chat model with random weights, made in a second: Llama architecture with grouped-query heads.

It answers nothing sensible. It is there so that every stage can be tried, and tested, without a download.
"""

import csv
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechrefusal.files import whole_folder
from mechrefusal.models.library_output import quiet

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a tiny assistant<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the built-in prompts, with a ChatML template that carries a system message."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
    )


def make(folder: Path | str, *, seed: int = 0, n_layers: int = 4, d_model: int = 64, tied: bool = True) -> Path:
    """Write a tiny chat model to `folder` as a plain Hugging Face folder and return its path."""
    own_tokenizer = tokenizer()
    config = LlamaConfig(
        vocab_size=len(own_tokenizer),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=own_tokenizer.bos_token_id,
        eos_token_id=own_tokenizer.eos_token_id,
        pad_token_id=own_tokenizer.pad_token_id,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with whole_folder(folder) as draft, quiet():
        model.save_pretrained(draft)
        own_tokenizer.save_pretrained(draft)
    return Path(folder)


def _corpus() -> list[str]:
    folder = files("mechrefusal.prompts") / "builtin"
    texts = ["Sorry, I can't do that.", "Sure, here is how to do it.", "system", "user", "assistant"] * 5
    for name in ("utility.csv", "overrefusal.csv"):
        text = (folder / name).read_text(encoding="utf-8")
        texts += [row["prompt"] for row in csv.DictReader(text.splitlines())]
    return texts
