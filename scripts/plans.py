"""What the recipes for large models take, as docs/plans.md has it: `python scripts/plans.py docs/plans.md`.

What stands in the file from `HELD` on, which `scripts/check_plan.py` printed, stays as it is.

Nothing is fetched: the models' sizes stand here, as their configs on the hub have them, and prompts are the built-in
ones in place of the files that `paper` names. Seconds are counted operations at two fifths of the peak that is given.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import transformers

from mechrefusal import models, study
from mechrefusal.prompts import packaged_chat_templates
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.settings import PromptSources

HELD = "## A plan held against what was run"
PEAK = 9.9e14
"""Operations a second in bfloat16 of an H100, as its data sheet has them."""
MODELS = {
    "paper": ("MistralConfig", {}, 8),
    "llama-3.1-8b": (
        "LlamaConfig",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072},
        2,
    ),
    "qwen3-8b": (
        "Qwen3Config",
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960},
        2,
    ),
    "qwen3-4b": (
        "Qwen3Config",
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
         "tie_word_embeddings": True},
        1,
    ),
    "gemma-3-4b": (
        "Gemma3TextConfig",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072},
        1,
    ),
}  # fmt: skip
"""Config class, sizes, and GPUs of 80 GiB, by recipe."""


def planned(name: str) -> pd.DataFrame:
    """Table `plan` of a recipe."""
    config, sizes, devices = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, config)(**sizes, dtype="bfloat16").save_pretrained(folder)
        models.tiny.tokenizer().save_pretrained(folder)
        return study.plan(at_hand(name), model=folder, devices=devices, device_memory="80GiB", flops=PEAK)


def at_hand(name: str) -> Recipe:
    """The recipe with prompts that come with the package; the tiny tokenizer has a template without options."""
    recipe = study.load_recipe(name)
    prompts = PromptSources(n_conversations=recipe.prompts.n_conversations)
    template = recipe.chat_template if recipe.chat_template in packaged_chat_templates() else ""
    evaluation = replace(recipe.evaluation, suites=("builtin", "builtin-xstest"), judges=())
    return replace(recipe, prompts=prompts, chat_template=template, chat_template_kwargs={}, evaluation=evaluation)


def page() -> Iterator[str]:
    """The lines of the page."""
    yield "# What the recipes for large models take\n"
    yield (
        "`mechrefusal plan RECIPE` for GPUs of 80 GiB with a peak of 9.9e14 operations a second (`python "
        "scripts/plans.py docs/plans.md`, which fetches nothing and asks the built-in prompts in place of a user's "
        "files). Nothing of this has been run on a GPU: memory and time are computed, and what was checked of the "
        "computation stands [below](#a-plan-held-against-what-was-run). Evaluation with adaptive attacks comes on "
        "top.\n"
    )
    for name in MODELS:
        table = planned(name)
        first = table.iloc[0]
        whole = f"{table['seconds'].sum() / 3600:.1f} hours, at most {table['memory_gib'].max():.0f} GiB on a device"
        yield f"## `{name}`\n"
        yield (
            f"{study.load_recipe(name).model}, {first['parameters'] / 1e9:.2f} billion parameters, on "
            f"{first['device']}: {whole}.\n"
        )
        yield "| stage | times | memory of a device, GiB | forward tokens | PFLOP | hours | |"
        yield "|---|---|---|---|---|---|---|"
        for row in table.to_dict("records"):
            numbers = (row["forward_tokens"], row["flops"] / 1e15, row["seconds"] / 3600)
            shown = [f"{each:,.{digits}f}" for each, digits in zip(numbers, (0, 1, 2), strict=True)]
            note = row["note"] if not row["fits"] else ""
            yield f"| {row['stage']} | {row['times']} | {row['memory_gib']:.0f} | {' | '.join(shown)} | {note} |"
        yield ""


if __name__ == "__main__":
    path = Path(sys.argv[1])
    _, heading, held = path.read_text(encoding="utf-8").partition(HELD)
    path.write_text("\n".join(page()) + "\n" + heading + held, encoding="utf-8")
