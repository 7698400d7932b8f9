"""Which checkpoints are meant, of a run or of none; by which judge they go, and whether prompts fit their context."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import RULES, Judge
from mechrefusal.models import Checkpoint, Placed, context_length, fetch
from mechrefusal.prompts import ChatSettings, PromptSet, answer_room
from mechrefusal.prompts import require_room as require_tokens
from mechrefusal.study.run import Run

Source = Run | Checkpoint | Path | str
"""A run or its folder (all its checkpoints), one checkpoint of a run (RUN/sft/step-00050), or any model."""


def refusal_judge(run: Run | None) -> Judge:
    """The judge that the recipe of a run measures by; without a run the built-in rules, which read English."""
    return RULES if run is None else run.recipe.measuring.refusal_judge()


def checkpoints_of(
    source: Source, ids: Sequence[str], chat: ChatSettings | None, placed: Placed | None = None
) -> tuple[Run | None, list[Checkpoint]]:
    """The checkpoints that a source means, and the run that they belong to.

    Args:
        ids: of a run's checkpoints; none: all.
        chat, placed: see `located`.

    Raises:
        MechrefusalError: ids without a run, or what `located` and `chosen` raise.
    """
    if isinstance(source, (Path, str)) and (Path(source).expanduser() / "recipe.yaml").is_file():
        source = Run.open(source, **(placed or {}))
    if isinstance(source, Run):
        require_no_settings(source, chat)
        return source, [_placed(each, placed) for each in chosen(source, list(dict.fromkeys(ids)))]
    if ids:
        raise MechrefusalError(f"'{source}' is no run, so it has no checkpoint '{ids[0]}': leave checkpoints out")
    run, checkpoint = located(source, chat=chat, placed=placed)
    return run, [checkpoint]


def chosen(run: Run | None, checkpoints: Sequence[str | Checkpoint]) -> list[Checkpoint]:
    """Checkpoints of a run by their ids, or these themselves; none: all.

    They come in the order of the run, in which the base is first: what the others are compared with.

    Raises:
        MechrefusalError: one that the run does not have, one of other weights, one that is given twice; ids without a
            run.
    """
    names = [item.id if isinstance(item, Checkpoint) else item for item in checkpoints]
    if run is None:
        alone = [item for item in checkpoints if isinstance(item, Checkpoint)]
        if not alone or len(alone) < len(checkpoints):
            raise MechrefusalError("without a run there are no checkpoints by id: give Checkpoints to attack")
        known = dict(zip(names, alone, strict=True))
    else:
        known = {checkpoint.id: checkpoint for checkpoint in run.checkpoints()}
        if not known:
            raise MechrefusalError(f"run '{run.folder}' has no checkpoints yet; train it first: mechrefusal train")
        names = names or list(known)
        if unknown := [name for name in names if name not in known]:
            raise MechrefusalError(f"run '{run.folder}' has no checkpoint '{unknown[0]}'; it has {', '.join(known)}")
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise MechrefusalError(
            f"checkpoint '{again[0]}' is given twice: give each once, or open them with another arm or step"
        )
    for item in checkpoints:
        if isinstance(item, Checkpoint) and item.weights != known[item.id].weights:
            raise MechrefusalError(
                f"checkpoint '{item.id}' holds weights {item.weights}, its run {known[item.id].weights}; give "
                "checkpoints of this run"
            )
    return [checkpoint for name, checkpoint in known.items() if name in names]


def _placed(checkpoint: Checkpoint, placed: Placed | None) -> Checkpoint:
    return replace(checkpoint, placement=checkpoint.placement.given(**placed)) if placed else checkpoint


def located(
    source: Checkpoint | Path | str, *, chat: ChatSettings | None = None, placed: Placed | None = None
) -> tuple[Run | None, Checkpoint]:
    """A checkpoint, and the run that it belongs to if it lies in the folder of one.

    Args:
        source: a model's folder or name; or RUN/ID with the id of one of a run's checkpoints (`sft-step-00050`).
        chat: how a model is asked that belongs to no run; a run's recipe says it of its own.
        placed: where it lies and in which numbers, in place of what the checkpoint or the run's recipe says.

    Raises:
        MechrefusalError: no such model, or weights that are not those of the run.
    """
    path = source.path if isinstance(source, Checkpoint) else Path(source)
    path = path.expanduser().absolute()
    for folder in path.parents:
        if not ((folder / "recipe.yaml").is_file() and (folder / "manifest.json").is_file()):
            continue
        run = Run.open(folder, **(placed or {}))
        for identity, entry in run.manifest.get("checkpoints", {}).items():
            if path == folder / identity or path.resolve() == (folder / entry["path"]).resolve():
                require_no_settings(run, chat)
                return run, run.checkpoint(entry["arm"], step=entry["step"])
    if isinstance(source, Checkpoint):
        return None, _placed(source if chat is None else source.asked(chat), placed)
    return None, _placed(Checkpoint.open(fetch(source), chat=chat), placed)


def require_no_settings(run: Run, chat: ChatSettings | None) -> None:
    """Raise MechrefusalError where a run's checkpoints are to be asked otherwise than its recipe says."""
    if chat is not None and chat != run.recipe.chat:
        raise MechrefusalError(
            f"checkpoints of '{run.folder}' are asked as its recipe says, with chat_template "
            f"'{run.recipe.chat_template}', chat_template_kwargs {run.recipe.chat.template_kwargs} and "
            f"max_thought_tokens {run.recipe.chat.max_thought_tokens}: leave them out"
        )


def require_room(
    folder: Path,
    tokenizer,
    prompts: PromptSet,
    *,
    max_new_tokens: int,
    suffix: int = 0,
    what: str = "the model's context",
) -> None:
    """Raise MechrefusalError where a prompt, and a suffix of so many tokens, leave no room for an answer.

    Args:
        folder: of the model. what: it is called in the message.
    """
    spare = answer_room(tokenizer, max_new_tokens) + suffix
    require_tokens(tokenizer, prompts, limit=context_length(folder), spare=spare, what=what)
