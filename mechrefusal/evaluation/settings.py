"""What every checkpoint of a study is evaluated on."""

from dataclasses import dataclass

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges.chat_address import model_and_url


@dataclass(frozen=True)
class EvaluationSettings:
    """Benchmarks that `mechrefusal run` evaluates every checkpoint on, after it measured them; no suite: none.

    Attributes:
        suites: as `mechrefusal evaluate --suite` takes them: NAME=PATH, NAME=HUB/DATASET, builtin-xstest, ...
        judges: as `--judge` takes them: refusal, phrases=FILE, harmbench, strongreject, llamaguard=MODEL,
            chat=MODEL@URL. None: the one that the study measures by (`measuring.judge`).
        intervene: also answer under these: ablate:carrier, ablate:best, ablate:random, add:best:1, ...
        n: prompts of each side of a suite, evenly spaced; 0 for all.
        max_new_tokens: longest answer.
        attack: of gcg and autodan: made anew against every checkpoint, and replayed at the others.
        n_attacked: harmful prompts attacked.
        attack_steps: steps of an attack; 0 for those of the recipe's `attack`.
        strict: refuse to evaluate on prompts that the study trains on or chooses its directions by.
    """

    suites: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    intervene: tuple[str, ...] = ()
    n: int = 0
    max_new_tokens: int = 128
    attack: tuple[str, ...] = ()
    n_attacked: int = 8
    attack_steps: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        for name, least in {"n": 0, "max_new_tokens": 1, "n_attacked": 1, "attack_steps": 0}.items():
            if getattr(self, name) < least:
                raise MechrefusalError(f"evaluation {name} is {getattr(self, name)}: give {least} or more")
        for name in ("suites", "judges", "intervene", "attack"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise MechrefusalError(f"evaluation {name} are {list(values)}: name each once")
        for name, _, source in (spec.partition("=") for spec in self.judges):
            if name == "chat":
                model_and_url(source)  # before a recipe with a password in it could be written anywhere
        if not self.suites and (self.intervene or self.attack):
            raise MechrefusalError("evaluation has interventions or attacks, but no suites: give some, such as builtin")
