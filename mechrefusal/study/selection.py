"""Which prompts a study asks: chosen once from its recipe and the same at every checkpoint."""

from dataclasses import dataclass

import pandas as pd

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PairSet, PromptSet, Split
from mechrefusal.prompts.given_targets import with_given_targets
from mechrefusal.prompts.splits import text_hash
from mechrefusal.study.conversations import Conversations, read_conversations
from mechrefusal.study.recipe import PromptSources, Recipe, Sides, Source


@dataclass(frozen=True)
class Asked:
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
        sets = {
            **({"behaviours": self.behaviours, "instructions": self.instructions} if self.trains else {}),
            "direction_harmful": self.direction.harmful,
            "direction_harmless": self.direction.harmless,
            "validation_harmful": self.validation.harmful,
            "validation_harmless": self.validation.harmless,
        }
        return {name: chosen for name, chosen in sets.items() if len(chosen) > 0}

    def asked_besides(self) -> dict[str, PromptSet]:
        """What is patched, and what is asked while an arm trains."""
        pairs = {"pairs": self.pairs.harmful, "pairs_harmless": self.pairs.harmless} if self.pairs is not None else {}
        probes = {"probe": self.probe.harmful, "probe_harmless": self.probe.harmless} if self.trains else {}
        return {**pairs, **probes}

    def evaluation_sets(self) -> dict[str, PromptSet]:
        """The sets that every checkpoint answers, by the name that tables give them."""
        sets = {
            "evaluation_harmful": self.harmful,
            "evaluation_harmless": self.harmless,
            "overrefusal": self.overrefusal,
            "contrast": self.contrast,
            "utility": self.utility,
        }
        return {name: chosen for name, chosen in sets.items() if len(chosen) > 0}


def asked(recipe: Recipe) -> Asked:
    """Read and choose the prompts of `recipe`.

    Prompts that stand in two of {training, direction, validation, evaluation} are left out of the later one, so
    nothing is measured on what was trained on; which ones is in `dropped`.

    Raises:
        MechrefusalError: an unreadable file, or a set that is empty.
    """
    own, wanted, source = prompts.builtin(), recipe.measuring, recipe.prompts
    behaviours = _read(source.behaviours, _all_behaviours(own), "behaviours").with_targets()
    harmful = _requests(_read(source.harmful, own.evaluation.harmful, "harmful"))
    overrefusal, contrast = _safe_and_unsafe(source.overrefusal, own)
    conversations = None
    if source.conversations:
        conversations = read_conversations(source.conversations, at_most=source.n_conversations)
        instructions = PromptSet.from_texts("conversations", [turn["prompt"] for turn in conversations])
    else:
        instructions = _joined(own.utility_train, own.train.harmless, own.pool.harmless)
    direction, validation = (
        _sides(getattr(source, name), getattr(own, name), name) for name in ("direction", "validation")
    )
    sets = {
        **({"behaviours": behaviours, "instructions": instructions} if recipe.arms else {}),
        "direction_harmful": direction.harmful,
        "direction_harmless": direction.harmless,
        "validation_harmful": validation.harmful,
        "validation_harmless": validation.harmless,
        "evaluation_harmful": harmful,
        "evaluation_harmless": _read(source.harmless, own.evaluation.harmless, "harmless"),
        "overrefusal": overrefusal,
        "contrast": contrast,
        "utility": _read(source.utility, own.utility_evaluation, "utility"),
    }
    kept, dropped = _without_leaks(sets)
    chosen = Asked(
        conversations=conversations,
        behaviours=kept.get("behaviours", behaviours),
        instructions=kept.get("instructions", instructions),
        direction=Split(
            kept["direction_harmful"].take(wanted.n_direction), kept["direction_harmless"].take(wanted.n_direction)
        ),
        validation=Split(
            kept["validation_harmful"].take(wanted.n_validation), kept["validation_harmless"].take(wanted.n_validation)
        ),
        harmful=kept["evaluation_harmful"].take(wanted.n_evaluation),
        harmless=kept["evaluation_harmless"].take(wanted.n_evaluation),
        overrefusal=kept["overrefusal"].take(wanted.n_overrefusal),
        contrast=kept["contrast"].take(wanted.n_contrast),
        utility=kept["utility"].take(wanted.n_utility),
        pairs=_pairs(source, own),
        probe=_sides(source.probe, Split(kept["validation_harmful"], kept["validation_harmless"]), "probe"),
        dropped=dropped,
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
    found = _requests(_read(source, prompts.builtin().evaluation.harmful, "behaviours"))
    if len(found) == 0:
        raise MechrefusalError(f"'{source.path}' gives no behaviour to attack: copyright rows are left out")
    return (found.take(n) if n else found).with_targets()


def _read(source: Source, builtin: PromptSet, name: str) -> PromptSet:
    if source.reader == "builtin":
        return with_given_targets(builtin, source.targets) if source.targets else builtin
    if source.reader == "plain":
        found = prompts.read_plain(source.path, name)
        found = with_given_targets(found, source.targets) if source.targets else found
    else:
        found = prompts.read(source.reader, source.path, targets=source.targets or None)
    if len(found) == 0:
        raise MechrefusalError(f"'{source.path}' gives no prompt for '{name}'; is it a {source.reader} file?")
    return found[_by_hash(found)]


def _sides(source: Sides, builtin: Split, name: str) -> Split:
    """Own prompts of both sides in the order of their hashes, twins together; the first n are a fair sample then."""
    if not source:
        return builtin
    found = prompts.read_sides(name, **vars(source))
    if "twin" in found.harmful.table:
        order = _by_hash(found.harmful)
        return Split(found.harmful[order], found.harmless[order])
    return Split(found.harmful[_by_hash(found.harmful)], found.harmless[_by_hash(found.harmless)])


def _by_hash(found: PromptSet) -> list[int]:
    """Files come in blocks of categories: in the order of hashes the first n are a fair sample of the whole."""
    return sorted(range(len(found)), key=lambda row: text_hash(found[row]))


def _pairs(source: PromptSources, own: prompts.Builtin) -> PairSet | None:
    if source.pairs:
        return prompts.read_pairs("pairs", **vars(source.pairs))
    return None if source.direction else own.pairs


def _joined_sets(name: str, **sets: PromptSet) -> PromptSet:
    """One set; ids and twins are told apart by the set that they are of, as files may number theirs alike."""
    parts = []
    for of, found in sets.items():
        part = found.table[["id", "text", "category"]].assign(id=[f"{of}-{each}" for each in found.ids])
        known = found.table["twin"] if "twin" in found.table else pd.Series(None, index=part.index, dtype=object)
        parts.append(part.assign(twin=[None if pd.isna(twin) else f"{of}-{twin}" for twin in known]))
    return PromptSet(name, pd.concat(parts, ignore_index=True))


def _all_behaviours(own: prompts.Builtin) -> PromptSet:
    """What is trained to be refused: the split `pool` first, which R2D2's pool is taken from, then `train`."""
    table = pd.concat([own.pool.harmful.table, own.train.harmful.table], ignore_index=True)
    return PromptSet("behaviours", table)


def _requests(found: PromptSet) -> PromptSet:
    """Without HarmBench's copyright rows: those are judged by hash, and must not be mixed into a rate of refusal."""
    if "functional_category" not in found.table:
        return found
    return found[(found.table["functional_category"] != "copyright").to_numpy()]


def _safe_and_unsafe(source: Source, own: prompts.Builtin) -> tuple[PromptSet, PromptSet]:
    if source.reader == "builtin":
        return own.overrefusal, own.contrast
    found = _read(source, own.overrefusal, "overrefusal")
    if "label" not in found.table:
        return found, found[:0]
    safe = (found.table["label"] == "safe").to_numpy()
    return found[safe], found[~safe]


def _joined(*sets: PromptSet) -> PromptSet:
    """One set in the order of the texts' hashes, so that the first n are a fair mix.

    Harmless twins are among them: they have the form of harmful requests, and a model that never sees them answered
    learns to refuse the form.
    """
    table = pd.concat([found.table[["id", "text", "category"]] for found in sets], ignore_index=True)
    by_hash = table.sort_values("text", key=lambda texts: texts.map(text_hash), ignore_index=True)
    return PromptSet("instructions", by_hash)


def _without_leaks(sets: dict[str, PromptSet]) -> tuple[dict[str, PromptSet], pd.DataFrame]:
    leaks = prompts.leakage(sets)
    kept = {
        name: found[(~found.table["id"].isin(set(leaks.loc[leaks["set_b"] == name, "id_b"]))).to_numpy()]
        for name, found in sets.items()
    }
    return kept, leaks
