"""The stages of examples, length and openings: nothing where they are off, tables of their schema where they are on."""

from types import SimpleNamespace

import pandas as pd
import pytest
from judging import ByHash

from mechrefusal import durability, models, prompts, tables
from mechrefusal.study import durability_stages
from mechrefusal.study.protocol import AT_A_CHECKPOINT

ON = durability.DurabilitySettings(
    harmful_fine_tuning=durability.HarmfulFineTuningSettings(2, (1,), epochs=1, max_new_tokens=1),
    answer_length=durability.AnswerLengthSettings(2, (1, 2)),
    prefilled=durability.PrefilledSettings(2, (1,), max_new_tokens=1),
)
STAGES = {stage.name: stage for stage in AT_A_CHECKPOINT}


def subject(checkpoint, settings, **more):
    asked, pool = prompts.builtin().evaluation, prompts.builtin().pool
    # Two of what is trained on is asked too, as with a benchmark that gives both: it must be left out.
    trained = prompts.PromptSet("behaviours", pd.concat([asked.harmful.table[:2], pool.harmful.table[:1]]))
    chosen = SimpleNamespace(
        harmful=asked.harmful, harmless=asked.harmless, behaviours=trained, instructions=pool.harmless
    )
    return SimpleNamespace(
        recipe=SimpleNamespace(durability=settings), prompts=chosen, judge=ByHash(), checkpoint=checkpoint, **more
    )


@pytest.mark.parametrize("name", ["harmful fine-tuning", "answers by their length", "prefilled openings"])
def test_a_stage_gives_its_tables_where_the_recipe_asks_for_it(name, tiny, tiny_hooked):
    stage, checkpoint = STAGES[name], models.Checkpoint.open(tiny)
    off = subject(checkpoint, durability.DurabilitySettings())
    assert list(stage.take(off)) == [], "without settings nothing is opened, and nothing made"
    on = subject(checkpoint, ON, **({"model": tiny_hooked} if stage.opens else {}))
    given = dict(stage.take(on))
    assert tuple(given) == stage.gives
    for table, rows in given.items():
        owned = pd.DataFrame(rows).assign(arm="base", step=0, weights=checkpoint.weights)
        assert len(tables.frame(table, owned)) > 0
        assert table in tables.DURABILITY
    if name == "harmful fine-tuning":
        assert given["harmful_fine_tuning"]["reason"].eq("").all(), "one example is left"
        asked = durability_stages._without(on.prompts.behaviours, on.prompts.harmful, on.prompts.harmless)
        assert asked.ids == prompts.builtin().pool.harmful.ids[:1]
