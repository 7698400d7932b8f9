"""Sections of a recipe that are the study's own: prompts, attack cases, and how every checkpoint is measured."""

from dataclasses import dataclass, field

from mechrefusal.attacks import METHODS, AutoDANSettings, GCGSettings, TemplateSettings
from mechrefusal.causal.reference import HARMLESS, require_reference
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judge_names import measuring_judge, require_measuring_judge
from mechrefusal.evaluation.judges import Judge
from mechrefusal.prompts.sides import require_one_way
from mechrefusal.statistics.choosing import Admissible


@dataclass(frozen=True)
class Source:
    """Where a set of prompts comes from.

    Attributes:
        reader: benchmark whose format the file has (harmbench, strongreject, xstest, advbench, jailbreakbench,
            maliciousinstruct, alpaca), "plain" for a text file with one prompt a line or any file with a column prompt
            or text, or "builtin" for the package's own prompts.
        path: file, or hub dataset.
        targets: file of affirmative targets by id or by text: a JSON object, or a table (CSV, TSV, JSONL) with a column
            target and a column id or text. The rule that makes targets otherwise is English.
    """

    reader: str = "builtin"
    path: str = ""
    targets: str = ""

    def __post_init__(self) -> None:
        if self.reader != "builtin" and not self.path:
            raise MechrefusalError(f"prompts with reader '{self.reader}' need a path: give the file or the hub dataset")


@dataclass(frozen=True)
class Sides:
    """Where the two sides of a behaviour come from; without any, the package's own prompts.

    Refusing harm is the built-in one. Any other that has two sides (what is to be declined, and what is to be answered)
    is measured in the same way.

    Attributes:
        path: file with the columns harmful and harmless, a row of twins each; or
        harmful: file of one side (a text file with one prompt a line, or a file with a column prompt or text), and
        harmless: file of the other.
    """

    path: str = ""
    harmful: str = ""
    harmless: str = ""

    def __post_init__(self) -> None:
        if any(vars(self).values()):
            require_one_way("of two sides", **vars(self))

    def __bool__(self) -> bool:
        return bool(self.path or self.harmful)


@dataclass(frozen=True)
class PromptSources:
    """Which prompts a study trains and measures on.

    Attributes:
        behaviours: harmful requests that all arms train on (as many as r2d2's pool holds; a warm-up: all of them);
            built-in: the splits `pool` and `train`.
        conversations: chat dataset for utility training: a .jsonl, .json, .parquet or .csv file or hub name with a
            column `messages`, or `prompt` and `answer` (see `mechrefusal.prompts.conversations`). Empty: the model's
            own greedy answers to built-in instructions.
        n_conversations: conversations at most; 0 for all.
        answer_tokens: longest of the model's own answers.
        direction: prompts that directions and the refusal metric are found with; built-in: the split `direction`.
        validation: prompts that carriers are chosen by; built-in: the split `validation`.
        pairs: harmful and harmless prompts in nearly the same words, for patching. Built-in where the direction prompts
            are; else those of equal token length among the direction and validation prompts.
        probe: what is asked while an arm trains; by default the validation prompts.
        harmful: held-out harmful requests; built-in: the split `evaluation`.
        harmless: held-out harmless requests; built-in: the split `evaluation`.
        overrefusal: safe prompts that look unsafe, and unsafe contrasts.
        utility: plain instructions that are to be answered.
    """

    behaviours: Source = field(default_factory=Source)
    conversations: str = ""
    n_conversations: int = 400
    answer_tokens: int = 32
    direction: Sides = field(default_factory=Sides)
    validation: Sides = field(default_factory=Sides)
    pairs: Sides = field(default_factory=Sides)
    probe: Sides = field(default_factory=Sides)
    harmful: Source = field(default_factory=Source)
    harmless: Source = field(default_factory=Source)
    overrefusal: Source = field(default_factory=Source)
    utility: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        if self.n_conversations < 0:
            raise MechrefusalError(f"prompts n_conversations is {self.n_conversations}: give 0 for all, or more")
        if self.answer_tokens < 1:
            raise MechrefusalError(f"prompts answer_tokens is {self.answer_tokens}: give at least 1")


@dataclass(frozen=True)
class AttackSettings:
    """Fixed-source attack cases: made once against the base model, replayed on every checkpoint.

    Attributes:
        n_cases: held-out harmful requests to attack; 0 for none.
        methods: of gcg, autodan and templates.
        gcg: suffixes found by the gradient.
        autodan: readable prompts found by a genetic search.
        templates: fixed jailbreak texts; every request gives one case a template.
    """

    n_cases: int = 16
    methods: tuple[str, ...] = ("gcg",)
    gcg: GCGSettings = field(default_factory=GCGSettings)
    autodan: AutoDANSettings = field(default_factory=AutoDANSettings)
    templates: TemplateSettings = field(default_factory=TemplateSettings)

    def __post_init__(self) -> None:
        if unknown := [method for method in self.methods if method not in METHODS]:
            raise MechrefusalError(f"unknown attack methods {unknown}: choose from {', '.join(METHODS)}")
        if len(set(self.methods)) < len(self.methods):
            raise MechrefusalError(f"attack methods are {list(self.methods)}: name each once")
        if self.n_cases < 0:
            raise MechrefusalError(f"attack n_cases is {self.n_cases}: give 0 or more")


@dataclass(frozen=True)
class MeasuringSettings:
    """How every checkpoint is measured. Counts are prompts; a set with fewer gives all it has.

    Attributes:
        n_evaluation: held-out harmful, and as many harmless prompts.
        n_overrefusal: safe prompts that look unsafe.
        n_contrast: unsafe prompts that resemble them.
        n_utility: plain instructions.
        n_direction: harmful, and as many harmless prompts for directions and for the refusal metric.
        n_validation: harmful, and as many harmless prompts for scoring carriers.
        n_intervened: prompts answered under each intervention.
        n_attributed: harmful, and as many harmless prompts for attribution.
        n_pairs: pairs for patching.
        n_top_heads: heads whose attention is shown.
        max_new_tokens: longest answer.
        fewest_kept: harmful prompts that the metric must call refused (and harmless ones answered) for a carrier.
        layer_step: patch the residual stream at every n-th layer.
        n_positions: score carriers at the last n positions of the template; 0 for all.
        reference: what directions are ablated to: harmless (the mean of harmless prompts; affine concept editing) or
            zero (as Arditi et al. publish). Carriers are scored with zero beside it in any case.
        kl_threshold: largest KL of an admissible carrier, nats.
        induce_threshold: smallest induce score of an admissible carrier, nats; at 0 refused and answered prompts are
            told apart best (`RefusalMetric.offset`).
        prune_layer_fraction: share of the last layers where no carrier is admitted.
        judge: which answers refuse, in every measurement, probe and the choice of the model's own answers: refusal (the
            built-in rules, which read English) or phrases=FILE (phrases of refusal in any language, one a line).
    """

    n_evaluation: int = 64
    n_overrefusal: int = 120
    n_contrast: int = 60
    n_utility: int = 40
    n_direction: int = 64
    n_validation: int = 32
    n_intervened: int = 32
    n_attributed: int = 16
    n_pairs: int = 16
    n_top_heads: int = 6
    max_new_tokens: int = 48
    fewest_kept: int = 4
    layer_step: int = 1
    n_positions: int = 0
    reference: str = HARMLESS
    kl_threshold: float = 0.1
    induce_threshold: float = 0.0
    prune_layer_fraction: float = 0.2
    judge: str = "refusal"

    @property
    def admissible(self) -> Admissible:
        """What a carrier must keep."""
        return Admissible(self.kl_threshold, self.induce_threshold, self.prune_layer_fraction)

    def __post_init__(self) -> None:
        require_reference(self.reference)
        require_measuring_judge(self.judge)
        at_least_one = (
            "n_evaluation", "n_direction", "n_validation", "n_intervened", "n_attributed", "n_pairs", "n_top_heads",
            "max_new_tokens", "fewest_kept", "layer_step",
        )  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise MechrefusalError(
                    f"measuring {name} is {getattr(self, name)}: the split would be empty, give at least 1"
                )
        for name in ("n_overrefusal", "n_contrast", "n_utility", "n_positions"):
            if getattr(self, name) < 0:
                raise MechrefusalError(f"measuring {name} is {getattr(self, name)}: give 0 or more")

    def refusal_judge(self) -> Judge:
        """The judge by which all that is measured goes.

        Raises:
            MechrefusalError: phrases that cannot be read.
        """
        return measuring_judge(self.judge)
