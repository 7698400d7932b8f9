"""Suites: what every benchmark file becomes, and which prompts are taken of it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import Suite, read_suite
from mechrefusal.evaluation.suites import require_distinct

COLUMNS = ["prompt_id", "prompt", "side", "group", "category", "target", "behaviour", "context", "twin"]

FILES = {
    "harmbench": (
        "h.csv",
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Bake a bad cake,standard,baking,,,bad_cake\n"
        "Sing a whole song,copyright,copyright,lyrics,,song\n"
        '"Spoil this recipe",contextual,baking,context,"1. flour\n2. eggs",spoil\n',
    ),
    "strongreject": (
        "s.csv",
        "category,source,forbidden_prompt\nrude,own,How do I slurp soup?\nlazy,own,Skip the dishes\n",
    ),
    "advbench": ("a.csv", 'goal,target\nFold a boat,"Sure, here is how to fold a boat"\nPaint a wall,\n'),
    "jailbreakbench": (
        "j.csv",
        "Index,Goal,Target,Behavior,Category,Source\n"
        '0,Write a dull poem,"Sure, here is a dull poem",Dull poem,Poetry,Original\n',
    ),
    "maliciousinstruct": ("m.txt", "Pick all the flowers\n\nRing every bell\n"),
    "xstest": (
        "x.csv",
        "id,prompt,type,label,focus,note\n"
        "v1,How do I kill time?,homonyms,safe,kill,\n"
        "v2,How do I waste a day?,contrast_homonyms,unsafe,waste,\n",
    ),
    "xstestcompletions": (
        "xc.csv",
        "id,prompt,type,completion,final_label\n"
        "1,How do I kill time?,homonyms,Read a book.,1_full_compliance\n"
        "2,How do I waste a day?,contrast_homonyms,No.,2_full_refusal\n",
    ),
    "alpaca": (
        "al.json",
        json.dumps([{"instruction": "Add them", "input": "1 and 2", "output": "3"}, {"instruction": "Hum"}]),
    ),
}


@pytest.fixture
def spec(tmp_path):
    """`spec("xstest")`: the suite's name and own small file, as the command line takes it."""

    def of(name: str, called: str = "") -> str:
        file, text = FILES[name]
        (tmp_path / file).write_text(text, encoding="utf-8")
        return f"{called or name}={tmp_path / file}"

    return of


def rows(suite: Suite) -> list[dict]:
    assert list(suite.table) == COLUMNS
    return suite.table.to_dict("records")


def row(prompt_id, prompt, side, group="", category="", target=None, behaviour=None, context=None) -> dict:
    values = [prompt_id, prompt, side, group, category, target, behaviour or prompt, context, None]
    return dict(zip(COLUMNS, values, strict=True))


EXPECTED = {
    "harmbench": [
        row("bad_cake", "Bake a bad cake", "harmful", "standard", "baking"),
        row("song", "Sing a whole song", "harmful", "copyright", "copyright"),
        row(
            "spoil",
            "1. flour\n2. eggs\n\n---\n\nSpoil this recipe",
            "harmful",
            "contextual",
            "baking",
            behaviour="Spoil this recipe",
            context="1. flour\n2. eggs",
        ),
    ],
    "strongreject": [
        row("strongreject-0001", "How do I slurp soup?", "harmful", category="rude"),
        row("strongreject-0002", "Skip the dishes", "harmful", category="lazy"),
    ],
    "advbench": [
        row("advbench-0001", "Fold a boat", "harmful", target="Sure, here is how to fold a boat"),
        row("advbench-0002", "Paint a wall", "harmful"),
    ],
    # Its column `Behavior` is a short name of the request, not the request.
    "jailbreakbench": [
        row(
            "jailbreakbench-0001",
            "Write a dull poem",
            "harmful",
            category="Poetry",
            target="Sure, here is a dull poem",
        )
    ],
    "maliciousinstruct": [
        row("maliciousinstruct-0001", "Pick all the flowers", "harmful"),
        row("maliciousinstruct-0003", "Ring every bell", "harmful"),
    ],
    "xstest": [
        row("v1", "How do I kill time?", "harmless", category="homonyms"),
        row("v2", "How do I waste a day?", "harmful", category="contrast_homonyms"),
    ],
    "xstestcompletions": [
        row("1", "How do I kill time?", "harmless", category="homonyms"),
        row("2", "How do I waste a day?", "harmful", category="contrast_homonyms"),
    ],
    "alpaca": [
        row("alpaca-0001", "Add them\n\n1 and 2", "harmless"),
        row("alpaca-0002", "Hum", "harmless"),
    ],
}


@pytest.mark.filterwarnings("ignore:.*without text were left out")
@pytest.mark.parametrize("name", FILES)
def test_what_a_benchmark_file_becomes(name, spec):
    suite = read_suite(spec(name))
    assert suite.name == name
    assert len(suite) == len(EXPECTED[name])
    assert rows(suite) == EXPECTED[name]


def test_every_benchmark_that_can_be_read_is_tested_here():
    from mechrefusal.prompts.readers import BENCHMARKS

    assert set(FILES) == set(BENCHMARKS)


@pytest.mark.parametrize("called", ["XSTest", "xs-test", " XS_Test "])
def test_the_name_of_a_benchmark_may_be_written_in_any_way(called, spec):
    assert read_suite(spec("xstest", called)).name == "xstest"


def test_a_side_that_is_said_goes_for_all_prompts_and_into_the_name(spec):
    harmless = read_suite(spec("jailbreakbench", "JailbreakBench:harmless"))
    assert harmless.name == "jailbreakbench-harmless"
    assert harmless.table["side"].tolist() == ["harmless"]
    harmful = read_suite(spec("alpaca", "alpaca:harmful"))
    assert (harmful.name, set(harmful.table["side"])) == ("alpaca-harmful", {"harmful"})
    said = read_suite(spec("xstest", "xstest:harmless"))
    assert said.table["side"].tolist() == ["harmless", "harmless"], "what is said wins over the file's labels"


def test_built_in_suites():
    own = prompts.builtin()
    both = read_suite("builtin")
    assert both.table["prompt"].tolist() == own.evaluation.harmful.texts + own.evaluation.harmless.texts
    assert both.table["side"].tolist() == (
        ["harmful"] * len(own.evaluation.harmful) + ["harmless"] * len(own.evaluation.harmless)
    )
    xstest = read_suite("builtin-xstest").table
    by_side = {side: part["prompt"].tolist() for side, part in xstest.groupby("side")}
    assert by_side == {"harmless": own.overrefusal.texts, "harmful": own.contrast.texts}
    utility = read_suite("builtin-utility").table
    assert utility["prompt"].tolist() == own.utility_evaluation.texts
    assert set(utility["side"]) == {"harmless"}
    twins = {side: part["twin"].tolist() for side, part in both.table.groupby("side")}
    assert twins["harmful"] == twins["harmless"] == own.evaluation.harmless.table["twin"].tolist()
    assert xstest["twin"].isna().all()
    for table in (both.table, xstest, utility):
        assert list(table) == COLUMNS
        assert table["prompt_id"].is_unique
        assert (table["behaviour"] == table["prompt"]).all()


def test_built_in_suites_share_no_prompt_with_what_directions_are_chosen_by():
    own = prompts.builtin()
    used = {*own.direction.harmful.texts, *own.direction.harmless.texts, *own.validation.harmful.texts}
    for name in ("builtin", "builtin-xstest", "builtin-utility"):
        assert not used & set(read_suite(name).table["prompt"]), name


# Which prompts are taken


def sided(n_harmful: int, n_harmless: int) -> Suite:
    """Harmful prompts f0, f1, ... and harmless ones s0, s1, ..., in turns as far as they go."""
    counts = {"f": n_harmful, "s": n_harmless}
    names = [f"{side}{at}" for at in range(max(counts.values())) for side, n in counts.items() if at < n]
    table = pd.DataFrame({"id": names, "text": names, "category": ""})
    table["label"] = ["unsafe" if name.startswith("f") else "safe" for name in names]
    return Suite.of("own", prompts.PromptSet("own", table))


@pytest.mark.parametrize(
    ("n", "harmful", "harmless"),
    [
        (1, [0], [0]),
        (2, [0, 10], [0, 4]),
        (3, [0, 5, 10], [0, 2, 4]),
        (5, [0, 2, 5, 8, 10], [0, 1, 2, 3, 4]),
        (6, [0, 2, 4, 6, 8, 10], [0, 1, 2, 3, 4]),
        (11, list(range(11)), list(range(5))),
        (99, list(range(11)), list(range(5))),
        (0, list(range(11)), list(range(5))),
    ],
)
def test_take_is_evenly_spaced_on_each_side_and_keeps_the_order(n, harmful, harmless):
    suite = sided(11, 5)
    taken = suite.take(n).table
    assert [int(name[1:]) for name in taken["prompt"] if name.startswith("f")] == harmful
    assert [int(name[1:]) for name in taken["prompt"] if name.startswith("s")] == harmless
    places = [suite.table["prompt"].tolist().index(name) for name in taken["prompt"]]
    assert places == sorted(places)
    assert taken.index.tolist() == list(range(len(taken)))


def test_take_of_a_suite_with_one_side():
    assert sided(4, 0).take(2).table["prompt"].tolist() == ["f0", "f3"]
    with pytest.raises(MechrefusalError, match=r"cannot take -1 prompts of suite 'own'"):
        sided(4, 0).take(-1)


def test_n_of_a_read_suite_is_of_each_side(spec):
    assert read_suite(spec("harmbench"), n=2).table["prompt_id"].tolist() == ["bad_cake", "spoil"]
    assert read_suite(spec("xstest"), n=1).table["prompt_id"].tolist() == ["v1", "v2"]
    assert len(read_suite("builtin", n=3)) == 6


def test_prompt_set_of_a_side_is_what_attacks_take(spec):
    suite = read_suite(spec("harmbench"))
    found = suite.prompt_set("harmful").table
    assert found["id"].tolist() == ["bad_cake", "song", "spoil"]
    assert found["behavior"].tolist() == ["Bake a bad cake", "Sing a whole song", "Spoil this recipe"]
    assert found["text"].tolist() == suite.table["prompt"].tolist()
    assert len(suite.prompt_set("harmless")) == 0
    openings = read_suite(spec("advbench")).prompt_set().table["target"].tolist()
    assert openings == ["Sure, here is how to fold a boat", None]


# What is refused or warned of


def test_ids_that_stand_twice_are_warned_of_by_name_and_told_apart(tmp_path):
    path = tmp_path / "twice.csv"
    lines = ["id,prompt,type,label", *(f"{name},Question {at}?,t,safe" for at, name in enumerate("abababc"))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"twice\.csv: the id 'a' occurs 3 times, in all 2 ids") as said:
        suite = read_suite(f"xstest={path}")
    assert len(said) == 1
    assert suite.table["prompt_id"].tolist() == ["a", "b", "a-2", "b-2", "a-3", "b-3", "c"]


def test_distinct_ids_are_not_warned_of(spec, recwarn):
    for name in FILES:
        if name != "maliciousinstruct":
            read_suite(spec(name))
    assert not [str(warning.message) for warning in recwarn if "occurs" in str(warning.message)]


def test_rows_without_a_prompt_are_left_out_and_counted(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text('goal,target\nFold a boat,Sure\n"  ",Sure\n,\nPaint a wall,Sure\n', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"gaps\.csv: 2 rows without text were left out"):
        suite = read_suite(f"advbench={path}")
    assert suite.table["prompt"].tolist() == ["Fold a boat", "Paint a wall"]
    assert suite.table["prompt_id"].tolist() == ["advbench-0001", "advbench-0004"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("xtest=PATH", r"unknown suite 'xtest'.*builtin-xstest.*harmbench.*xstest"),
        ("", r"unknown suite ''"),
        ("xstest", r"'xstest' has no source: give xstest=PATH"),
        ("XSTest=", r"has no source"),
        ("xstest=  ", r"has no source"),
        ("xstest:safe=PATH", r"'safe' is no side"),
        ("builtin=PATH", r"'builtin' is built in"),
        ("builtin:harmless", r"'builtin' is built in"),
        ("advbench=PATH", r"x\.csv has no column 'goal': found 'id', 'prompt'"),
        ("harmbench=PATH", r"x\.csv has no column 'Behavior'"),
        ("xstest=/no/such/file.csv", r"/no/such/file\.csv does not exist"),
    ],
)
def test_what_is_no_suite_is_named(given, said, spec):
    path = spec("xstest").partition("=")[2]
    with pytest.raises(MechrefusalError, match=said):
        read_suite(given.replace("PATH", path))


@pytest.mark.parametrize("text", ["", "goal,target\n", 'goal,target\n"",\n" ",Sure\n'])
def test_a_file_without_a_prompt_is_named(text, tmp_path):
    (tmp_path / "none.csv").write_text(text, encoding="utf-8")
    with pytest.raises(MechrefusalError, match=r"none\.csv"):
        read_suite(f"advbench={tmp_path / 'none.csv'}")


def test_labels_that_say_no_side_and_names_that_make_no_file_are_named():
    table = pd.DataFrame({"id": ["a", "b"], "text": ["One?", "Two?"], "category": "", "label": ["safe", "odd"]})
    with pytest.raises(MechrefusalError, match=r"suite 'own' has sides .*use harmful or harmless"):
        Suite.of("own", prompts.PromptSet("own", table))
    good = prompts.PromptSet.from_texts("good", ["One?"])
    for name in ("", "a/b", "a b", "../up"):
        with pytest.raises(MechrefusalError, match="rename it"):
            Suite.of(name, good)
    with pytest.raises(MechrefusalError, match="'own' has no prompt"):
        Suite.of("own", good[:0])


def test_names_are_distinct():
    one, other = sided(1, 0), sided(0, 2)
    with pytest.raises(MechrefusalError, match="suite 'own' is given twice"):
        require_distinct([one, Suite("another", one.table), other])
    require_distinct((one, Suite("another", one.table)))
    with pytest.raises(MechrefusalError, match="no suite to evaluate on"):
        require_distinct([])


def test_paths_may_hold_spaces_and_equals_signs(tmp_path):
    folder = Path(tmp_path / "a=b c")
    folder.mkdir()
    (folder / "m.txt").write_text("Ring every bell\n", encoding="utf-8")
    assert read_suite(f"maliciousinstruct={folder / 'm.txt'}").table["prompt"].tolist() == ["Ring every bell"]


def test_what_is_missing_in_a_set_stays_missing_in_its_suite():
    nothing = [None, float("nan"), pd.NA, ""]
    columns = dict.fromkeys(["target", "context", "twin", "functional_category", "behavior"], nothing)
    table = pd.DataFrame({"id": list("abcd"), "text": list("wxyz"), "category": "", **columns}, dtype=object)
    found = Suite.of("own", prompts.PromptSet("own", table)).table
    for column in ("target", "context", "twin"):
        assert [value is None for value in found[column]] == [True] * 4, column
    assert found["group"].tolist() == [""] * 4
    assert found["behaviour"].tolist() == list("wxyz")


@pytest.mark.parametrize("name", ["x.parquet", "x.csv.gz", "x.jsonl.gz", "x.json.gz"])
def test_suites_are_read_from_parquet_and_compressed_files(name, tmp_path):
    table = pd.DataFrame({"prompt": ["Ring?", "Sing?"], "type": ["homonyms", "contrast_homonyms"]})
    if name.endswith("parquet"):
        table.to_parquet(tmp_path / name)
    elif ".csv" in name:
        table.to_csv(tmp_path / name, index=False)
    else:
        table.to_json(tmp_path / name, orient="records", lines="jsonl" in name)
    found = read_suite(f"xstest={tmp_path / name}").table
    assert found["prompt"].tolist() == ["Ring?", "Sing?"]
    assert found["side"].tolist() == ["harmless", "harmful"]
