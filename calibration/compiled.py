"""Programs compiled by tracr as models that the package opens like any other.

tracr's transformers have no layer norm, learned positions and ReLU MLPs without gates. A Llama computes the same where
the residual stream holds one more dimension with a large constant: norms divide by that constant alone and their
weights multiply by it again (up to 3e-7 of an activation), gates are the ReLU and what they multiply is that constant's
1, rotary embeddings turn a pair of dimensions of each head that nothing uses, and a token of the vocabulary is a token
of the program at one position.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mechrefusal import models
from mechrefusal.causal.circuits.paths import EMBEDDING, Edge, Node, logits_of

PROGRAMS = Path(__file__).parent / "programs"
CONSTANT = 4096.0
STILL = 1e300
"""Base of the rotary embedding: all but its first frequency are 0."""


@dataclass(frozen=True)
class Compiled:
    """A program as `compile_tracr` wrote it.

    Fields:
        about: the JSON file: tokens, sizes, the output's dimensions, what nodes read and write, edges, examples.
        weights: by name, [in, out].
        model: the hooked transformer.
    """

    name: str
    about: dict[str, Any]
    weights: dict[str, Tensor]
    model: Any

    @property
    def categorical(self) -> bool:
        """Whether the answer is one of several values; else a number."""
        return bool(self.about["categorical"])

    @cached_property
    def edges(self) -> frozenset[Edge]:
        """The true circuit."""
        return frozenset((self.node(sender), self.node(receiver)) for sender, receiver in self.about["edges"])

    @cached_property
    def nodes(self) -> frozenset[Node]:
        """Heads and MLPs of the true circuit."""
        return frozenset(node for edge in self.edges for node in edge if node.component in ("head", "mlp"))

    def node(self, name: str) -> Node:
        """A node by its name in the file, which is its name in tables."""
        if name in ("embedding", "logits"):
            return EMBEDDING if name == "embedding" else logits_of(self.model)
        kind, where = name.split()
        layer, _, head = where.partition(".")
        return Node(int(layer), "head", int(head)) if kind == "head" else Node(int(layer), "mlp")

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Of an input of the program, with tracr's begin token before it."""
        tokens = self.about["tokens"]
        return tuple(i * len(tokens) + tokens[token] for i, token in enumerate(["compiler_bos", *text]))

    def answer(self, text: str) -> Tensor:
        """Of the model at the last position: a score for each value, or the number."""
        with torch.no_grad():
            logits = self.model(torch.tensor([self.token_ids(text)]))[0, -1]
        n = len(self.about["output"])
        return logits[:n] - logits[n]  # the unembedding is centred: the row after the answer's reads nothing

    def largest_error(self) -> float:
        """Largest difference of an answer from tracr's own, over the examples in the file."""
        return max(
            float((self.answer(one["input"]) - torch.tensor(one["answer"])).abs().max())
            for one in self.about["examples"]
        )


def load(name: str, folder: Path) -> Compiled:
    """The program, written to `folder` as a Hugging Face model and opened there."""
    about = json.loads((PROGRAMS / f"{name}.json").read_text(encoding="utf-8"))
    weights = {key: value.float() for key, value in load_file(PROGRAMS / f"{name}.safetensors").items()}
    words = models.tiny.tokenizer()  # every checkpoint has one; programs are given as token ids
    with models.library_output.quiet():
        llama(about, weights, len(words)).save_pretrained(folder)
        words.save_pretrained(folder)
    return Compiled(name, about, weights, models.load_hooked(folder, device="cpu"))


@torch.no_grad()
def llama(about: dict[str, Any], weights: dict[str, Tensor], least_vocabulary: int) -> LlamaForCausalLM:
    """The same function as a Llama. The first logits are the answer's."""
    width, n_tokens, inner = len(about["labels"]), len(about["tokens"]), about["d_head"]
    d_head = 2 * (inner + 1)  # dimensions 0 and inner + 1 of a head are those that are turned
    d_model = -(-(width + 1) // about["n_heads"]) * about["n_heads"]  # a multiple, as the configuration asks
    config = LlamaConfig(
        vocab_size=max(n_tokens * about["length"], least_vocabulary),
        hidden_size=d_model,
        intermediate_size=about["d_mlp"],
        num_hidden_layers=about["n_layers"],
        num_attention_heads=about["n_heads"],
        num_key_value_heads=about["n_heads"],
        head_dim=d_head,
        hidden_act="relu",
        rms_norm_eps=0.0,
        rope_theta=STILL,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.fill_(CONSTANT / d_model**0.5 if "norm" in name else 0.0)
    embedding = model.model.embed_tokens.weight
    embedding[:, width] = CONSTANT
    both = weights["pos_embed"][:, None] + weights["token_embed"][None]
    embedding[: both.shape[0] * n_tokens, :width] = both.flatten(0, 1)
    for layer, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        for head in range(about["n_heads"]):
            theirs = slice(head * inner, (head + 1) * inner)
            ours = slice(head * d_head + 1, head * d_head + 1 + inner)
            # tracr divides by the root of its own width of heads.
            attention.q_proj.weight[ours, :width] = weights[f"{layer}.query"][:, theirs].T * (d_head / inner) ** 0.5
            attention.k_proj.weight[ours, :width] = weights[f"{layer}.key"][:, theirs].T
            attention.v_proj.weight[ours, :width] = weights[f"{layer}.value"][:, theirs].T
            attention.o_proj.weight[:width, ours] = weights[f"{layer}.output"][theirs].T
        mlp.gate_proj.weight[:, :width] = weights[f"{layer}.mlp_in"].T
        mlp.up_proj.weight[:, width] = 1 / CONSTANT
        mlp.down_proj.weight[:width] = weights[f"{layer}.mlp_out"].T
    model.lm_head.weight[range(len(about["output"])), about["output"]] = 1
    return model.eval()
