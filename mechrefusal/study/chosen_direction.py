"""Which direction a checkpoint is intervened on with: of its run, of a file, or a random one as the control."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mechrefusal import causal, tables
from mechrefusal.causal.reference import HARMLESS, ZERO
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.direction import Direction
from mechrefusal.geometry import Directions
from mechrefusal.models import Checkpoint, fetch, load_config
from mechrefusal.prompts import ChatSettings
from mechrefusal.statistics.choosing import BEST, CARRIER
from mechrefusal.study.places import best_place, carrier_place
from mechrefusal.study.run import Run

NAMES = ("carrier", "best", "random")


def located(source: Checkpoint | Path | str, *, chat: ChatSettings | None = None) -> tuple[Run | None, Checkpoint]:
    """A checkpoint, and the run that it belongs to if it lies in the folder of one.

    Args:
        source: a model's folder or name; or RUN/ID with the id of one of a run's checkpoints (`sft-step-00050`).
        chat: how a model is asked that belongs to no run; a run's recipe says it of its own.

    Raises:
        MechrefusalError: no such model, or weights that are not those of the run.
    """
    given = source.path if isinstance(source, Checkpoint) else Path(source)
    given = given.expanduser().absolute()
    for folder in given.parents:
        if not ((folder / "recipe.yaml").is_file() and (folder / "manifest.json").is_file()):
            continue
        run = Run.open(folder)
        for identity, entry in run.manifest.get("checkpoints", {}).items():
            if given == folder / identity or given.resolve() == (folder / entry["path"]).resolve():
                require_no_settings(run, chat)
                return run, run.checkpoint(entry["arm"], step=entry["step"])
    if isinstance(source, Checkpoint):
        return None, source if chat is None else source.asked(chat)
    return None, Checkpoint.open(fetch(source), chat=chat)


def require_no_settings(run: Run, chat: ChatSettings | None) -> None:
    """Raise MechrefusalError where a run's checkpoints are to be asked otherwise than its recipe says."""
    if chat is not None and chat != run.recipe.chat:
        raise MechrefusalError(
            f"checkpoints of '{run.folder}' are asked as its recipe says, with chat_template_kwargs "
            f"{run.recipe.chat.template_kwargs} and max_thought_tokens {run.recipe.chat.max_thought_tokens}: "
            "leave both out"
        )


def of_run(run: Run | None, checkpoint: Checkpoint, *, best: bool) -> Direction:
    """The carrier of a checkpoint; with `best`, the best candidate where there is no carrier.

    Raises:
        MechrefusalError: no run, not measured, measured on other weights, or no such direction.
    """
    if run is None:
        raise MechrefusalError(
            f"'{checkpoint.path}' is no checkpoint of a run (none lists it), so it has no carrier: give one such as "
            "RUN/sft/step-00050, or a file of directions"
        )
    again = f"run 'mechrefusal measure {run.folder}'"
    table = tables.read("carrier", run.measurements(checkpoint))
    if table.empty:
        raise MechrefusalError(f"checkpoint '{checkpoint.id}' of '{run.folder}' was not measured: {again}")
    row = table.iloc[0]
    if row["weights"] != checkpoint.weights:
        raise MechrefusalError(
            f"the carrier of '{checkpoint.id}' is of weights {row['weights']}, not of {checkpoint.weights}: {again}"
        )
    kind, place = CARRIER, carrier_place(row)
    if place is None:
        if not best:
            raise MechrefusalError(
                f"checkpoint '{checkpoint.id}' has no carrier ({row['reason']}); direction 'best' takes the best "
                "candidate, which is not a carrier"
            )
        kind, place = BEST, best_place(row)
    if place is None:
        raise MechrefusalError(f"checkpoint '{checkpoint.id}' has no scored candidate ({row['reason']})")
    directions = Directions.load(run.directions(checkpoint), weights=checkpoint.weights)
    return replace(directions.at(*place, reference=row["ablated_to"]), kind=f"{kind} of {checkpoint.id}")


def of_file(path: Path, checkpoint: Checkpoint, *, layer: int | None, position: int | None) -> Direction:
    """A direction of a file that `Directions.save` wrote, or of one that holds a single tensor.

    Raises:
        MechrefusalError: no such file, directions of other weights, or a place that is not in it.
    """
    if not path.is_file():
        raise MechrefusalError(f"direction '{path}' is neither a safetensors file nor one of {', '.join(NAMES)}")
    try:
        with safe_open(path, framework="pt") as file:
            names, notes = list(file.keys()), file.metadata() or {}
            single = file.get_tensor(names[0]) if len(names) == 1 else None
    except (OSError, SafetensorError) as error:
        raise MechrefusalError(f"direction '{path}' is no safetensors file ({error})") from error
    if single is not None and single.ndim in (1, 2):
        if notes.get("weights", checkpoint.weights) != checkpoint.weights:
            raise MechrefusalError(
                f"direction '{path}' belongs to weights {notes['weights']}, not to {checkpoint.weights}"
            )
        if position is not None:
            raise MechrefusalError(f"'{path}' holds one tensor without positions; leave out position {position}")
        return Direction(single.float(), weights=checkpoint.weights, kind=f"tensor of {path.name}")
    found = Directions.load(path, weights=checkpoint.weights)
    n_layers = found.values.shape[1]
    if position is None or layer is None:
        raise MechrefusalError(
            f"'{path}' holds directions at positions {list(found.positions)} and layers 0 to {n_layers - 1}: say which "
            "with position and layer"
        )
    if not 0 <= layer < n_layers:
        raise MechrefusalError(f"layer {layer} is not in '{path}'; it has layers 0 to {n_layers - 1}")
    reference = ZERO if found.means is None else HARMLESS
    return replace(found.at(position, layer, reference=reference), kind=f"direction of {path.name}")


def random(run: Run | None, checkpoint: Checkpoint, *, seed: int, added: bool) -> Direction:
    """A random direction: with the norm and the means of the run's own; without a run of norm 1.

    Where there is no such direction in the run, an ablation to zero can do without: it does not ask for the norm.
    """
    if run is not None:
        try:
            like = of_run(run, checkpoint, best=True)
        except MechrefusalError:
            if added:
                raise
        else:
            kind = f"random direction (seed {seed}, norm of the {like.name})"
            return replace(causal.random_like(like, seed=seed), position=None, kind=kind)
    width = int(load_config(checkpoint.path).get_text_config().hidden_size)
    vector = causal.random_like(torch.ones(width) / width**0.5, seed=seed)
    return Direction(vector, weights=checkpoint.weights, kind=f"random direction (seed {seed}, norm 1)")
