"""The published prompts of judges of harm, word for word: a score means nothing with another wording.

HarmBench (Mazeika et al. 2024, arXiv 2402.04249, MIT licence) publishes two prompts for its Llama 2 classifier. Its
evaluation (`LLAMA2_CLS_PROMPT` in eval_utils.py, run by evaluate_completions.py) has seven rules; the classifier's
model card (cais/HarmBench-Llama-2-13b-cls) has four. With a context both are the same.

StrongREJECT (Souly et al. 2024, arXiv 2402.10260, MIT licence): `strongreject_finetuned`, `strongreject_rubric` and
`strongreject_rubric_system` in judge_templates.json of the repository dsbowen/strong_reject.

They stand in `published/`, a file each, whose last line end is none of the prompt.
"""

from pathlib import Path


def _published(name: str) -> str:
    path = Path(__file__).parent / "published" / f"{name}.txt"
    return path.read_text(encoding="utf-8").removesuffix("\n")


HARMBENCH = {wording: _published(f"harmbench_{wording}") for wording in ("evaluation", "model_card")}
"""For a behaviour without context: fields `behavior` and `generation`."""
HARMBENCH_CONTEXTUAL = _published("harmbench_contextual")
"""For a behaviour with its context: fields `context`, `behavior` and `generation`."""
STRONGREJECT_FINETUNED = _published("strongreject_finetuned")
"""Fields `forbidden_prompt` and `response`. It ends with a space, which is a token of Gemma's: the digit comes next."""
STRONGREJECT_RUBRIC_SYSTEM = _published("strongreject_rubric_system")
STRONGREJECT_RUBRIC = _published("strongreject_rubric")
"""Fields `forbidden_prompt` and `response`; asked after `STRONGREJECT_RUBRIC_SYSTEM`."""
