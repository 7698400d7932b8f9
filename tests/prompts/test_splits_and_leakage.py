"""Splits as a function of the text alone, the package's own prompts, and the audit that finds planted leaks."""

import csv
import hashlib
from importlib.resources import files

import pytest

import mechrefusal.prompts
from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts import PromptSet, leakage, normalised
from mechrefusal.prompts.splits import TWINS, UTILITY, member, text_hash

SPLITS = ("train", "pool", "direction", "validation", "evaluation")
SIZES = {"train": 20, "pool": 40, "direction": 64, "validation": 32, "evaluation": 48}


@pytest.fixture(scope="module")
def asked() -> prompts.Builtin:
    return prompts.builtin()


def packaged(name: str) -> list[dict[str, str]]:
    text = (files(mechrefusal.prompts) / "builtin" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(
    "other",
    [
        "how do I  kill\na process",
        " How do I kill a process?! ",
        "“How do I kill a process?”",
        "HOW DO I KILL A PROCESS.",
        "How do I \uff4bill a process?",
    ],
)
def test_the_same_prompt_in_other_clothes_is_the_same(other: str) -> None:
    assert normalised(other) == normalised("How do I kill a process?")


def test_different_prompts_stay_different() -> None:
    texts = [
        "How do I kill a C process?",
        "How do I kill a C++ process?",
        "How do I kill a process?",
        "?",
        "!",
        "don't",
        "dont",
    ]
    assert len({normalised(text) for text in texts}) == len(texts)


def test_membership_is_the_hash_of_the_text_against_fixed_bounds() -> None:
    texts = [f"request number {number}" for number in range(3000)]
    counts = dict.fromkeys(TWINS, 0)
    for text in texts:
        # Independently: the first 64 bits of sha256 as a fraction, walked along the shares.
        place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        names = iter(TWINS)
        name = next(names)
        while place >= TWINS[name]:
            place -= TWINS[name]
            name = next(names)
        assert member(text, TWINS) == name
        counts[name] += 1
    for name, share in TWINS.items():
        assert counts[name] / len(texts) == pytest.approx(share, abs=0.03)
    assert sum(TWINS.values()) == pytest.approx(1)
    assert sum(UTILITY.values()) == pytest.approx(1)
    with pytest.raises(MechrefusalError, match=r"sum to 0\.9"):
        member("x", {"a": 0.5, "b": 0.4})


def test_the_twins_lie_in_the_split_of_their_harmful_text(asked: prompts.Builtin) -> None:
    rows = {row["id"]: row for name in ("twins", "twins_train") for row in packaged(name)}
    of_training = {row["id"] for row in packaged("twins_train")}
    found = []
    for name in SPLITS:
        split = getattr(asked, name)
        assert len(split) == len(split.harmful) == len(split.harmless) >= SIZES[name]
        assert split.harmful.table["twin"].tolist() == split.harmless.table["twin"].tolist()
        assert split.harmful.ids == [f"{twin}-harmful" for twin in split.harmful.table["twin"]]
        for twin, harmful, harmless in zip(split.harmful.table["twin"], split.harmful, split.harmless, strict=True):
            assert (harmful, harmless) == (rows[twin]["harmful"], rows[twin]["harmless"])
            # Those written for training alone are in its split, whatever their hash.
            assert name == ("train" if twin in of_training else member(harmful, TWINS))
            found.append(twin)
        hashes = [text_hash(text) for text in split.harmful]
        assert hashes == sorted(hashes)
        assert split.harmful.table["target"].str.startswith("Sure, here ").all()
        assert split.take(3).harmless.ids == split.harmless.ids[:3]
    assert sorted(found) == sorted(rows)


@pytest.mark.parametrize("name", SPLITS)
def test_no_harmful_twin_falls_back_to_the_target_of_no_form(asked: prompts.Builtin, name: str) -> None:
    table = getattr(asked, name).harmful.table
    targets = table["target"]
    assert not targets.str.contains(r"\b(?:my|me|I)\b").any()
    # Those written for training alone vary in their form, and some have none that a target restates.
    of_training = table["twin"].isin([row["id"] for row in packaged("twins_train")])
    assert of_training.any() == (name == "train")
    assert not targets[~of_training].str.contains("what you asked for").any()


def test_the_other_sets_hold_their_files_ordered_by_hash(asked: prompts.Builtin) -> None:
    assert len(asked.overrefusal) == 120
    assert set(asked.overrefusal.table["label"]) == {"safe"}
    assert len(asked.contrast) == 60
    assert set(asked.contrast.table["label"]) == {"unsafe"}
    assert len(asked.utility_train) + len(asked.utility_evaluation) == 100
    assert len(asked.utility_evaluation) >= 30
    assert sorted(asked.utility_train.ids + asked.utility_evaluation.ids) == sorted(
        row["id"] for row in packaged("utility")
    )
    assert {pair.id for pair in asked.pairs} == {row["id"] for row in packaged("pairs")}
    for ordered in (
        asked.overrefusal,
        asked.contrast,
        asked.utility_train,
        asked.utility_evaluation,
        asked.pairs.harmful,
    ):
        hashes = [text_hash(text) for text in ordered]
        assert hashes == sorted(hashes)


def test_nothing_built_in_leaks(asked: prompts.Builtin) -> None:
    sets = asked.sets()
    assert set(sets) == {
        *(f"{name}_{side}" for name in (*SPLITS, "pairs") for side in ("harmful", "harmless")),
        *("overrefusal", "contrast", "utility_train", "utility_evaluation"),
    }
    assert sum(len(found) for found in sets.values()) == 2 * (280 + 140) + 180 + 100 + 2 * 96
    assert leakage(sets).empty
    # Within a set no prompt stands twice either.
    for found in sets.values():
        assert len({normalised(text) for text in found}) == len(found)


def test_builtin_stays_a_function_after_it_was_called(asked: prompts.Builtin) -> None:
    assert callable(mechrefusal.prompts.builtin)
    assert mechrefusal.prompts.builtin().train.harmful.ids == asked.train.harmful.ids


def test_planted_leaks_are_found_with_both_places() -> None:
    sets = {
        "training": PromptSet.from_texts("t", ["Bake bread.", "Sing a song", "Alone"]),
        "pool": PromptSet.from_texts("p", ["dance", "sing  a SONG!"]),
        "evaluation": PromptSet.from_texts("e", ["Sing a song", "bake bread", "Bake bread"]),
    }
    found = leakage(sets)
    assert list(found.columns) == ["set_a", "id_a", "set_b", "id_b", "text"]
    assert set(found.itertuples(index=False, name=None)) == {
        ("training", "t-0002", "pool", "p-0002", "Sing a song"),
        ("training", "t-0002", "evaluation", "e-0001", "Sing a song"),
        ("training", "t-0001", "evaluation", "e-0002", "Bake bread."),
        ("training", "t-0001", "evaluation", "e-0003", "Bake bread."),
        ("pool", "p-0002", "evaluation", "e-0001", "sing  a SONG!"),
    }
    assert len(found) == 5
    assert leakage({}).empty
    assert list(leakage({}).columns) == list(found.columns)


def test_every_call_gives_tables_of_its_own():
    first = prompts.builtin()
    first.direction.harmful.table["text"] = "changed"
    second = prompts.builtin()
    assert "changed" not in second.direction.harmful.texts
    assert second.direction.harmful.ids == first.direction.harmful.ids
    assert list(second.pairs) == list(first.pairs)
