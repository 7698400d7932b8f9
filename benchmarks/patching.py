"""Activation patching: ours against `transformer_lens.patching` on the same model, pair, metric and layers.

    python benchmarks/patching.py [--quick] [--model smollm2-135m-instruct] [--pair 0]

Heads (z at all positions) and the residual stream (before the block, by layer and position) are timed; of every other
site some patches are compared. Both sides have set themselves up before. The peer of resid_mid is a plain loop of
hooks that hands the patched stream to the norm and to the residual stream alike, as an edit at TransformerLens'
`hook_resid_mid` reaches the MLP only. The last line is one JSON object: name, peer, ratio (peer's seconds / ours),
goal, largest_difference, settings, for the heads; `residual` holds the same for the residual stream, `others` the
largest difference of each other site.
"""

import argparse
import json
import time
from importlib.metadata import version
from itertools import product

import pandas as pd
import torch
from transformer_lens import patching as peer

from mechrefusal import causal, forward, models, prompts
from mechrefusal.forward.patches import HEAD_SITES

OTHERS = {
    "resid_mid": lambda *a, **k: causal.patching.residual(*a, site="mid", **k),
    "resid_post": lambda *a, **k: causal.patching.residual(*a, site="post", **k),
    "attn_out": causal.patching.attention_output,
    "mlp_out": causal.patching.mlp_output,
    **{
        f"{site}{' by position' if by_position else ''}": (
            lambda *a, site=site, by_position=by_position, **k: causal.patching.heads(
                *a, site=site, by_position=by_position, **k
            )
        )
        for site in ("z", "pattern", "q", "k", "v")
        for by_position in (False, True)
        if site != "z" or by_position
    },
}


def patched_by_peer(model, target, cache, metric, name: str, cells: pd.DataFrame) -> torch.Tensor:
    """Metric under each of `cells` (layer, then pos or head_index or both): TransformerLens' own loop of hooks."""
    site = name.split()[0]
    if site == "resid_mid":
        return torch.stack([patched_mid(model, target, cache, metric, *cell) for cell in cells.itertuples(index=False)])
    by_position = "pos" in cells or "dest_pos" in cells
    setter = peer.layer_pos_patch_setter
    if site == "pattern":
        setter = peer.layer_head_pos_pattern_patch_setter if by_position else peer.layer_head_pattern_patch_setter
    elif site in HEAD_SITES:
        setter = peer.layer_pos_head_vector_patch_setter if by_position else peer.layer_head_vector_patch_setter
    return peer.generic_activation_patch(
        model=model,
        corrupted_tokens=target,
        clean_cache=cache,
        patching_metric=lambda logits: metric.of(logits[0, -1]),
        patch_setter=setter,
        activation_name=site,
        index_df=cells,
    )


def patched_mid(model, target, cache, metric, layer: int, position: int) -> torch.Tensor:
    """Metric under resid_mid patched where it counts: the MLP reads the patched stream, and is added to it."""

    def into_mlp(stream, hook):
        stream = stream.clone()
        stream[:, position] = cache[f"blocks.{layer}.hook_resid_mid"][:, position]
        return stream

    def into_stream(stream, hook):
        stream = stream.clone()
        stream[:, position] = cache[f"blocks.{layer}.hook_resid_mid"][:, position] + written[0][:, position]
        return stream

    written = []
    hooks = [
        (f"blocks.{layer}.hook_resid_mid", into_mlp),
        (f"blocks.{layer}.hook_mlp_out", lambda out, hook: written.append(out)),
        (f"blocks.{layer}.hook_resid_post", into_stream),
    ]
    with model.hooks(fwd_hooks=hooks):
        return metric.of(model(target)[0, -1])


def cells_of(table: pd.DataFrame, n_tokens: int, name: str) -> pd.DataFrame:
    """The peer's indices of the rows of one of our tables."""
    cells = {"layer": table["layer"]}
    position, head = table["position"] + n_tokens, table["head"]
    if name.startswith("pattern"):
        cells["head_index"] = head
        if "position" in name:
            cells["dest_pos"] = position
    else:
        if "position" in name or name.split()[0] not in HEAD_SITES:
            cells["pos"] = position
        if name.split()[0] in HEAD_SITES:
            cells["head_index"] = head
    return pd.DataFrame(cells).astype(int).reset_index(drop=True)


@torch.no_grad()
def main() -> None:
    """Time both, compare every site, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five layers spread over the model instead of all")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pair", type=int, default=0, help="which of the packaged pairs of equal length")
    options = parser.parse_args()

    model = models.load_hooked(models.fetch(options.model))
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    layers = sorted({round(i * (n_layers - 1) / 4) for i in range(5)}) if options.quick else list(range(n_layers))
    pairs = prompts.builtin().pairs.equal_length(model.tokenizer)[options.pair : options.pair + 1]
    first = [prompts.opening_ids(model.tokenizer, word)[1][0] for word in ("Sorry", "The")]
    metric = forward.RefusalMetric((), (first[0],), (first[1],))
    source, target = (
        torch.tensor([prompts.segments(model.tokenizer, text).prompt_ids], device=model.cfg.device)
        for text in (pairs[0].harmful, pairs[0].harmless)
    )
    n_tokens, n_shared = target.shape[1], int((source != target)[0].nonzero()[0])

    started = time.perf_counter()
    causal.patching.heads(model, pairs, metric, layers=[n_layers - 1])
    causal.patching.residual(model, pairs, metric, layers=[n_layers - 1])
    setup_seconds = time.perf_counter() - started
    _, cache = model.run_with_cache(source)
    base = metric.of(model(target)[0, -1])

    timed = {}
    grids = {
        "heads": ("z", product(layers, range(n_heads)), ["layer", "head_index"]),
        "residual": ("resid_pre", product(layers, range(n_tokens)), ["layer", "pos"]),
    }
    for name, (site, cells, columns) in grids.items():
        started = time.perf_counter()
        table = getattr(causal.patching, name)(model, pairs, metric, layers=layers).table
        ours = time.perf_counter() - started
        index = pd.DataFrame(cells, columns=columns)
        started = time.perf_counter()
        theirs = (patched_by_peer(model, target, cache, metric, site, index) - base).cpu()
        seconds = time.perf_counter() - started
        # What our table does not list is zero: positions that the two prompts share.
        place = table["head"] if name == "heads" else table["position"] + n_tokens
        found = pd.Series(table["raw"].to_numpy(), index=[table["layer"], place])
        found = found.reindex(list(index.itertuples(index=False, name=None)), fill_value=0.0)
        timed[name] = {
            "ratio": round(seconds / ours, 2),
            "goal": 8 if name == "heads" else 10,
            "largest_difference": float((torch.tensor(found.to_numpy()) - theirs).abs().max()),
            "forwards_of_the_peer": len(index),
            "ours_seconds": round(ours, 2),
            "peer_seconds": round(seconds, 2),
        }
        print(json.dumps({name: timed[name]}), flush=True)

    others = {}
    for name, patch in OTHERS.items():
        table = patch(model, pairs, metric, layers=[n_layers // 2]).table
        table = table.iloc[:: max(1, len(table) // 8)]
        cells = cells_of(table, n_tokens, name)
        theirs = (patched_by_peer(model, target, cache, metric, name, cells) - base).cpu()
        others[name] = float((torch.tensor(table["raw"].to_numpy()) - theirs).abs().max())
        print(json.dumps({name: others[name]}), flush=True)

    result = {
        "name": "patching.heads",
        "peer": f"transformer_lens {version('transformer-lens')} patching.generic_activation_patch",
        **{key: timed["heads"][key] for key in ("ratio", "goal", "largest_difference")},
        "residual": {key: timed["residual"][key] for key in ("ratio", "goal", "largest_difference")},
        "others": others,
        "settings": {
            "model": options.model,
            "dtype": "float32",
            "layers": len(layers),
            "heads": n_heads,
            "pair": pairs[0].id,
            "tokens": n_tokens,
            "n_shared": n_shared,
            "threads": torch.get_num_threads(),
            "setup_seconds": round(setup_seconds, 2),
            **{f"{name}_{key}": timed[name][key] for name in timed for key in ("ours_seconds", "peer_seconds")},
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
