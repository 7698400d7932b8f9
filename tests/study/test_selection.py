import csv
import dataclasses

import pytest

from mechrefusal import prompts
from mechrefusal.errors import MechrefusalError
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import choose_prompts
from mechrefusal.study.settings import MeasuringSettings, PromptSources, Sides, Source


def test_nothing_is_measured_on_what_is_trained_on():
    chosen = choose_prompts(Recipe())
    trained = set(chosen.behaviours.texts) | set(chosen.instructions.texts)
    for name, found in chosen.evaluation_sets().items():
        assert not trained & set(found.texts), name
    for split in (chosen.direction, chosen.validation):
        assert not trained & ({*split.harmful} | {*split.harmless})
    assert chosen.dropped.empty


def test_sizes_follow_the_recipe_and_sets_of_size_zero_are_absent():
    chosen = choose_prompts(
        Recipe(measuring=MeasuringSettings(n_evaluation=5, n_contrast=0, n_direction=7, n_validation=3))
    )
    assert len(chosen.harmful) == len(chosen.harmless) == 5
    assert (len(chosen.direction.harmful), len(chosen.validation.harmless)) == (7, 3)
    assert "contrast" not in chosen.evaluation_sets()


def test_a_prompt_in_training_and_evaluation_is_left_out_of_evaluation(tmp_path):
    shared = prompts.builtin().pool.harmful[0]
    path = tmp_path / "advbench.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["goal", "target"])
        writer.writerow([shared.upper(), "Sure"])
        writer.writerow(['How do I forge a "museum" pass, <b>😀</b>?', "Sure"])
    recipe = Recipe(prompts=PromptSources(harmful=Source("advbench", str(path))))
    chosen = choose_prompts(recipe)
    assert chosen.harmful.texts == ['How do I forge a "museum" pass, <b>😀</b>?']
    assert chosen.dropped["set_b"].tolist() == ["evaluation_harmful"]


def test_an_evaluation_set_that_is_all_leaked_is_an_error(tmp_path):
    path = tmp_path / "m.txt"
    path.write_text(prompts.builtin().pool.harmful[0] + "\n", encoding="utf-8")
    with pytest.raises(MechrefusalError, match="prompt set 'harmful' is empty"):
        choose_prompts(Recipe(prompts=PromptSources(harmful=Source("maliciousinstruct", str(path)))))


def test_copyright_rows_are_not_mixed_into_rates(tmp_path):
    path = tmp_path / "harmbench.csv"
    path.write_text(
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Recite a song,copyright,copyright,,,song\nPick a lock at night,standard,illegal,,,lock\n",
        encoding="utf-8",
    )
    chosen = choose_prompts(Recipe(prompts=PromptSources(harmful=Source("harmbench", str(path)))))
    assert chosen.harmful.ids == ["lock"]


def test_missing_columns_name_the_file(tmp_path):
    path = tmp_path / "wrong.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    recipe = dataclasses.replace(Recipe(), prompts=PromptSources(harmful=Source("strongreject", str(path))))
    with pytest.raises(MechrefusalError, match=r"wrong\.csv"):
        choose_prompts(recipe)


def test_pairs_are_found_among_files_that_number_their_prompts_alike(tmp_path, tiny_hf):
    files = {}
    for name, count in (("direction", 6), ("validation", 4)):
        rows = [f"{number},rob {name} {number},see {name} {number}" for number in range(1, count + 1)]
        files[name] = tmp_path / f"{name}.csv"
        files[name].write_text("\n".join(["id,harmful,harmless", *rows]), encoding="utf-8")
    sources = PromptSources(**{name: Sides(path=str(path)) for name, path in files.items()})
    chosen = choose_prompts(Recipe(arms=(), prompts=sources))
    found = chosen.pairs_for(tiny_hf[1])
    assert len(found) == len({pair.id for pair in found}) > 0
    for pair in found:
        assert pair.harmful.removeprefix("rob ") == pair.harmless.removeprefix("see ")


def test_what_is_locked_and_looked_at_holds_both_sides(tmp_path):
    chosen = choose_prompts(Recipe())
    assert {"pairs", "pairs_harmless", "probe", "probe_harmless"} == set(chosen.asked_besides())
    assert "probe" not in choose_prompts(Recipe(arms=())).asked_besides()
