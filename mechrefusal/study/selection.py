"""Which prompts a study asks: chosen once from its recipe and the same at every checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PairSet, PromptSet, Split, sources
from mechrefusal.prompts.conversations import Conversations, read_conversations
from mechrefusal.prompts.given_targets import with_given_targets
from mechrefusal.prompts.readers import BENCHMARKS
from mechrefusal.prompts.splits import text_hash
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.settings import PromptSources, Sides, Source

BUILTIN = ("builtin", "builtin-harmless")
_IN_TABLES = {"harmful": "evaluation_harmful", "harmless": "evaluation_harmless"}
"""What tables call the sets that they call otherwise than `StudyPrompts`."""


@dataclass(frozen=True)
class StudyPrompts:
    """All prompts of one study. `behaviours` have a `target`; `dropped` are the prompts that the audit left out.

    `conversations`: the recipe's own chat dataset, None where the base model answers `instructions` itself. `probe` is
    what is asked while an arm trains, the validation prompts or others that are neither trained on nor reported as an
    evaluation. `pairs`: None where they are to be found among the direction and validation prompts. `trains`: whether
    the study trains an arm at all.
    """

    conversations: Conversations | None
    behaviours: PromptSet
    instructions: PromptSet
    direction: Split
    validation: Split
    harmful: PromptSet
    harmless: PromptSet
    overrefusal: PromptSet
    contrast: PromptSet
    utility: PromptSet
    pairs: PairSet | None
    probe: Split
    dropped: pd.DataFrame
    trains: bool = True

    def pairs_for(self, tokenizer) -> PairSet:
        """Pairs of equal token length under this tokenizer: those that were given, or found among the other prompts."""
        if self.pairs is not None:
            return self.pairs.equal_length(tokenizer)
        sides = [
            _joined_sets("pairs", direction=getattr(self.direction, side), validation=getattr(self.validation, side))
            for side in ("harmful", "harmless")
        ]
        return PairSet.matched(Split(*sides), tokenizer)

    def used(self) -> dict[str, PromptSet]:
        """What arms train on, and what directions and carriers are chosen by: an evaluation must not ask it again."""
        sets = {"behaviours": self.behaviours, "instructions": self.instructions} if self.trains else {}
        sets |= {**_by_side("direction", self.direction), **_by_side("validation", self.validation)}
        return {name: prompts for name, prompts in sets.items() if len(prompts) > 0}

    def asked_besides(self) -> dict[str, PromptSet]:
        """What is patched, and what is asked while an arm trains."""
        pairs = {"pairs": self.pairs.harmful, "pairs_harmless": self.pairs.harmless} if self.pairs is not None else {}
        probes = {"probe": self.probe.harmful, "probe_harmless": self.probe.harmless} if self.trains else {}
        return {**pairs, **probes}

    def evaluation_sets(self) -> dict[str, PromptSet]:
        """The sets that every checkpoint answers, by the name that tables give them."""
        names = ("harmful", "harmless", "overrefusal", "contrast", "utility")
        sets = {_IN_TABLES.get(name, name): getattr(self, name) for name in names}
        return {name: prompts for name, prompts in sets.items() if len(prompts) > 0}


def choose_prompts(recipe: Recipe) -> StudyPrompts:
    """Read and choose the prompts of `recipe`.

    Prompts that stand in two of {training, direction, validation, evaluation} are left out of the later one, so
    nothing is measured on what was trained on; which ones is in `dropped`.

    Raises:
        MechrefusalError: an unreadable file, or a set that is empty.
    """
    builtin, counts, source = prompts.builtin(), recipe.measuring, recipe.prompts
    overrefusal, contrast = _safe_and_unsafe(source.overrefusal, builtin)
    conversations = None
    if source.conversations:
        conversations = read_conversations(source.conversations, at_most=source.n_conversations)
        instructions = PromptSet.from_texts("conversations", [turn["prompt"] for turn in conversations])
    else:
        instructions = _mixed(builtin.utility_train, builtin.train.harmless, builtin.pool.harmless)
    trained = {
        "behaviours": _read(source.behaviours, _all_behaviours(builtin), "behaviours").with_targets(),
        "instructions": instructions,
    }
    sets = dict(trained) if recipe.arms else {}
    for name in ("direction", "validation"):
        sides = _sides(getattr(source, name), getattr(builtin, name), name)
        sets |= {f"{name}_harmful": sides.harmful, f"{name}_harmless": sides.harmless}
    sets |= {
        "harmful": _without_copyright(_read(source.harmful, builtin.evaluation.harmful, "harmful")),
        "harmless": _read(source.harmless, builtin.evaluation.harmless, "harmless"),
        "overrefusal": overrefusal,
        "contrast": contrast,
        "utility": _read(source.utility, builtin.utility_evaluation, "utility"),
    }
    leaks = prompts.leakage({_IN_TABLES.get(name, name): prompt_set for name, prompt_set in sets.items()})
    clean = {name: _without(prompt_set, leaks, _IN_TABLES.get(name, name)) for name, prompt_set in sets.items()}
    splits = {name: Split(clean[f"{name}_harmful"], clean[f"{name}_harmless"]) for name in ("direction", "validation")}
    n_evaluated = {"harmful": counts.n_evaluation, "harmless": counts.n_evaluation, "utility": counts.n_utility}
    n_evaluated |= {"overrefusal": counts.n_overrefusal, "contrast": counts.n_contrast}
    chosen = StudyPrompts(
        conversations=conversations,
        **{name: clean.get(name, prompt_set) for name, prompt_set in trained.items()},
        direction=splits["direction"].take(counts.n_direction),
        validation=splits["validation"].take(counts.n_validation),
        **{name: clean[name].take(n) for name, n in n_evaluated.items()},
        pairs=_pairs(source, builtin),
        probe=_sides(source.probe, splits["validation"], "probe"),
        dropped=leaks,
        trains=bool(recipe.arms),
    )
    for name, side in (("direction", chosen.direction), ("validation", chosen.validation)):
        if not len(side.harmful) or not len(side.harmless):
            raise MechrefusalError(
                f"the prompts '{name}' have {len(side.harmful)} harmful and {len(side.harmless)} harmless ones after "
                "those that another set has were left out: give others of both"
            )
    for name in ("behaviours", "instructions", "harmful", "harmless"):
        if len(getattr(chosen, name)) == 0:
            raise MechrefusalError(f"the prompt set '{name}' is empty; give a file with prompts that no other set has")
    return chosen


def behaviours(source: Source, *, n: int = 0) -> PromptSet:
    """Harmful requests to attack, with targets: the first `n` (0: all) of a source.

    HarmBench's copyright rows are left out. The built-in ones are the split `evaluation`.

    Raises:
        MechrefusalError: a file that cannot be read or gives nothing, or a negative `n`.
    """
    requests = _without_copyright(_read(source, prompts.builtin().evaluation.harmful, "behaviours"))
    if len(requests) == 0:
        raise MechrefusalError(f"'{source.path}' gives no behaviour to attack: copyright rows are left out")
    return (requests.take(n) if n else requests).with_targets()


def read_prompts(source: str, *, reader: str = "", n: int = 0) -> PromptSet:
    """Prompts to ask, in the order of their source: the first `n` (0: all).

    HarmBench's copyright rows are left out: refusal says nothing about them.

    Args:
        source: "builtin" (harmful requests of the split `evaluation`), "builtin-harmless", a text file with one prompt
            a line, or a benchmark file of `prompts.read`.
        reader: name of the benchmark; by default the one whose columns the file has.

    Raises:
        MechrefusalError: a file that cannot be read, holds no prompt, or could be several benchmarks.
    """
    if n < 0:
        raise MechrefusalError(f"n is {n}; give a number of prompts, or 0 for all")
    if source in BUILTIN:
        evaluation = prompts.builtin().evaluation
        read = evaluation.harmful if source == "builtin" else evaluation.harmless
    elif reader == "plain":
        read = prompts.read_plain(source, Path(source).stem)
    elif sources.kind_of(source) == ".txt" and not reader:
        lines = sources.text_of(Path(source).expanduser()).split("\n")
        name = Path(source).name
        stem = name[: name.lower().rindex(".txt")]
        read = PromptSet.from_texts(stem, [line.strip() for line in lines if line.strip()])
    else:
        read = prompts.read(reader or _benchmark(source), source)
    read = _without_copyright(read)
    if len(read) == 0:
        raise MechrefusalError(f"'{source}' gives no prompt to ask: HarmBench's copyright rows are left out")
    return read.take(n) if n else read


def _read(source: Source, builtin: PromptSet, name: str) -> PromptSet:
    if source.reader == "builtin":
        return with_given_targets(builtin, source.targets) if source.targets else builtin
    if source.reader == "plain":
        read = prompts.read_plain(source.path, name)
        read = with_given_targets(read, source.targets) if source.targets else read
    else:
        read = prompts.read(source.reader, source.path, targets=source.targets or None)
    if len(read) == 0:
        raise MechrefusalError(f"'{source.path}' gives no prompt for '{name}'; is it a {source.reader} file?")
    return read[_by_hash(read)]


def _sides(source: Sides, builtin: Split, name: str) -> Split:
    """Prompts of both sides in the order of their hashes, twins together; the first n are a fair sample then."""
    if not source:
        return builtin
    read = prompts.read_sides(name, **vars(source))
    order = _by_hash(read.harmful)
    return Split(read.harmful[order], read.harmless[order if "twin" in read.harmful.table else _by_hash(read.harmless)])


def _by_hash(prompt_set: PromptSet) -> list[int]:
    """Files come in blocks of categories: in the order of hashes the first n are a fair sample of the whole."""
    return sorted(range(len(prompt_set)), key=lambda row: text_hash(prompt_set[row]))


def _pairs(source: PromptSources, builtin: prompts.Builtin) -> PairSet | None:
    if source.pairs:
        return prompts.read_pairs("pairs", **vars(source.pairs))
    return None if source.direction else builtin.pairs


def _joined_sets(name: str, **sets: PromptSet) -> PromptSet:
    """One set; ids and twins are told apart by the set that they are of, as files may number theirs alike."""
    parts = []
    for of, prompt_set in sets.items():
        part = prompt_set.table[["id", "text", "category"]].assign(id=[f"{of}-{each}" for each in prompt_set.ids])
        twins = prompt_set.table.get("twin", pd.Series(None, index=part.index, dtype=object))
        parts.append(part.assign(twin=[None if pd.isna(twin) else f"{of}-{twin}" for twin in twins]))
    return PromptSet(name, pd.concat(parts, ignore_index=True))


def _by_side(name: str, split: Split) -> dict[str, PromptSet]:
    return {f"{name}_harmful": split.harmful, f"{name}_harmless": split.harmless}


def _all_behaviours(builtin: prompts.Builtin) -> PromptSet:
    """What is trained to be refused: the split `pool` first, which R2D2's pool is taken from, then `train`."""
    table = pd.concat([builtin.pool.harmful.table, builtin.train.harmful.table], ignore_index=True)
    return PromptSet("behaviours", table)


def _without_copyright(requests: PromptSet) -> PromptSet:
    """Without HarmBench's copyright rows: those are judged by hash, and must not be mixed into a rate of refusal."""
    if "functional_category" not in requests.table:
        return requests
    return requests[(requests.table["functional_category"] != "copyright").to_numpy()]


def _safe_and_unsafe(source: Source, builtin: prompts.Builtin) -> tuple[PromptSet, PromptSet]:
    if source.reader == "builtin":
        return builtin.overrefusal, builtin.contrast
    read = _read(source, builtin.overrefusal, "overrefusal")
    if "label" not in read.table:
        return read, read[:0]
    safe = (read.table["label"] == "safe").to_numpy()
    return read[safe], read[~safe]


def _mixed(*sets: PromptSet) -> PromptSet:
    """One set in the order of the texts' hashes, so that the first n are a fair mix.

    Harmless twins are among them: they have the form of harmful requests, and a model that never sees them answered
    learns to refuse the form.
    """
    table = pd.concat([prompt_set.table[["id", "text", "category"]] for prompt_set in sets], ignore_index=True)
    by_hash = table.sort_values("text", key=lambda texts: texts.map(text_hash), ignore_index=True)
    return PromptSet("instructions", by_hash)


def _without(prompt_set: PromptSet, leaks: pd.DataFrame, name: str) -> PromptSet:
    """The set without what an earlier one has too; `name`: that the audit knows it by."""
    return prompt_set[(~prompt_set.table["id"].isin(leaks.loc[leaks["set_b"] == name, "id_b"])).to_numpy()]


def _benchmark(source: str) -> str:
    """The one reader whose columns a file has; XSTest's completions have all that XSTest has, and are those."""
    columns = {column.lower() for column in sources.load(source).columns}
    needs = {name: {column.lower() for column in each.required} for name, each in BENCHMARKS.items()}
    fitting = {name: need for name, need in needs.items() if need <= columns}
    closest = [name for name, need in fitting.items() if not any(need < other for other in fitting.values())]
    if len(closest) != 1:
        what = f"several benchmarks ({', '.join(closest)})" if closest else "no benchmark"
        raise MechrefusalError(
            f"the columns of '{source}' are those of {what}: name the reader, one of {', '.join(BENCHMARKS)}, or give "
            "a .txt with one prompt a line"
        )
    return closest[0]
