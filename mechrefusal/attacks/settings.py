"""What an attack is told: plain values, checked when they are made."""

from dataclasses import dataclass

from mechrefusal.errors import MechrefusalError


def require_at_least(settings: object, **least: float) -> None:
    """Raise a MechrefusalError that names a setting below its bound; settings are called by their class."""
    kind = type(settings).__name__.removesuffix("Settings").lower()
    for name, bound in least.items():
        value = getattr(settings, name)
        if not value >= bound:
            raise MechrefusalError(f"{kind} {name} is {value}: give at least {bound}")


def require_share(settings: object, *names: str) -> None:
    """Raise a MechrefusalError that names a setting, or one of several in it, that is no number from 0 to 1."""
    kind = type(settings).__name__.removesuffix("Settings").lower()
    for name in names:
        values = getattr(settings, name)
        for value in values if isinstance(values, tuple) else (values,):
            if not 0 <= value <= 1:
                raise MechrefusalError(f"{kind} {name} is {value}: give a number from 0 to 1")


@dataclass(frozen=True)
class GCGSettings:
    """How long and how wide GCG searches. Defaults: GCG as an evaluation, 2307.15043 and HarmBench.

    `initial` is a text whose words are repeated or cut until they are `suffix_length` tokens. `batch_size` candidates
    are run at once; None chooses by the memory. A step proposes fewer than `width` candidates where
    `suffix_length` x `top_k` is smaller.

    With `screen`, a float32 model on a machine that multiplies bfloat16 scores candidates in bfloat16 first and only
    the best of them exactly (a deviation from the paper: of candidates that are nearly equally good, another one may be
    chosen). Losses are exact all the same. Elsewhere it changes nothing.

    With `rounds` above 1 the proposals of a step are tried in so many rounds, from the last positions of the suffix to
    the first, and each round goes on from the best suffix so far: a step replaces up to one token a round, where the
    paper's replaces one. No more tokens are run for it, as nothing before a replaced token changes, but fewer at once
    (a deviation from the paper: one gradient serves all rounds, as in its own batch; coordinates one after another are
    those of ARCA, 2303.04381, several of them a step those of I-GCG, 2405.21018). Losses are exact. A screen chooses
    among the candidates of a round.
    """

    steps: int = 250
    width: int = 512
    top_k: int = 256
    suffix_length: int = 20
    initial: str = "! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! !"
    batch_size: int | None = None
    screen: bool = False
    rounds: int = 1

    def __post_init__(self) -> None:
        require_at_least(self, steps=0, width=1, top_k=1, suffix_length=1, rounds=1)
        if self.batch_size is not None and self.batch_size < 1:
            raise MechrefusalError(f"gcg batch_size is {self.batch_size}: give at least 1, or null to choose by itself")
        if not self.initial.strip():
            raise MechrefusalError("gcg initial is empty: give words to start the suffix from, such as '! ! !'")


@dataclass(frozen=True)
class AutoDANSettings:
    """How long and how broadly AutoDAN searches. Defaults: 2310.04451 and its code, population as in the protocol.

    Fields:
        steps: generations.
        population: texts in a generation.
        elite_fraction: share of a generation that enters the next one unchanged, one text at least.
        crossover: probability that two parents are crossed, and that a word is up for replacement by a synonym.
        crossover_points: borders between sentences at which two parents are cut at most.
        mutation: probability that a new text is mutated.
        momentum: weight of a word's old score against its mean in this generation.
        sentence_steps: sentence-level generations (words) before each paragraph-level one (crossover); 0 for none.
        replacements: words of a text that a sentence-level generation replaces at most.
        batch_size: prompts that are run at once; None chooses by the memory.
    """

    steps: int = 100
    population: int = 128
    elite_fraction: float = 0.05
    crossover: float = 0.5
    crossover_points: int = 5
    mutation: float = 0.01
    momentum: float = 0.5
    sentence_steps: int = 5
    replacements: int = 5
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_at_least(self, steps=0, population=2, crossover_points=1, sentence_steps=0, replacements=1)
        for name in ("crossover", "mutation", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise MechrefusalError(f"autodan {name} is {getattr(self, name)}: give a number from 0 to 1")
        if not 0 <= self.elite_fraction < 1:
            raise MechrefusalError(
                f"autodan elite_fraction is {self.elite_fraction}: give a number from 0 to below 1, so that a "
                "generation has new texts"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise MechrefusalError(
                f"autodan batch_size is {self.batch_size}: give at least 1, or null to choose by itself"
            )

    @property
    def elites(self) -> int:
        """Texts that enter the next generation unchanged."""
        return max(1, int(self.elite_fraction * self.population))
