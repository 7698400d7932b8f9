"""Compile RASP programs with tracr and write them as plain weights, with the circuit that they are.

The project does not depend on tracr (nor on jax, which it needs, about 650 MB), so this runs in an environment of its
own, and what it writes is committed:

    python3 -m venv ../tracr && ../tracr/bin/pip install tracr-pypi==1.0.0 safetensors
    ../tracr/bin/python calibration/compile_tracr.py calibration/programs

tracr: Lindner et al., "Tracr: Compiled Transformers as a Laboratory for Interpretability", 2301.05062. Every program is
compiled with causal attention, and its answer is read at the last position.
"""

import itertools
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

MAX_LENGTH, N_EXAMPLES = 5, 60
CHANGES = 1e-3
"""Least range of a direction over all inputs for it to be one that changes."""


@dataclass(frozen=True)
class Program:
    """A RASP program and its vocabulary."""

    make: Callable[[], rasp.SOp]
    vocabulary: str


PROGRAMS = {
    "frac_prevs": Program(lambda: lib.make_frac_prevs(rasp.tokens == "x"), "xyz"),
    "hist": Program(lib.make_hist, "abc"),
    "detect_pattern": Program(lambda: lib.detect_pattern(rasp.tokens, "abc"), "abc"),
    "pair_balance": Program(lambda: lib.make_pair_balance(rasp.tokens, "(", ")"), "()x"),
    "reverse": Program(lambda: lib.make_reverse(rasp.tokens), "abc"),
    "shuffle_dyck": Program(lambda: lib.make_shuffle_dyck(["()"]), "()x"),
    "count_less_freq": Program(lambda: lib.make_count_less_freq(2), "abc"),
}


def weights_of(model) -> dict[str, np.ndarray]:
    """Weights as [in, out] by name; biases are zero in all that tracr compiles, which is checked."""
    found = {
        "token_embed": np.asarray(model.params["token_embed"]["embeddings"]),
        "pos_embed": np.asarray(model.params["pos_embed"]["embeddings"]),
    }
    names = {"attn/query": "query", "attn/key": "key", "attn/value": "value", "attn/linear": "output"}
    names |= {"mlp/linear_1": "mlp_in", "mlp/linear_2": "mlp_out"}
    for layer, (theirs, ours) in itertools.product(range(model.model_config.num_layers), names.items()):
        module = model.params[f"transformer/layer_{layer}/{theirs}"]
        assert not np.asarray(module["b"]).any(), f"layer {layer} {theirs} has a bias"
        found[f"{layer}.{ours}"] = np.asarray(module["w"])
    return {name: _small(np.ascontiguousarray(weight, dtype=np.float32)) for name, weight in found.items()}


def _small(weight: np.ndarray) -> np.ndarray:
    """In float16 where that is exact."""
    half = weight.astype(np.float16)
    return half if (half.astype(np.float32) == weight).all() else weight


def nodes_of(model, weights: dict[str, np.ndarray]) -> dict[str, dict[str, list[str]]]:
    """What every node reads and writes: labels of the directions of the residual stream, exact from the weights."""
    labels, config = model.residual_labels, model.model_config
    width = config.key_size

    def named(matrix: np.ndarray) -> list[str]:
        return [labels[i] for i in np.flatnonzero(np.abs(matrix).sum(1))]

    embedding = np.concatenate([weights["token_embed"], weights["pos_embed"]])
    nodes = {"embedding": {"reads": [], "writes": named(embedding.T)}}
    for layer in range(config.num_layers):
        for head in range(config.num_heads):
            part = slice(head * width, (head + 1) * width)
            read = np.concatenate([weights[f"{layer}.{name}"][:, part] for name in ("query", "key", "value")], axis=1)
            nodes[f"head {layer}.{head}"] = {
                "reads": named(read),
                "writes": named(weights[f"{layer}.output"][part].T),
            }
        nodes[f"mlp {layer}"] = {
            "reads": named(weights[f"{layer}.mlp_in"]),
            "writes": named(weights[f"{layer}.mlp_out"].T),
        }
    nodes["logits"] = {"reads": [labels[i] for i in output_dims(model)], "writes": []}
    return nodes


def output_dims(model) -> list[int]:
    """Dimensions of the residual stream that hold the answer, in the order of the output's encoding."""
    encoder = model.output_encoder
    if hasattr(encoder, "encoding_map"):
        basis = sorted(encoder.encoding_map, key=encoder.encoding_map.get)
        name = {str(value): value for value in basis}
        (label,) = {one.rsplit(":", 1)[0] for one in model.residual_labels if _is_output(one, model, name)}
        return [model.residual_labels.index(f"{label}:{value}") for value in basis]
    return [model.residual_labels.index(model.output_label)]


def _is_output(label: str, model, values: dict) -> bool:
    return label.rsplit(":", 1)[0] == model.output_label and label.rsplit(":", 1)[-1] in values


def order(node: str) -> float:
    """When a node runs."""
    if node == "embedding":
        return -1
    if node == "logits":
        return float("inf")
    kind, where = node.split()
    return float(where.split(".")[0]) + (0.5 if kind == "mlp" else 0)


def changing(model, inputs: list[tuple[str, ...]]) -> dict[str, set[str]]:
    """Directions that differ between inputs after "embedding", and in what "attn 0", "mlp 0", ... write."""
    seen: dict[str, list[np.ndarray]] = {}
    for text in inputs:
        output = model.apply(["compiler_bos", *text])
        seen.setdefault("embedding", []).append(np.asarray(output.input_embeddings[0]))
        for i, written in enumerate(output.layer_outputs):
            seen.setdefault(f"{('attn', 'mlp')[i % 2]} {i // 2}", []).append(np.asarray(written[0]))
    return {
        name: {model.residual_labels[i] for i in np.flatnonzero(np.ptp(np.stack(rows), axis=0).max(0) > CHANGES)}
        for name, rows in seen.items()
    }


def circuit_of(nodes: dict[str, dict[str, list[str]]], changes: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Edges along which what differs between inputs of this length reaches the answer.

    An edge is live where the receiver reads a direction that the sender writes and that takes different values there;
    of the live edges those are kept from which live ones lead to the answer.
    """

    def written(sender: str) -> set[str]:
        where = f"attn {sender.split()[1].split('.')[0]}" if sender.startswith("head") else sender
        return set(nodes[sender]["writes"]) & changes.get(where, set())

    live = [
        (sender, receiver)
        for sender, receiver in itertools.permutations(nodes, 2)
        if order(sender) < order(receiver) and written(sender) & set(nodes[receiver]["reads"])
    ]
    needed = {"logits"}
    for receiver in sorted(nodes, key=order, reverse=True):
        if receiver in needed:
            needed |= {sender for sender, other in live if other == receiver}
    return [edge for edge in live if edge[1] in needed]


def compiled(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Weights of a program, and all that is known of it."""
    program = PROGRAMS[name]
    sop = program.make()
    model = compiling.compile_rasp_to_model(sop, set(program.vocabulary), MAX_LENGTH, causal=True)
    model.output_label = sop.label
    weights = weights_of(model)
    nodes, config = nodes_of(model, weights), model.model_config
    generator = random.Random(0)
    every = list(itertools.product(sorted(program.vocabulary), repeat=MAX_LENGTH))
    inputs = generator.sample(every, N_EXAMPLES)
    dims = output_dims(model)
    return weights, {
        "program": name,
        "tokens": {str(token): i for token, i in model.input_encoder.encoding_map.items()},
        "vocabulary": sorted(program.vocabulary),
        "length": MAX_LENGTH + 1,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "d_head": config.key_size,
        "d_mlp": config.mlp_hidden_size,
        "labels": model.residual_labels,
        "output": dims,
        "categorical": len(dims) > 1,
        "nodes": nodes,
        "edges": circuit_of(nodes, changing(model, inputs)),
        "examples": [
            {
                "input": "".join(text),
                "answer": np.asarray(model.apply(["compiler_bos", *text]).transformer_output[0, -1], dtype=np.float64)[
                    dims
                ]
                .round(6)
                .tolist(),
            }
            for text in inputs
        ],
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for one in PROGRAMS:
        weights, about = compiled(one)
        save_file(weights, folder / f"{one}.safetensors")
        (folder / f"{one}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        size = (folder / f"{one}.safetensors").stat().st_size
        print(f"{one}: {about['n_layers']} layers, {len(about['edges'])} edges, {size} bytes")
