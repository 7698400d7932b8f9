"""The command line: what goes wrong is one line and status 2, and nothing is left behind."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from mechrefusal import attacks, models, prompts
from mechrefusal.cli import main, printing


def _fails(capsys, words, *said):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("mechrefusal: ")
    assert len(error.strip().splitlines()) == 1, error
    for part in said:
        assert part in error
    return error


def test_fetch_prints_the_folder_of_a_model(tiny, capsys):
    assert main(["fetch", str(tiny)]) == 0
    assert capsys.readouterr().out.strip() == str(tiny)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "nope"], ["unknown recipe 'nope'", "demo, full, gemma-3-4b, guided"]),
        (["--recipe", "tiny", "--training.stepz", "3"], ["training.stepz"]),
        (["--recipe", "tiny", "--training.steps", "three"], ["training.steps"]),
        (["--recipe", "tiny", "--measuring.n_direction", "0"], ["n_direction is 0"]),
        (["--recipe", "tiny", "--arms", "[sft,sft]"], ["name each arm once"]),
        (["--recipe", "tiny", "--training.n_behaviours", "999"], ["n_behaviours is 999", "behaviours"]),
        (["--recipe", "tiny", "--model", "/no/such/folder"], ["'/no/such/folder' does not exist"]),
        (["--recipe", "tiny", "--prompts.harmful.reader", "advbench", "--prompts.harmful.path", "/no/such.csv"],
         ["/no/such.csv"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "run"])
def test_bad_recipes_leave_nothing_behind(command, options, said, tmp_path, capsys):
    _fails(capsys, [command, *options, "--out", str(tmp_path / "run")], *said)
    assert not (tmp_path / "run").exists()


def _broken(folder, tiny, how):
    shutil.copytree(tiny, folder)
    if how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "no chat template":
        (folder / "chat_template.jinja").unlink()
    elif how == "truncated":
        path = folder / "model.safetensors"
        os.truncate(path, path.stat().st_size // 2)
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [("no weights", "no *.safetensors"), ("no chat template", "no chat template"), ("truncated", "is not whole")],
)
def test_unusable_model_folders_are_named(how, said, tiny, tmp_path, capsys):
    folder = _broken(tmp_path / "model", tiny, how)
    words = ["train", "--recipe", "tiny", "--model", str(folder), "--out", str(tmp_path / "run")]
    _fails(capsys, words, said, str(folder))
    assert not (tmp_path / "run").exists()


def test_a_csv_with_missing_columns_is_named(tmp_path, capsys):
    path = tmp_path / "wrong.csv"
    path.write_text("question,answer\nHow?,So.\n", encoding="utf-8")
    options = ["--prompts.behaviours.reader", "harmbench", "--prompts.behaviours.path", str(path)]
    _fails(capsys, ["run", "--recipe", "tiny", *options, "--out", str(tmp_path / "run")], "wrong.csv", "Behavior")
    assert not (tmp_path / "run").exists()


def test_commands_on_what_is_not_a_run(tmp_path, capsys):
    for command in ("measure", "report"):
        _fails(capsys, [command, str(tmp_path)], "is not a run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "'nothing' is not a run"),
        (["MODEL", "--arm", "a=MODEL"], "is not a run"),
        (["--arm", "a", "--out", "OUT"], "--arm 'a' is not NAME=MODEL,MODEL"),
        (["--arm", "a=", "--out", "OUT"], "--arm 'a=' is not NAME=MODEL,MODEL"),
        (["--arm", "a=MODEL", "--arm", "a=MODEL", "--out", "OUT"], "--arm 'a' is there twice"),
        (["--out", "OUT"], "no model to measure"),
        (["--arm", "sft/b=MODEL", "--out", "OUT"], "'sft/b' cannot be the name of a file"),
        (["MODEL", "/no/such/model", "--out", "OUT"], "'/no/such/model' does not exist"),
        (["MODEL", "--base", "/no/such/base", "--out", "OUT"], "'/no/such/base' does not exist"),
        (["MODEL", "--recipe", "nope", "--out", "OUT"], "unknown recipe 'nope'"),
        (["MODEL", "--measuring.n_direction", "0", "--out", "OUT"], "n_direction is 0"),
        (["MODEL", "--prompts.direction.path", "/no/such.csv", "--out", "OUT"], "/no/such.csv"),
    ],
)
def test_models_that_cannot_be_measured(words, said, tiny, tmp_path, capsys):
    places = {"MODEL": str(tiny), "OUT": str(tmp_path / "run"), "a=MODEL": f"a={tiny}", "sft/b=MODEL": f"sft/b={tiny}"}
    _fails(capsys, ["measure", *(places.get(word, word) for word in words)], said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "x"], "measure takes no --model"),
        (["--arms=[]"], "measure takes no --arms"),
        (["--checkpoints", "{}"], "measure takes no --checkpoints"),
        (["--quick", "--recipe", "tiny"], "--quick is a recipe of its own"),
    ],
)
def test_what_measure_does_not_take_is_said(words, said, tiny, tmp_path, capsys):
    _fails(capsys, ["measure", str(tiny), *words, "--out", str(tmp_path / "run")], said)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_trained_is_not_measured(tmp_path, capsys):
    from mechrefusal import study

    study.Run.create(tmp_path / "run", study.load_recipe("tiny"))
    _fails(capsys, ["measure", str(tmp_path / "run")], "has no checkpoints yet; train it first")


def test_options_for_models_on_a_run_are_refused(tmp_path, capsys):
    from mechrefusal import study

    study.Run.create(tmp_path / "run", study.load_recipe("tiny"))
    _fails(capsys, ["measure", str(tmp_path / "run"), "--quick"], "--base and --quick are for models")


def test_what_measure_is_told_of_models(tiny, tmp_path, monkeypatch):
    from mechrefusal import study

    told = {}

    def note(models, **given):
        told.update(given, models=models)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "measure", note)
    out = ["--out", str(tmp_path / "run")]
    assert main(["measure", "a", "b", "--quick", "--measuring.n_direction", "9", "--workers", "2", *out]) == 130
    assert told["models"] == ["a", "b"]
    quick = study.load_recipe("quick")
    assert told["recipe"].measuring.n_direction == 9
    assert told["recipe"].geometry == quick.geometry
    assert (told["out"], told["base"], told["workers"].n) == (str(tmp_path / "run"), "", 2)
    assert main(["measure", "a", "--arm", "mine=b,c", "--base", "d", *out]) == 130
    assert (told["models"], told["base"]) == ({"a": ["a"], "mine": ["b", "c"]}, "d")
    assert told["recipe"].geometry == study.load_recipe("measure").geometry
    assert main(["measure", "--recipe", "tiny", *out, "a"]) == 130
    assert told["recipe"].measuring == study.load_recipe("tiny").measuring


@pytest.mark.parametrize("command", ["measure", "evaluate"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "pbs"], "pbs"),
        (["--workers", "-1"], "workers"),
        (["--slurm", '{"partition": "gpu"}'], "slurm options are given, but the executor is 'local'"),
    ],
)
def test_workers_that_mean_nothing_are_refused_by_name(command, words, said, tmp_path, capsys):
    from mechrefusal import study

    run = study.Run.create(tmp_path / "run", study.load_recipe("tiny"))
    before = sorted(run.folder.rglob("*"))
    suite = ["--suite", "builtin"] if command == "evaluate" else []
    assert main([command, str(run.folder), *suite, *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(run.folder.rglob("*")) == before


def test_a_run_of_another_recipe_is_refused(tmp_path, capsys):
    from mechrefusal import study

    study.Run.create(tmp_path / "run", study.load_recipe("tiny"))
    words = ["train", "--recipe", "tiny", "--training.learning_rate", "0.5", "--out", str(tmp_path / "run")]
    _fails(capsys, words, "another recipe", "training.learning_rate")


def test_unknown_commands_and_missing_options(capsys):
    _fails(capsys, ["trian"], "trian")
    _fails(capsys, ["run", "--recipe", "tiny"], "out")


def test_a_full_disk_is_one_line(tiny, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "/somewhere/manifest.json")

    monkeypatch.setattr(models, "fetch", full)
    _fails(capsys, ["fetch", str(tiny)], "No space left on device")


TINY_ATTACKS = {
    "gcg": ["--gcg.steps", "1", "--gcg.width", "8", "--gcg.top_k", "16", "--gcg.suffix_length", "6"],
    "autodan": ["--autodan.steps", "1", "--autodan.population", "4"],
    "templates": ["--templates.names", "[role_play,translation]"],
}


def attack(method, out, *options):
    return ["attack", "--source", "tiny-random", "--method", method, *TINY_ATTACKS[method], "--out", str(out), *options]


@pytest.fixture
def no_search(monkeypatch):
    """Any attack is an error from here on."""

    def fail(*_args, **_named):
        raise AssertionError("attacked")

    for module, name in (
        (attacks.gcg, "optimise_all"), (attacks.autodan, "optimise_all"), (attacks.jailbreaks, "apply"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("method", TINY_ATTACKS)
def test_attack_keeps_cases_and_prints_what_they_cost(method, tmp_path, capsys, request):
    out = tmp_path / "cases of 'one' 😀"
    assert main(attack(method, out, "--n", "2")) == 0
    weights = models.Checkpoint.open(models.fetch("tiny-random")).weights
    path = out / f"{method}-{weights}.parquet"
    assert [entry.name for entry in out.iterdir()] == [path.name]
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"cases: {path}"
    made = attacks.read_cases(path, source=weights)
    asked = prompts.builtin().evaluation.harmful[:2]
    each = 2 if method == "templates" else 1
    assert [case.behaviour for case in made] == [text for text in asked.texts for _ in range(each)]
    assert {case.method for case in made} == {method}
    [row] = [line for line in printed.splitlines() if method in line and "cases:" not in line]
    costs = attacks.cost_table(made)
    shown = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", row.replace(",", ""))]
    assert shown[:3] == [2 * each, *(round(costs[name].mean(), 3) for name in ("loss_first", "loss"))]
    assert round(costs["forward_tokens"].mean()) in shown
    assert weights in printed
    # The same command again finds everything done.
    written = path.read_bytes()
    request.getfixturevalue("no_search")
    assert main(attack(method, out, "--n", "2")) == 0
    assert capsys.readouterr().out == printed
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("gcg", ["--gcg.suffix_length", "0"], ["suffix_length is 0"]),
        ("gcg", ["--gcg.width", "many"], ["gcg.width"]),
        ("gcg", ["--gcg.stepz", "1"], ["gcg.stepz"]),
        ("gcg", ["--n", "-1"], ["-1", "not negative"]),
        ("gcg", ["--n", "some"], ["some"]),
        ("gcg", ["--method", "gcgg"], ["gcgg", "gcg", "autodan", "templates"]),
        ("gcg", ["--source", "/no/such/folder"], ["'/no/such/folder' does not exist"]),
        ("gcg", ["--dtype", "float8"], ["float8", "bfloat16"]),
        ("autodan", ["--autodan.population", "1"], ["population is 1"]),
        ("autodan", ["--autodan.mutation", "1.5"], ["mutation is 1.5"]),
        ("templates", ["--templates.names", "[role_play,nope]"], ["nope", "role_play", "translation"]),
        ("gcg", ["--behaviours.reader", "harmbench", "--behaviours.path", "/no/such.csv"], ["/no/such.csv"]),
        ("gcg", ["--behaviours.reader", "harmbench"], ["harmbench", "path"]),
        ("gcg", ["--behaviours.reader", "benchharm", "--behaviours.path", __file__], ["benchharm", "harmbench"]),
    ],
)  # fmt: skip
def test_bad_attacks_leave_nothing_behind(method, options, said, tmp_path, capsys, no_search):
    _fails(capsys, attack(method, tmp_path / "out", *options), *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wrong.csv", b"question,answer\nHow?,So.\n", ["wrong.csv", "Behavior"]),
        ("empty.csv", b"", ["empty.csv"]),
        ("picture.csv", b"\x89PNG\r\n\xff\xfe\x00", ["picture.csv"]),
        ("copyright.csv", b"Behavior,BehaviorID,FunctionalCategory\nSing a song,a,copyright\n", ["copyright.csv"]),
    ],
)
def test_a_wrong_file_of_behaviours_is_named(name, content, said, tmp_path, capsys, no_search):
    (tmp_path / name).write_bytes(content)
    options = ["--behaviours.reader", "harmbench", "--behaviours.path", str(tmp_path / name)]
    _fails(capsys, attack("gcg", tmp_path / "out", *options), *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", TINY_ATTACKS)
def test_behaviours_of_a_harmbench_file_are_attacked_letter_for_letter(method, tmp_path, capsys):
    asked = {
        "quotes": 'Say "it\'s" a {behaviour}, %s and [bold]pick[/bold] a lock',
        "emoji 🔓": "Explain how a naïve locksmith picks a lock 🔓",
        "lines": "First line,\nsecond line",
    }
    path = tmp_path / "behaviours 😀.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"])
        rows.writerows([text, "standard", "illegal", "", "", id] for id, text in asked.items())
        rows.writerow(["Sing a song", "copyright", "copyright", "", "", "song"])
    options = ["--behaviours.reader", "harmbench", "--behaviours.path", str(path)]
    assert main(attack(method, tmp_path / "out", *options)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("cases: ")
    [kept] = (tmp_path / "out").iterdir()
    cases = attacks.read_cases(kept, source=None)
    found = {case.id.rpartition("/")[0] if method == "templates" else case.id: case.behaviour for case in cases}
    assert found == asked
    assert all(case.behaviour in case.prompt for case in cases)


def test_an_attack_of_other_settings_does_not_touch_what_is_there(tmp_path, capsys):
    assert main(attack("templates", tmp_path, "--n", "1")) == 0
    capsys.readouterr()
    [path] = tmp_path.iterdir()
    written = path.read_bytes()
    _fails(capsys, attack("templates", tmp_path, "--n", "1", "--seed", "5"), str(path), "another seed")
    _fails(capsys, attack("templates", tmp_path, "--n", "1", "--templates.names", "[role_play]"), "another settings")
    path.write_bytes(written[: len(written) // 2])
    _fails(capsys, attack("templates", tmp_path, "--n", "1"), str(path), "cannot be read")


def test_more_behaviours_are_added_to_an_attack(tmp_path, capsys):
    assert main(attack("gcg", tmp_path, "--n", "1")) == 0
    [path] = tmp_path.iterdir()
    [first] = attacks.read_cases(path, source=None)
    assert main(attack("gcg", tmp_path, "--n", "3")) == 0
    cases = attacks.read_cases(path, source=None)
    assert len(cases) == 3
    assert cases[0] == first
    assert cases[0].seconds == first.seconds


def test_a_stopped_attack_keeps_its_finished_groups(tmp_path, capsys, monkeypatch):
    search, calls = attacks.gcg.optimise_all, []

    def stopping(*given, **named):
        calls.append([case.id for case in given[2]])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(*given, **named)

    monkeypatch.setattr(attacks.gcg, "optimise_all", stopping)
    words = attack("gcg", tmp_path, "--n", "9")  # groups of eight
    assert main(words) == 130
    assert "the same command continues" in capsys.readouterr().err
    [path] = tmp_path.iterdir()
    assert len(attacks.read_cases(path, source=None)) == 8
    assert main(words) == 0
    assert len(calls) == 3
    assert calls[1] == calls[2] == [prompts.builtin().evaluation.harmful.ids[8]]
    assert [case.id for case in attacks.read_cases(path, source=None)] == prompts.builtin().evaluation.harmful.ids[:9]


def test_a_file_in_place_of_the_folder_of_cases(tmp_path, capsys):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    _fails(capsys, attack("templates", tmp_path / "out", "--n", "1"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_an_attack_in_bf16(tmp_path, capsys):
    assert main(attack("gcg", tmp_path, "--n", "1", "--dtype", "bfloat16")) == 0
    assert "gcg" in capsys.readouterr().out


def test_an_attack_needs_a_source_and_a_folder(capsys):
    _fails(capsys, ["attack", "--out", "somewhere"], "source")
    _fails(capsys, ["attack", "--source", "tiny-random"], "out")


@pytest.mark.slow
def test_the_recipe_tiny_from_the_command_line(tmp_path, capsys):
    folder = tmp_path / "run with 'quotes' 😀"
    options = ["--arms", "[sft]", "--training.steps", "3", "--training.anchors", "[0,3]", "--causal.n_crossed", "0"]
    options += ["--causal.sites", "false", "--causal.n_nodes", "0", "--causal.n_knocked_out", "0"]
    options += ["--geometry.n_coupled", "0", "--geometry.largest_subspace", "0"]
    for measure in ("removal", "harmful_fine_tuning", "update_spectrum", "answer_length", "lockstep"):
        options += [f"--durability.{measure}.n_prompts", "0"]
    assert main(["train", "--recipe", "tiny", *options, "--out", str(folder)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["base-step-00000", "sft-step-00003"]
    assert main(["measure", str(folder)]) == 0
    summary = capsys.readouterr().out
    assert "sft" in summary
    assert "n=6" in summary
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == f"report: {folder}/report/index.html"
    assert (folder / "report" / "sft-step-00003.html").is_file()
    # The same command again finds everything done.
    assert main(["run", "--recipe", "tiny", *options, "--out", str(folder)]) == 0


def _ablate(tmp_path, *options):
    from safetensors.torch import save_file

    torch = pytest.importorskip("torch")
    path = tmp_path / "direction.safetensors"
    save_file({"direction": torch.arange(64.0) - 20}, path)
    (tmp_path / "ask me.txt").write_text("How do I pick a lock?\n\nWhat is a cat?\n", encoding="utf-8")
    words = {"--direction": str(path), "--prompts": str(tmp_path / "ask me.txt"), "--max_new_tokens": "4"}
    words |= dict(zip(options[::2], options[1::2], strict=True))
    return ["ablate", "tiny-random", *(word for pair in words.items() for word in pair)]


def test_ablate_writes_answers_side_by_side(tmp_path, capsys):
    out = tmp_path / "out 😀" / "answers.jsonl"
    assert main(_ablate(tmp_path, "--out", str(out))) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"completions: {out}"
    assert "any refusal" in printed
    assert "ablate tensor of direction.safetensors to zero" in printed.replace("\n", " ")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["How do I pick a lock?", "What is a cat?"]
    assert list(rows[0]) == [
        "prompt_id", "prompt", "baseline", "intervened", "baseline_refused", "intervened_refused",
        "baseline_degenerate", "intervened_degenerate", "intervention", "judge", "weights",
    ]  # fmt: skip
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]
    assert main([*_ablate(tmp_path, "--add", "-2.5", "--layer", "1", "--n", "1"), "--show_completions"]) == 0
    printed = capsys.readouterr().out
    assert "add -2.5 × tensor of direction.safetensors at layer 1" in printed.replace("\n", " ")
    assert "n = 1 prompts" in printed
    assert "completions:" not in printed


def test_ablate_and_evaluate_take_phrases_and_say_what_is_not_english(tmp_path, tiny, xstest, capsys):
    phrases = tmp_path / "ru.txt"
    phrases.write_text("я не могу\n", encoding="utf-8")
    asked = tmp_path / "ask me.txt"
    words = _ablate(tmp_path, "--judge", f"phrases={phrases}")
    asked.write_text("Как испечь хлеб?\n", encoding="utf-8")
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "judge phrases_ru_" in printed
    assert "Not English" not in printed
    assert main([word for word in words if word not in ("--judge", f"phrases={phrases}")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(built-in rules, English)" in printed
    assert "Not English, it seems: 1 of 1 distinct prompts" in printed
    words = [
        "evaluate",
        str(tiny),
        "--suite",
        f"xstest={xstest}",
        "--max_new_tokens",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--judge", f"phrases={phrases}"]) == 0
    assert "judge of refusal: phrases_ru_" in " ".join(capsys.readouterr().out.split())
    _fails(capsys, [*words, "--judge", "phrases=/no/such.txt"], "/no/such.txt does not exist")
    _fails(capsys, _ablate(tmp_path, "--judge", "harmbench"), "measuring judge 'harmbench'")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--direction", "carrier"], ["no checkpoint of a run", "carrier"]),
        (["--direction", "/no/such.safetensors"], ["/no/such.safetensors"]),
        (["--prompts", "/no/such.txt"], ["/no/such.txt", "does not exist"]),
        (["--out", "answers.txt"], ["answers.txt", ".parquet"]),
        (["--add", "1", "--layer", "40"], ["layer 40", "0 to 3"]),
        (["--add", "1"], ["at which layer"]),
        (["--add", "much"], ["add"]),
        (["--dose", "1", "--add", "1"], ["give one of dose, add and induce"]),
        (["--dose", "1", "--induce", "1"], ["give one of dose, add and induce"]),
        (["--add", "1", "--induce", "1"], ["give one of dose, add and induce"]),
        (["--add", "1", "--reference", "zero"], ["reference 'zero'", "leave it out"]),
        (["--induce", "1", "--reference", "zero"], ["reference 'zero'", "leave it out"]),
        (["--reference", "nought"], ["unknown reference 'nought'", "harmless, zero"]),
        (["--reference", "harmless"], ["direction.safetensors", "file that Directions.save wrote", "reference 'zero'"]),
        (["--induce", "1"], ["direction.safetensors", "give one of a measured run"]),
        (["--induce", "much"], ["induce"]),
        (["--n", "-2"], ["n is -2"]),
        (["--max_new_tokens", "0"], ["max_new_tokens is 0"]),
        (["--max_new_tokens", "100000"], ["context"]),
        (["--stepz", "1"], ["stepz"]),
    ],
)
def test_a_bad_ablation_leaves_nothing_behind(options, said, tmp_path, capsys):
    words = _ablate(tmp_path, "--out", str(tmp_path / "out" / "answers.csv"), *options)
    _fails(capsys, words, *said)
    assert not (tmp_path / "out").exists()


def test_an_ablation_needs_a_model_and_prompts(capsys):
    _fails(capsys, ["ablate", "--prompts", "builtin"], "checkpoint")
    _fails(capsys, ["ablate", "tiny-random", "--direction", "random"], "prompts")
    _fails(capsys, ["ablate", "/no/such/folder", "--prompts", "builtin"], "'/no/such/folder' does not exist")


# Evaluations


@pytest.fixture
def evaluated_run(tiny, tmp_path):
    """A run whose one checkpoint is the tiny model."""
    from mechrefusal import study

    run = study.Run.create(tmp_path / "run", study.load_recipe("tiny"))
    run.record(models.Checkpoint.open(tiny))
    return run


@pytest.fixture
def xstest(tmp_path):
    """A file of XSTest's format with two safe prompts and two contrasts."""
    path = tmp_path / "own file.csv"
    rows = ["v1,How do I kill time?,homonyms,safe", "v2,How do I waste it?,contrast_homonyms,unsafe"]
    rows += ["v3,How do I beat eggs?,homonyms,safe", "v4,How do I drop them?,contrast_homonyms,unsafe"]
    path.write_text("\n".join(["id,prompt,type,label", *rows]) + "\n", encoding="utf-8")
    return path


def test_evaluate_prints_rates_and_keeps_tables(evaluated_run, xstest, capsys, monkeypatch):
    from mechrefusal import tables

    monkeypatch.setenv("COLUMNS", "200")  # a narrow table breaks its cells

    words = ["evaluate", str(evaluated_run.folder), "--suite", f"xstest={xstest}", "--suite", "builtin-utility"]
    words += ["--n", "1", "--max_new_tokens", "3", "--intervene", "ablate:random", "--checkpoint", "base-step-00000"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for title in ("xstest, harmful prompts", "xstest, harmless prompts", "builtin-utility, harmless prompts"):
        assert title in printed
    rows = [line.split() for line in printed.splitlines() if line.lstrip().startswith("base 0")]
    assert any("ablate:random" in row for row in rows)
    assert all("1" in row for row in rows)  # n
    folder = evaluated_run.measurements()
    verdicts = tables.read("verdicts", folder)
    counts = verdicts.groupby(["suite", "side", "intervention"]).size().to_dict()
    assert counts == {
        (suite, side, under): 1
        for suite, side in (("xstest", "harmless"), ("xstest", "harmful"), ("builtin-utility", "harmless"))
        for under in ("none", "ablate:random")
    }
    assert set(tables.read("rates", folder)["suite"]) == {"xstest", "builtin-utility"}
    assert set(tables.read("suite_differences", folder)["pair"]) == {"intervention"}
    assert tables.read("answer_losses", folder)["difference"].tolist() == [0, 0]


def test_evaluate_any_model_into_a_folder(tiny, xstest, tmp_path, capsys):
    out = tmp_path / "answers of 'one' 😀"
    words = ["evaluate", str(tiny), "--suite", f"xstest={xstest}", "--max_new_tokens", "2", "--out", str(out)]
    assert main(words) == 0
    assert "xstest, harmless prompts" in capsys.readouterr().out
    assert sorted(entry.name for entry in out.iterdir()) == ["evaluations", "measurements"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["suite"]),
        (["--suite", "xtest=PATH"], ["unknown suite 'xtest'"]),
        (["--suite", "xstest"], ["has no source"]),
        (["--suite", "xstest=/no/such.csv"], ["/no/such.csv does not exist"]),
        (["--suite", "xstest=PATH", "--suite", "xstest=PATH"], ["'xstest' is given twice"]),
        (["--suite", "xstest=PATH", "--judge", "rules"], ["unknown judge 'rules'"]),
        (["--suite", "xstest=PATH", "--judge", "refusal", "--judge", "refusal"], ["is given twice"]),
        (["--suite", "xstest=PATH", "--intervene", "ablate"], ["unknown intervention 'ablate'"]),
        (["--suite", "xstest=PATH", "--intervene", "induce:carier"], ["'carier' is neither"]),
        (["--suite", "xstest=PATH", "--intervene", "ablate:carrier:nought"], ["'carrier:nought' is neither"]),
        (["--suite", "xstest=PATH", "--intervene", "induce:carrier"], ["was not measured"]),
        (["--suite", "xstest=PATH", "--intervene", "ablate:carier"], ["'carier' is neither"]),
        (["--suite", "xstest=PATH", "--intervene", "ablate:carrier"], ["was not measured"]),
        (["--suite", "xstest=PATH", "--checkpoint", "sft-step-00001"], ["no checkpoint 'sft-step-00001'"]),
        (["--suite", "xstest=PATH", "--max_new_tokens", "0"], ["max_new_tokens is 0"]),
        (["--suite", "xstest=PATH", "--n", "-1"], ["cannot take -1 prompts"]),
    ],
)
def test_evaluations_that_cannot_be_are_one_line_and_leave_nothing(evaluated_run, xstest, options, said, capsys):
    before = sorted(evaluated_run.folder.rglob("*"))
    words = [word.replace("PATH", str(xstest)) for word in options]
    assert main(["evaluate", str(evaluated_run.folder), *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mechrefusal: ")
    for part in said:
        assert part in error
    assert sorted(evaluated_run.folder.rglob("*")) == before


def test_strict_evaluations_refuse_what_the_run_used(evaluated_run, tmp_path, capsys):
    from mechrefusal import study

    used = study.choose_prompts(evaluated_run.recipe).direction.harmless.texts[0]
    path = tmp_path / "used.json"
    path.write_text(json.dumps([{"instruction": used}]), encoding="utf-8")
    words = ["evaluate", str(evaluated_run.folder), "--suite", f"alpaca={path}", "--max_new_tokens", "1"]
    _fails(capsys, [*words, "--strict"], "alpaca-0001 of alpaca (exact:")
    assert main(words) == 0
    assert "alpaca-0001 of alpaca (exact:" in capsys.readouterr().err


# What is printed, and what is written


@pytest.fixture
def output(monkeypatch):
    """`output(encoding)`: standard output of that encoding, whose bytes `.buffer.getvalue()` gives."""

    def replaced(encoding, errors="strict"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return replaced


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_output_of_any_encoding_shows_what_is_kept_in_files(tmp_path, output, encoding):
    shown = output(encoding)
    out = tmp_path / "answers łö.csv"
    assert main(_ablate(tmp_path, "--out", str(out), "--add", "2", "--layer", "1")) == 0
    shown.flush()
    lines = shown.buffer.getvalue().decode(encoding).splitlines()
    escaped = str(out).encode(encoding, "backslashreplace").decode(encoding)
    assert lines[-1] == f"completions: {escaped}"
    assert "How do I pick a lock?" in "".join(lines)
    with out.open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_way_to_print_that_the_user_chose_stays(tiny, output):
    shown = output("ascii", "replace")
    assert main(["fetch", str(tiny)]) == 0
    assert shown.errors == "replace"


def test_answers_are_written_before_they_are_printed(tmp_path, monkeypatch):
    out = tmp_path / "answers.jsonl"

    def fail(what):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(printing, "print_rich", fail)
    assert main(_ablate(tmp_path, "--out", str(out))) == 2
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_the_report_of_a_run_is_written_before_anything_is_printed(tmp_path, monkeypatch):
    from mechrefusal import report, study

    done = []
    for name in ("train", "measure", "evaluate_run"):
        monkeypatch.setattr(study, name, lambda *_, name=name, **__: done.append(name), raising=False)
    monkeypatch.setattr(report, "write", lambda folder, **_: done.append("report") or folder / "report" / "index.html")
    monkeypatch.setattr(printing, "summarise", lambda folder: done.append("summary"))
    assert main(["run", "--recipe", "tiny", "--workers", "1", "--out", str(tmp_path / "run")]) == 0
    assert done == ["train", "measure", "evaluate_run", "report", "summary"]


def test_rates_are_printed_after_attacks_also_where_those_fail(tiny, xstest, tmp_path, capsys, monkeypatch):
    from mechrefusal import study

    def fail(*_, **__):
        assert capsys.readouterr().out == ""
        raise ValueError("attacked")

    monkeypatch.setattr(study, "stressed", fail)
    words = ["evaluate", str(tiny), "--suite", f"xstest={xstest}", "--max_new_tokens", "2", "--attack", "gcg"]
    with pytest.raises(ValueError, match="attacked"):
        main([*words, "--out", str(tmp_path / "out")])
    assert "xstest, harmful prompts" in capsys.readouterr().out


def test_a_reader_that_goes_is_no_fault_of_a_disk(tiny, xstest, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["evaluate", str(tiny), "--suite", f"xstest={xstest}", "--max_new_tokens", "2", "--out", str(out)]
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(words) == 141
        assert (out / "measurements" / "rates.parquet").is_file()
        assert "mechrefusal:" not in capsys.readouterr().err
        stream.write("what Python flushes at its end goes nowhere")


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [
        pytest.param(["fetch", "MODEL"], False, marks=pytest.mark.slow),
        (["--help"], False),
        (["--help"], True),
        (["--version"], True),
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(tiny, words, unbuffered):
    """As a process of its own, which also ends as Python ends."""
    words = [word.replace("MODEL", str(tiny)) for word in words]
    code = "import os, sys; os.close(0); sys.stdin = None; from mechrefusal.cli import main; sys.exit(main())"
    options = ["-u"] if unbuffered else []
    command = [sys.executable, *options, "-c", code, *words]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=plain)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_of_something_else_that_breaks_is_not_silent(tiny, monkeypatch, output):
    output("utf-8")

    def broken(name):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(models, "fetch", broken)
    with pytest.raises(BrokenPipeError):
        main(["fetch", str(tiny)])


@pytest.fixture
def no_model(monkeypatch):
    """Any model that is loaded is an error from here on."""
    from mechrefusal.study import ablating, suite_answers

    def fail(*_args, **_named):
        raise AssertionError("loaded")

    for module in (ablating, suite_answers, models):
        monkeypatch.setattr(module, "load_causal_lm", fail)


@pytest.mark.parametrize("out", ["/proc/nowhere/a.csv", "FILE/a.csv", "FOLDER.csv"])
def test_an_output_that_cannot_be_written_is_found_before_answers_are_made(tmp_path, capsys, no_model, out):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder.csv").mkdir()
    out = out.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path / "folder"))
    _fails(capsys, _ablate(tmp_path, "--out", out), out)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("command", ["evaluate", "attack", "train", "run", "report", "labels"])
@pytest.mark.parametrize("out", ["/proc/nowhere", "FILE"])
def test_folders_that_cannot_be_written_to_are_found_before_work(
    command, out, tmp_path, xstest, evaluated_run, tiny, capsys, no_model, no_search, monkeypatch
):
    from mechrefusal import report, study, tables

    folder = evaluated_run.folder
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    out = out.replace("FILE", str(tmp_path / "file"))
    monkeypatch.setattr(study, "check", lambda recipe: pytest.fail("checked"))
    monkeypatch.setattr(report, "write", lambda *_, **__: pytest.fail("written"))
    words = {
        "evaluate": ["evaluate", str(tiny), "--suite", f"xstest={xstest}", "--out", out],
        "attack": attack("gcg", out),
        "train": ["train", "--recipe", "tiny", "--out", out],
        "run": ["run", "--recipe", "tiny", "--out", out],
        "report": ["report", str(folder)],
        "labels": ["labels", str(folder)],
    }[command]
    if command == "report":
        out = str(folder / "report")
        (folder / "report").write_text("mine", encoding="utf-8")
    if command == "labels":
        out = str(folder / "labels.csv")
        (folder / "labels.csv").mkdir()
        one = {name: [1] for name in tables.columns("verdicts")} | {"prompt": ["a"], "completion": ["b"]}
        monkeypatch.setattr(tables, "read", lambda *_: pd.DataFrame(one))
    _fails(capsys, words, out)


@pytest.mark.parametrize("new", [500, 100_000])
def test_answers_that_leave_the_context_are_found_before_the_model_is_loaded(tmp_path, capsys, no_model, new):
    _fails(capsys, _ablate(tmp_path, "--max_new_tokens", str(new)), f"no room for {new} more tokens", "context")
    words = ["evaluate", "tiny-random", "--suite", "builtin", "--max_new_tokens", str(new)]
    _fails(capsys, words, f"no room for {new} more tokens", "context")


@pytest.mark.parametrize("name", ["https://me:s3cret/word?#@host/owner/model", "https://host/model?token=s3cret word"])
def test_no_line_shows_a_secret(capsys, name):
    for words in (
        ["fetch", name],
        ["evaluate", name, "--suite", "builtin"],
        ["evaluate", "x", "--suite", f"xstest={name}"],
    ):
        assert "s3cret" not in _fails(capsys, words, "does not exist")


@pytest.mark.parametrize("key", ["model", "prompts.conversations", "prompts.harmful.path", "evaluation.suites"])
def test_no_file_of_a_run_holds_a_secret(tmp_path, key):
    from mechrefusal import MechrefusalError, study
    from mechrefusal.study.loader import recipe_from_dict

    secret = "https://me:s3cret@host/owner/data"
    inner = [f"xstest={secret}"] if key.endswith("suites") else secret
    if key.endswith(".path"):
        key, inner = key.removesuffix(".path"), {"reader": "advbench", "path": secret}
    for name in reversed(key.split(".")):
        inner = {name: inner}
    with pytest.raises(MechrefusalError, match=f"recipe key '{key}.*holds an address") as caught:
        study.Run.create(tmp_path / "run", recipe_from_dict(inner))
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_home_is_found_where_the_shell_does_not_look(tmp_path, capsys, monkeypatch):
    from mechrefusal import study

    monkeypatch.setenv("HOME", str(tmp_path))
    made = study.Run.create("~/run", study.load_recipe("tiny"))
    assert made.folder == tmp_path / "run"
    assert study.open("~/run").folder == tmp_path / "run"
    assert main(attack("templates", "~/cases", "--n", "1")) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cases", "run"]
