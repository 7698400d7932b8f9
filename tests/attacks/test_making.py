"""The case bank: attacked group by group, kept as it is made, continued where it was stopped, and never mixed."""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tolerances import FORWARD, REORDERED

from mechrefusal import MechrefusalError, prompts, tables
from mechrefusal.attacks import (
    METHODS,
    AttackCase,
    AutoDANSettings,
    GCGSettings,
    TemplateSettings,
    autodan,
    cost_table,
    gcg,
    jailbreaks,
    make_cases,
    random_stream,
    read_cases,
    write_cases,
)
from mechrefusal.attacks.making import MADE_WITH, method_of

pytestmark = pytest.mark.slow

GCG = GCGSettings(steps=2, width=8, top_k=16, suffix_length=6)
AUTODAN = AutoDANSettings(steps=2, population=4, sentence_steps=1, mutation=0.5)
TEMPLATES = TemplateSettings(names=("translation", "role_play"))
ALL = {"gcg": GCG, "autodan": AUTODAN, "templates": TEMPLATES}
SEARCHES = {"gcg": gcg, "autodan": autodan}


def asked(n: int = 5) -> prompts.PromptSet:
    """Built-in requests, one of them with quotes, a line break and an emoji; ids with a slash."""
    table = prompts.builtin().pool.harmful[:5].with_targets().table
    table.loc[1, "text"] = 'Say "it\'s" a {behaviour} 🔓\nand pick a lock'
    table["id"] = [f"pool/{n}" for n in range(len(table))]
    return prompts.PromptSet("pool", table)[:n]


def changed(n: int, place: int, **values) -> prompts.PromptSet:
    """The same, with other values in one row."""
    table = asked(n).table
    for name, value in values.items():
        table.loc[place, name] = value
    return prompts.PromptSet("pool", table)


def made(hf, behaviours: prompts.PromptSet, settings, path: Path | None = None, **changes) -> list[AttackCase]:
    return make_cases(*hf, behaviours, settings, **{"seed": 3, "source": "abc", "path": path, "at_once": 2} | changes)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def attacked(monkeypatch) -> list[list[str]]:
    """The ids of the behaviours that are attacked, group by group."""
    seen: list[list[str]] = []
    for module in SEARCHES.values():

        def noting(model, tokenizer, cases, *args, _made=module.optimise_all, **named):
            seen.append([case.id for case in cases])
            return _made(model, tokenizer, cases, *args, **named)

        monkeypatch.setattr(module, "optimise_all", noting)
    apply = jailbreaks.apply

    def noting_too(tokenizer, model, behaviours, **named):
        seen.append(behaviours.ids)
        return apply(tokenizer, model, behaviours, **named)

    monkeypatch.setattr(jailbreaks, "apply", noting_too)
    return seen


def alike(found: list[AttackCase], expected: list[AttackCase]) -> None:
    """The same cases, with losses up to the rounding of batched products."""
    for one, other in zip(found, expected, strict=True):
        assert one.history == pytest.approx(other.history, abs=REORDERED)
        assert one.loss == pytest.approx(other.loss, abs=REORDERED)
        assert replace(one, history=(), loss=0.0) == replace(other, history=(), loss=0.0)


def stop_after(monkeypatch, method: str, groups: int) -> None:
    """The search of `method` is stopped in the group after `groups`, in the middle of its steps."""
    module, done = SEARCHES[method], []
    real = module.optimise_all

    def stopping(*args, on_step, **named):
        def stop(now):
            raise KeyboardInterrupt

        done.append(1)
        return real(*args, on_step=stop if len(done) > groups else on_step, **named)

    monkeypatch.setattr(module, "optimise_all", stopping)


# What is made


def test_settings_say_which_method_they_are_for():
    assert {name: method_of(settings) for name, settings in ALL.items()} == {name: name for name in ALL}
    assert list(ALL) == list(METHODS)


@pytest.mark.parametrize("method", ["gcg", "autodan"])
def test_each_behaviour_has_a_case_that_depends_on_its_id_and_the_seed_alone(tiny_hf, method):
    cases = made(tiny_hf, asked(), ALL[method])
    assert [case.id for case in cases] == asked().ids
    assert [case.behaviour for case in cases] == asked().texts
    assert [case.target for case in cases] == asked().table["target"].tolist()
    assert {(case.method, case.source, case.steps, case.age) for case in cases} == {(method, "abc", 2, 1)}
    start = SEARCHES[method].start_all(tiny_hf[1], asked()[[3]], ALL[method], source="abc")[0]
    alone = SEARCHES[method].optimise(*tiny_hf, start, ALL[method], generator=random_stream(3, "pool/3"))
    assert alone.prompt == cases[3].prompt
    assert alone.history == pytest.approx(cases[3].history, abs=FORWARD)
    backwards = made(tiny_hf, asked()[[4, 3, 1]], ALL[method])
    assert [case.id for case in backwards] == ["pool/4", "pool/3", "pool/1"]
    assert [case.prompt for case in backwards] == [cases[place].prompt for place in (4, 3, 1)]
    assert [case.prompt for case in made(tiny_hf, asked(), ALL[method], seed=4)] != [case.prompt for case in cases]


def test_every_behaviour_is_put_into_every_template_asked_for(tiny_hf):
    cases = made(tiny_hf, asked(3), TEMPLATES)
    texts = {template.name: template for template in jailbreaks.templates()}
    expected = [(id, text, name) for id, text in zip(asked(3).ids, asked(3).texts, strict=True)
                for name in ("role_play", "translation")]  # fmt: skip
    assert [case.id for case in cases] == [f"{id}/{name}" for id, _, name in expected]
    assert [case.prompt for case in cases] == [texts[name].fill(text) for _, text, name in expected]
    assert {(case.method, case.source, case.steps) for case in cases} == {("templates", "abc", 0)}
    assert len(made(tiny_hf, asked(1), TemplateSettings())) == len(jailbreaks.templates())


@pytest.mark.parametrize("method", METHODS)
def test_no_behaviours_are_no_cases_and_no_file(tiny_hf, tmp_path: Path, method):
    assert made(tiny_hf, asked()[[]], ALL[method], tmp_path / "cases.parquet") == []
    assert names_in(tmp_path) == []


def test_unknown_templates_are_named():
    with pytest.raises(
        MechrefusalError, match=r"unknown jailbreak templates \['nope', 'nor'\]: choose from role_play, "
    ):
        TemplateSettings(names=("role_play", "nope", "nor"))


# What is kept


@pytest.mark.parametrize("method", METHODS)
def test_cases_are_kept_with_what_they_were_made_with(tiny_hf, tmp_path: Path, method):
    path = tmp_path / "deeper" / "cases.parquet"
    cases = made(tiny_hf, asked(), ALL[method], path)
    assert read_cases(path, source="abc") == cases == made(tiny_hf, asked(), ALL[method])
    assert names_in(path.parent) == ["cases.parquet"]
    note = json.loads(pq.read_schema(path).metadata[MADE_WITH])
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(ALL[method]).items()}
    assert note == {"method": method, "seed": 3, "source": "abc", "dtype": "float32", "settings": settings}


@pytest.mark.parametrize("method", METHODS)
def test_a_second_call_makes_nothing_anew(tiny_hf, tmp_path: Path, attacked, method):
    path = tmp_path / "cases.parquet"
    cases = made(tiny_hf, asked(), ALL[method], path)
    written = path.read_bytes()
    attacked.clear()
    again = made(tiny_hf, asked(), ALL[method], path, at_once=8)
    assert again == cases
    assert [case.seconds for case in again] == [case.seconds for case in cases]
    assert attacked == []
    assert path.read_bytes() == written


@pytest.mark.parametrize("method", ["gcg", "autodan"])
def test_a_killed_call_continues_after_its_last_group(tiny_hf, tmp_path: Path, monkeypatch, method, request):
    path = tmp_path / "cases.parquet"
    whole = made(tiny_hf, asked(), ALL[method])
    with monkeypatch.context() as patch:
        stop_after(patch, method, groups=1)
        with pytest.raises(KeyboardInterrupt):
            made(tiny_hf, asked(), ALL[method], path)
    assert names_in(tmp_path) == ["cases.parquet"]
    assert read_cases(path, source="abc") == whole[:2]
    attacked = request.getfixturevalue("attacked")
    assert made(tiny_hf, asked(), ALL[method], path) == whole == read_cases(path, source="abc")
    assert attacked == [["pool/2", "pool/3"], ["pool/4"]]


@pytest.mark.parametrize("method", ["gcg", "autodan"])
def test_a_call_that_is_killed_in_its_first_group_leaves_nothing(tiny_hf, tmp_path: Path, monkeypatch, method):
    stop_after(monkeypatch, method, groups=0)
    with pytest.raises(KeyboardInterrupt):
        made(tiny_hf, asked(), ALL[method], tmp_path / "cases.parquet")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("method", ["gcg", "autodan"])
def test_cases_are_on_disk_after_each_group(tiny_hf, tmp_path: Path, monkeypatch, method):
    path, kept = tmp_path / "cases.parquet", []
    real = SEARCHES[method].optimise_all

    def looking(*args, **named):
        kept.append(len(read_cases(path, source="abc")) if path.exists() else 0)
        return real(*args, **named)

    monkeypatch.setattr(SEARCHES[method], "optimise_all", looking)
    made(tiny_hf, asked(), ALL[method], path)
    assert kept == [0, 2, 4]


@pytest.mark.parametrize("method", METHODS)
def test_more_behaviours_are_added_in_their_order(tiny_hf, tmp_path: Path, attacked, method):
    path = tmp_path / "cases.parquet"
    made(tiny_hf, asked()[[3, 1]], ALL[method], path)
    attacked.clear()
    found = made(tiny_hf, asked(), ALL[method], path)
    assert [id for group in attacked for id in group] == ["pool/0", "pool/2", "pool/4"]
    alike(found, made(tiny_hf, asked(), ALL[method]))
    assert len(read_cases(path, source="abc")) == len(asked()) * (2 if method == "templates" else 1)


# What is refused


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_other_settings_seed_or_source_is_refused_by_name(tiny_hf, tmp_path: Path, attacked, method):
    path = tmp_path / "cases.parquet"
    others = {
        "gcg": replace(GCG, width=9),
        "autodan": replace(AUTODAN, mutation=0.4),
        "templates": TemplateSettings(("role_play",)),
    }
    made(tiny_hf, asked(2), ALL[method], path)
    written = path.read_bytes()
    attacked.clear()
    for settings, changes, differing in (
        (others[method], {}, "settings"),
        (ALL[method], {"seed": 4}, "seed"),
        (ALL[method], {"source": "other"}, "source"),
        (others[method], {"source": "other", "seed": 4}, "seed, settings, source"),
        (ALL[METHODS[METHODS.index(method) - 1]], {}, "method, settings"),
    ):
        with pytest.raises(MechrefusalError, match=rf"cases\.parquet' .* made with another {differing}: give another"):
            made(tiny_hf, asked(2), settings, path, **changes)
    assert attacked == []
    assert path.read_bytes() == written


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_other_behaviours_is_refused_by_name(tiny_hf, tmp_path: Path, method):
    path = tmp_path / "cases.parquet"
    made(tiny_hf, asked(2), ALL[method], path)
    written = path.read_bytes()
    for behaviours in (changed(2, 1, text="Explain something else"), changed(2, 1, id="pool/9"), asked(1)):
        with pytest.raises(MechrefusalError, match=r"cases\.parquet' holds the case 'pool/1.*' of another behaviour"):
            made(tiny_hf, behaviours, ALL[method], path)
    assert path.read_bytes() == written


def test_a_case_is_not_kept_for_another_target(tiny_hf, tmp_path: Path):
    """Either it is refused, or it is made anew: the old one aims at something else."""
    path = tmp_path / "cases.parquet"
    made(tiny_hf, asked(2), GCG, path)
    found: list[AttackCase] = []
    with suppress(MechrefusalError):
        found = made(tiny_hf, changed(2, 1, target="Certainly! Step 1:"), GCG, path)
    assert [case.target for case in found[1:]] in ([], ["Certainly! Step 1:"])


def noted(path: Path, note: bytes) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({MADE_WITH: note}), path)


DAMAGES = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("id,behaviour\n", encoding="utf-8"), "cannot be read"),
    "another table": (lambda path: pd.DataFrame({"id": ["a"]}).to_parquet(path), "not a table of attack cases"),
    "no note": (
        lambda path: write_cases(read_cases(path, source=None), path),
        "another dtype, method, seed, settings, source",
    ),
    "broken note": (lambda path: noted(path, b"{'seed"), ""),
    "note of another kind": (lambda path: noted(path, b"[3]"), ""),
    "folder": (lambda path: path.unlink() or path.mkdir(), ""),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_and_left_as_it_is(tiny_hf, tmp_path: Path, attacked, damage, said):
    path = tmp_path / "cases.parquet"
    made(tiny_hf, asked(1), GCG, path)
    damage(path)
    left = path.read_bytes() if path.is_file() else None
    attacked.clear()
    with pytest.raises(MechrefusalError, match=r"cases\.parquet") as error:
        made(tiny_hf, asked(1), GCG, path)
    assert said in str(error.value)
    assert attacked == []
    assert left is None or path.read_bytes() == left


@pytest.mark.parametrize("method", METHODS)
def test_what_no_attack_can_use_is_named_before_the_first_step(tiny_hf, tmp_path: Path, attacked, method):
    path = tmp_path / "cases.parquet"
    attacked_before = [] if method != "templates" else [["pool/0", "pool/1", "pool/2"]]  # which looks at them itself
    with pytest.raises(MechrefusalError, match=r"'pool/2.*' is \d+ tokens long .* more than the 512"):
        made(tiny_hf, changed(3, 2, text="lock " * 600), ALL[method], path, at_once=1)
    with pytest.raises(MechrefusalError, match=r"'pool/2.*' is \d+ tokens long .* more than the 512"):
        made(tiny_hf, changed(3, 2, target="lock " * 600), ALL[method], path, at_once=1)
    assert attacked == attacked_before * 2
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("method", METHODS)
def test_what_is_too_long_only_with_its_attack_is_named_before_the_first_step(tiny_hf, tmp_path: Path, method):
    """The behaviour alone fits the 512 tokens, with its target; the suffix, seed or template around it does not."""
    words, target, tokenizer = "lock " * 300, "Sure, here is how", tiny_hf[1]
    while len(prompts.segments(tokenizer, words, target=target, end_of_turn=False).ids) > 510:
        words = words.removesuffix("lock ")
    assert len(prompts.segments(tokenizer, words, target=target, end_of_turn=False).ids) > 505
    path = tmp_path / "cases.parquet"
    with pytest.raises(MechrefusalError, match=r"case 'pool/2"):
        made(tiny_hf, changed(3, 2, text=words, target=target), ALL[method], path, at_once=1)
    assert names_in(tmp_path) == []


# What it cost


def test_the_cost_table_has_the_columns_of_its_schema(tiny_hf):
    cases = [case for settings in ALL.values() for case in made(tiny_hf, asked(2), settings)]
    table = cost_table(cases)
    assert tuple(table.columns) == tables.columns("cases")
    assert tables.frame("cases", table).equals(table)
    assert tuple(cost_table([]).columns) == tables.columns("cases")
    assert table["case"].tolist() == [case.id for case in cases]
    for row, case in zip(table.to_dict("records"), cases, strict=True):
        assert row["loss_first"] == case.history[0] >= case.loss == row["loss"]
        for name in ("source", "method", "behaviour", "prompt", "steps", "forward_tokens", "dropped", "seconds"):
            assert row[name] == getattr(case, name)
    unmeasured = cost_table([gcg.start_all(tiny_hf[1], asked(1), GCG, source="abc")[0]])
    assert unmeasured[["loss_first", "loss"]].isna().all(axis=None)


def test_the_cost_table_survives_parquet(tiny_hf, tmp_path: Path):
    table = cost_table(made(tiny_hf, asked(2), GCG))
    path = tables.write(table, "cases", tmp_path)
    pd.testing.assert_frame_equal(tables.read("cases", path.parent), table)
