"""What measuring in bfloat16 changes, against float32: the refusal metric, carriers' scores, directions and patching.

    python benchmarks/bfloat16.py [--checkpoint FOLDER] [--n 8] [--layer_step 6]

Everything is measured twice, with the same prompts, metric and directions' places. Carriers are scored with float32's
directions at both, and with bfloat16's own.
"""

import argparse
import json
import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from mechrefusal import causal, evaluation, forward, geometry, models, prompts  # noqa: E402


def main() -> None:
    """Measure in both, and print a JSON object of the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="smollm2-135m-instruct")
    parser.add_argument("--n", type=int, default=8, help="prompts of each side")
    parser.add_argument("--layer_step", type=int, default=6)
    options = parser.parse_args()
    folder, asked = models.fetch(options.checkpoint), prompts.builtin()
    direction, validation = asked.direction.take(options.n), asked.validation.take(options.n // 2)
    found, metric = {}, None
    for dtype in ("float32", "bfloat16"):
        model = models.load_hooked(folder, dtype=dtype)
        metric = metric or evaluation.discover_refusal(model, direction)
        directions = geometry.difference_in_means(model, direction)
        position = max(directions.positions)
        layers = range(0, int(0.8 * model.cfg.n_layers), options.layer_step)
        places = [(position, layer) for layer in layers if layer]
        scores = geometry.score(model, directions, validation, metric, places=places)
        selected = geometry.select(scores)
        texts = [*validation.harmful.texts, *validation.harmless.texts]
        found[dtype] = {
            "runner": forward.runner_of(model).name,
            "scores": forward.refusal_scores(model, prompts.prompt_ids(model.tokenizer, texts), metric).numpy(),
            "directions": directions.values.double().flatten(0, 1),
            "carriers": scores.table[["bypass", "induce", "kl"]].to_numpy(),
            "chosen": selected.best.layer if selected.best is not None else None,
            "heads": causal.patching.heads(model, asked.pairs[:1], metric, layers=list(layers)).table["raw"].to_numpy(),
        }
        del model
    exact, low = found["float32"], found["bfloat16"]
    cosines = torch.nn.functional.cosine_similarity(exact["directions"], low["directions"], dim=-1)
    cosines = cosines[exact["directions"].norm(dim=-1) > 0]
    apart = {name: np.abs(exact[name] - low[name]) for name in ("scores", "carriers", "heads")}
    result = {
        "model": options.checkpoint,
        "runner": [exact["runner"], low["runner"]],
        "refusal score, nats: mean and largest difference": [apart["scores"].mean(), apart["scores"].max()],
        "refusal score, nats: standard deviation over prompts": exact["scores"].std(),
        "cosine of directions: least and median": [cosines.min().item(), cosines.median().item()],
        **{
            f"{name} of candidates: mean difference, and mean in float32": [
                np.nanmean(apart["carriers"][:, i]), np.nanmean(np.abs(exact["carriers"][:, i])),
            ]
            for i, name in enumerate(("bypass", "induce", "kl"))
        },
        "layer of the best candidate": [exact["chosen"], low["chosen"]],
        "effect of a patched head, nats: mean and largest difference, largest effect": [
            apart["heads"].mean(), apart["heads"].max(), np.abs(exact["heads"]).max(),
        ],
        "correlation of patched heads' effects": np.corrcoef(exact["heads"], low["heads"])[0, 1],
    }  # fmt: skip
    print(json.dumps(result, indent=2, default=float))


if __name__ == "__main__":
    main()
