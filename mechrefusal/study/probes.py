"""Probes: a few answers of the model under training, at every anchor, to watch its refusal as it moves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mechrefusal.attacks import AttackCase
from mechrefusal.evaluation import Judge, complete
from mechrefusal.evaluation.judges import RULES, refuses
from mechrefusal.progress import console
from mechrefusal.prompts import Split
from mechrefusal.statistics import intervals
from mechrefusal.training import TrainingSettings

if TYPE_CHECKING:
    from mechrefusal.training import Probe


def of(settings: TrainingSettings, asked: Split, arm: str, judge: Judge = RULES) -> "Probe":
    """A probe of `settings.n_probe` prompts a set: harmful and harmless ones, and the pool's cases with their suffixes.

    It gives rows of the table `probes` (without arm and step), and says the rates on the console.

    Args:
        asked: prompts that no arm trains on.
        judge: of refusal.
    """
    n = settings.n_probe

    def probe(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cases: Sequence[AttackCase], *, step: int
    ) -> list[dict[str, Any]]:
        sets = {"harmful": asked.harmful.take(n).texts, "harmless": asked.harmless.take(n).texts}
        if cases:
            sets["attacked"] = [case.prompt for case in list(cases)[:n]]
        texts = [text for chosen in sets.values() for text in chosen]
        answers = complete(
            model, texts, tokenizer=tokenizer, max_new_tokens=settings.probe_tokens, description=f"{arm}: probes"
        )
        refused = [refuses(label) for label in judge.judge(texts, list(answers.texts))["label"]]
        rows, start = [], 0
        for name, chosen in sets.items():
            part = refused[start : start + len(chosen)]
            start += len(chosen)
            rate = intervals.rate(sum(part), len(part))
            rows.append({"set": name, "metric": "any_refusal", "judge": judge.name, **vars(rate)})
        said = ", ".join(f"{row['set']} {round(row['value'] * row['n'])} of {row['n']}" for row in rows)
        console.print(f"{arm}, step {step}: refused {said}", highlight=False, soft_wrap=True)
        return rows

    return probe
