"""How cost grows: seconds of each stage and peak memory over model size, prompts, pairs, anchors and workers.

    python benchmarks/scaling.py [--quick] [--axes prompts pairs anchors layers width workers]

Random Llama models are measured by a small recipe in which every stage is on, each point in a process of its own with
one thread. Along an axis one size grows and the others stay; `exponent` is the slope of log seconds over log size
between the last two points, where what is done once for any size weighs least. The peer is the work itself: `work` is
by how much the number of prompts, pairs, checkpoints, pairs of checkpoints or weights grows, and `ratio` the largest
growth of a stage's seconds over that of its work, among stages that take a second at least. With workers, wall time of
measuring the same checkpoints. The last line is one JSON object: name, peer, ratio, goal, largest_difference (that of
tables between one worker and two), settings.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

AXES: dict[str, tuple[int, ...]] = {
    "prompts": (8, 16, 32),
    "pairs": (4, 8, 16),
    "anchors": (2, 4, 8),
    "layers": (4, 8, 16),
    "width": (128, 256, 512),
    "workers": (1, 2),
}
USUAL = {"prompts": 16, "pairs": 6, "anchors": 2, "layers": 6, "width": 256, "workers": 1}
QUICK = ("prompts", "workers")
SHORTEST = 1.0
"""Seconds of the larger point from which on a stage's growth is told; below, it is what is done once."""


def recipe_of(sizes: dict[str, int], checkpoints: list[str], base: str):
    """A recipe that measures these checkpoints, with every stage on."""
    from mechrefusal.study.loader import recipe_from_dict

    n, pairs = sizes["prompts"], sizes["pairs"]
    return recipe_from_dict(
        {
            "name": "scaling",
            "model": base,
            "arms": [],
            "checkpoints": {"given": checkpoints},
            "attack": {"n_cases": 2, "methods": ["templates"], "templates": {"names": ["prefix_injection"]}},
            "measuring": {
                "n_evaluation": n, "n_overrefusal": n, "n_contrast": 0, "n_utility": n, "n_direction": n,
                "n_validation": n, "n_intervened": n, "n_attributed": n, "n_pairs": pairs, "max_new_tokens": 12,
                "fewest_kept": 1, "n_positions": 2,
            },
            "geometry": {"n_bootstrap": 100, "largest_subspace": 2, "cone_steps": 2, "n_dosed": n, "n_coupled": n,
                         "n_transferred": n},
            "causal": {"sites": False, "n_finalists": 2, "n_knocked_out": n, "n_nodes": 4, "n_edges": 8, "n_random": 2,
                       "n_crossed": 2},
        }
    )  # fmt: skip


def work(axis: str, sizes: dict[str, int], stage: str, *, across: bool) -> float:
    """How much of what a stage is done for there is, in units of its own."""
    if axis == "anchors":
        n = sizes["anchors"] + 1  # the base
        return n * (n - 1) if across else n
    if axis == "width":
        return sizes["width"] ** 2
    if axis == "layers" and stage in ("patching", "carriers", "knock-out", "circuit", "cross patching", "transfer"):
        return sizes["layers"] ** 2  # so many places, each by a pass through as many layers
    return sizes[axis]


def point(sizes: dict[str, int]) -> dict[str, Any]:
    """Seconds of each stage, peak memory in MiB, wall seconds of measuring, and the tables' numbers."""
    import torch

    torch.set_num_threads(sizes["workers"])
    from safetensors.torch import load_file, save_file

    from mechrefusal import models, study, tables
    from mechrefusal.study.outside import start
    from mechrefusal.study.protocol import ACROSS_CHECKPOINTS, AT_A_CHECKPOINT

    with tempfile.TemporaryDirectory() as folder:
        base = models.tiny.make(Path(folder) / "base", n_layers=sizes["layers"], d_model=sizes["width"])
        given = []
        for number in range(sizes["anchors"]):
            copy = models.tiny.make(
                Path(folder) / f"step-{number + 1:05d}", n_layers=sizes["layers"], d_model=sizes["width"]
            )
            weights = load_file(copy / "model.safetensors")
            generator = torch.Generator().manual_seed(number)
            moved = {
                name: weight + 0.01 * weight.std() * torch.randn(weight.shape, generator=generator)
                for name, weight in weights.items()
            }
            save_file(moved, copy / "model.safetensors", metadata={"format": "pt"})
            given.append(str(copy))
        run = start(recipe_of(sizes, given, str(base)), Path(folder) / "run")
        began = time.perf_counter()
        study.measure(run, workers=sizes["workers"])
        wall = time.perf_counter() - began
        seconds: dict[str, float] = {}
        for stage in AT_A_CHECKPOINT:
            units = [run.finished(stage.name, checkpoint.id) for checkpoint in run.checkpoints()]
            seconds[stage.name] = sum(unit.seconds for unit in units if unit is not None)
        for stage in ACROSS_CHECKPOINTS:
            unit = run.finished(stage.name)
            seconds[stage.name] = 0.0 if unit is None else unit.seconds
        scores = tables.read("candidate_scores", run.measurements()).select_dtypes("number")
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "seconds": seconds,
            "across": [stage.name for stage in ACROSS_CHECKPOINTS],
            "peak_mib": peak / 1024,
            "wall": wall,
            "numbers": scores.to_numpy(float).tolist(),
        }


def apart(sizes: dict[str, int]) -> dict[str, Any]:
    """A point in a process of its own, whose peak memory is its own."""
    told = [sys.executable, __file__, "--point", json.dumps(sizes)]
    ended = subprocess.run(told, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ended.returncode:
        raise SystemExit(f"{sizes} failed:\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def show(name: str, values: list[float], after: str = "", *, digits: int = 1) -> None:
    """A line of numbers."""
    print(f"  {name:28s} " + "  ".join(f"{value:8.{digits}f}" for value in values) + after, flush=True)


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    """Between two tables of numbers; NaN in both is no difference."""
    differences = [
        abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True) if not (x != x and y != y)
    ]
    return max(differences, default=0.0)


def main() -> None:
    """Measure every point, print a table of exponents, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=None)
    parser.add_argument("--point", type=json.loads)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.point)))
        return
    usual = USUAL | ({"layers": 4, "width": 64, "prompts": 8, "pairs": 4} if options.quick else {})
    worst, worst_of, difference = 0.0, "", 0.0
    for axis in options.axes or (QUICK if options.quick else AXES):
        values = AXES[axis][:2] if options.quick else AXES[axis]
        sizes = [usual | {axis: value} | ({"anchors": 3} if axis == "workers" else {}) for value in values]
        points = [apart(each) for each in sizes]
        print(f"\n{axis}: {', '.join(map(str, values))}")
        show("wall seconds", [each["wall"] for each in points])
        show("peak MiB", [each["peak_mib"] for each in points], digits=0)
        if axis == "workers":
            difference = largest_difference(points[0]["numbers"], points[1]["numbers"])
            print(f"  two workers take {points[1]['wall'] / points[0]['wall']:.2f} of the time of one")
            continue
        for stage in points[0]["seconds"]:
            taken = [each["seconds"][stage] for each in points]
            if taken[-1] < (0.2 if options.quick else SHORTEST) or min(taken) <= 0:
                continue
            amounts = [work(axis, each, stage, across=stage in points[0]["across"]) for each in sizes]
            grown, by_work = taken[-1] / taken[-2], amounts[-1] / amounts[-2]
            exponent = math.log(grown) / math.log(values[-1] / values[-2])
            show(stage, taken, f"   ^{exponent:.2f}", digits=2)
            if grown / by_work > worst:
                worst, worst_of = grown / by_work, f"{stage} over {axis}"
    print(
        json.dumps(
            {
                "name": "scaling",
                "peer": "the work",
                "ratio": round(worst, 2),
                "goal": "at most 1.2",
                "largest_difference": difference,
                "settings": {"quick": options.quick, "largest": worst_of, **usual},
            }
        )
    )


if __name__ == "__main__":
    main()
