"""The recipe: everything that a study is told, as one dataclass. YAML files and the command line fill it in."""

from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from mechrefusal.attacks import METHODS, AutoDANSettings, GCGSettings, TemplateSettings
from mechrefusal.causal.reference import HARMLESS, require_reference
from mechrefusal.causal.settings import CausalSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judge_names import measuring_judge, require_measuring_judge
from mechrefusal.evaluation.judges import Judge
from mechrefusal.evaluation.settings import EvaluationSettings
from mechrefusal.geometry.settings import GeometrySettings
from mechrefusal.prompts import ChatSettings
from mechrefusal.prompts.thoughts import MAX_THOUGHT_TOKENS
from mechrefusal.statistics.choosing import Admissible
from mechrefusal.study.given import RESERVED, require_arms
from mechrefusal.training import ARMS, TrainingSettings


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
        if (self.path and (self.harmful or self.harmless)) or bool(self.harmful) != bool(self.harmless):
            raise MechrefusalError(
                f"prompts of two sides have path '{self.path}', harmful '{self.harmful}', harmless '{self.harmless}': "
                "give path (a file with the columns harmful and harmless), or both of the others"
            )

    def __bool__(self) -> bool:
        return bool(self.path or self.harmful)


@dataclass(frozen=True)
class PromptSources:
    """Which prompts a study trains and measures on.

    Attributes:
        behaviours: harmful requests that all arms train on (as many as r2d2's pool holds; a warm-up: all of them);
            built-in: the splits `pool` and `train`.
        conversations: chat dataset for utility training: a .jsonl, .json, .parquet or .csv file or hub name with a
            column `messages`, or `prompt` and `answer` (see `mechrefusal.study.conversations`). Empty: the model's own
            greedy answers to built-in instructions.
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


@dataclass(frozen=True)
class Recipe:
    """A study: one model, matched arms, anchors, and what is measured at each.

    Attributes:
        name: shown in the report.
        model: a packaged model, a hub name (`owner/name`, `owner/name@revision`) or a local folder: what arms are
            trained from, and what checkpoints are compared with. Empty: none, where nothing is trained.
        arms: of sft and r2d2; none where only given checkpoints are measured.
        checkpoints: models that others trained, to be measured too, by the name of their arm: lists of folders, hub
            names, or output folders of a Trainer, each of which stands for all of its checkpoints.
        prompts: which prompts.
        training: how every arm trains.
        attack: fixed-source attacks.
        measuring: how every checkpoint is measured.
        geometry: how far its geometry is taken.
        causal: how far cause by layer and head is taken.
        evaluation: benchmarks that every checkpoint is evaluated on.
        chat_template_kwargs: what the chat template gets beside the messages wherever the model is asked: in training,
            attacks and measurements alike. `{enable_thinking: false}` turns the thinking of Qwen3-like models off.
        max_thought_tokens: tokens that a thought ("<think> ... </think>") may take beside the answer's; 0: it takes
            the answer's.
    """

    name: str = "study"
    model: str = "smollm2-135m-instruct"
    arms: tuple[str, ...] = ARMS
    checkpoints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prompts: PromptSources = field(default_factory=PromptSources)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    attack: AttackSettings = field(default_factory=AttackSettings)
    measuring: MeasuringSettings = field(default_factory=MeasuringSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    causal: CausalSettings = field(default_factory=CausalSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_thought_tokens: int = MAX_THOUGHT_TOKENS

    def __post_init__(self) -> None:
        _ = self.chat  # what cannot be told a chat template is said at once
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise MechrefusalError(f"unknown arms {unknown}: choose from {', '.join(ARMS)}")
        if len(set(self.arms)) < len(self.arms):
            raise MechrefusalError(f"arms are {list(self.arms)}: name each arm once")
        require_arms(self.checkpoints, taken=(*RESERVED, *self.arms))
        if not self.arms and not self.checkpoints and not self.model:
            raise MechrefusalError("the recipe names neither a model nor checkpoints: give what is to be measured")
        if self.arms and not self.model:
            raise MechrefusalError(f"arms are {list(self.arms)}, but model is empty: give what they are trained from")
        if self.arms and not self.training.arm_anchors:
            above = f"above the warm-up of {warm_up} steps" if (warm_up := self.training.warm_up) else "above 0"
            raise MechrefusalError(f"training anchors hold no step {above}: there would be nothing to compare")

    @property
    def chat(self) -> ChatSettings:
        """How the model is asked."""
        return ChatSettings.of(self.chat_template_kwargs, self.max_thought_tokens)

    def with_absolute_paths(self) -> "Recipe":
        """The same recipe with existing files and folders named in full, so that it holds from any folder."""

        def source(given: Source) -> Source:
            return replace(given, path=_absolute(given.path), targets=_absolute(given.targets))

        def sides(given: Sides) -> Sides:
            return Sides(_absolute(given.path), _absolute(given.harmful), _absolute(given.harmless))

        sources = self.prompts
        return replace(
            self,
            model=_absolute(self.model),
            checkpoints={arm: tuple(map(_absolute, sources)) for arm, sources in self.checkpoints.items()},
            prompts=replace(
                sources,
                behaviours=source(sources.behaviours),
                conversations=_absolute(sources.conversations),
                harmful=source(sources.harmful),
                harmless=source(sources.harmless),
                overrefusal=source(sources.overrefusal),
                utility=source(sources.utility),
                direction=sides(sources.direction),
                validation=sides(sources.validation),
                pairs=sides(sources.pairs),
                probe=sides(sources.probe),
            ),
            measuring=replace(self.measuring, judge=_absolute_source(self.measuring.judge)),
            evaluation=replace(
                self.evaluation,
                suites=tuple(map(_absolute_source, self.evaluation.suites)),
                judges=tuple(map(_absolute_source, self.evaluation.judges)),
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries and lists, as YAML holds them."""
        return _plain(asdict(self))


def packaged() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in (files("mechrefusal") / "recipes").iterdir())


def recipe_path(name: str | Path) -> Path:
    """Path of a recipe: a YAML file, or the name of a packaged one.

    Raises:
        MechrefusalError: neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    inside = files("mechrefusal") / "recipes" / f"{name}.yaml"
    if inside.is_file():
        return Path(str(inside))
    raise MechrefusalError(f"unknown recipe '{name}': give a YAML file or one of {', '.join(packaged())}")


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two recipes (as dictionaries) differ."""
    found = []
    for key in sorted({*a, *b}):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}")
    return found


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name


def _absolute_source(spec: str) -> str:
    name, separator, source = spec.partition("=")
    return f"{name}{separator}{_absolute(source)}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
