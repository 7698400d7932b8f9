"""The recipe: everything that a study is told, as one dataclass. YAML files and the command line fill it in."""

from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from mechrefusal.attacks import METHODS, AutoDANSettings, GCGSettings, TemplateSettings
from mechrefusal.causal.reference import HARMLESS, require_reference
from mechrefusal.causal.settings import CausalSettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.settings import EvaluationSettings
from mechrefusal.geometry.settings import GeometrySettings
from mechrefusal.prompts import ChatSettings
from mechrefusal.prompts.thoughts import MAX_THOUGHT_TOKENS
from mechrefusal.training import ARMS, TrainingSettings


@dataclass(frozen=True)
class Source:
    """Where a set of prompts comes from.

    Attributes:
        reader: benchmark whose format the file has (harmbench, strongreject, xstest, advbench, jailbreakbench,
            maliciousinstruct, alpaca), or "builtin" for the package's own prompts.
        path: file, or hub dataset.
        targets: JSON file of affirmative targets by id (HarmBench's adversarial training files have one).
    """

    reader: str = "builtin"
    path: str = ""
    targets: str = ""

    def __post_init__(self) -> None:
        if self.reader != "builtin" and not self.path:
            raise MechrefusalError(f"prompts with reader '{self.reader}' need a path: give the file or the hub dataset")


@dataclass(frozen=True)
class PromptSources:
    """Which prompts a study trains and measures on. Directions and carriers always use the built-in splits.

    Attributes:
        behaviours: harmful requests that all arms train on (as many as r2d2's pool holds; a warm-up: all of them);
            built-in: the splits `pool` and `train`.
        conversations: chat dataset for utility training: a .jsonl, .json or .parquet file or hub name with a column
            `messages`, or `prompt` and `answer`. Empty: the model's own greedy answers to built-in instructions.
        n_conversations: conversations at most.
        answer_tokens: longest of the model's own answers.
        harmful: held-out harmful requests; built-in: the split `evaluation`.
        harmless: held-out harmless requests; built-in: the split `evaluation`.
        overrefusal: safe prompts that look unsafe, and unsafe contrasts.
    """

    behaviours: Source = field(default_factory=Source)
    conversations: str = ""
    n_conversations: int = 400
    answer_tokens: int = 32
    harmful: Source = field(default_factory=Source)
    harmless: Source = field(default_factory=Source)
    overrefusal: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        for name in ("n_conversations", "answer_tokens"):
            if getattr(self, name) < 1:
                raise MechrefusalError(f"prompts {name} is {getattr(self, name)}: give at least 1")


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

    def __post_init__(self) -> None:
        require_reference(self.reference)
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


@dataclass(frozen=True)
class Recipe:
    """A study: one model, matched arms, anchors, and what is measured at each.

    Attributes:
        name: shown in the report.
        model: a packaged model, a hub name or a local folder.
        arms: of sft and r2d2.
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
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise MechrefusalError(f"arms are {list(self.arms)}: name each arm once, and at least one")
        if not self.training.arm_anchors:
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

        sources = self.prompts
        return replace(
            self,
            model=_absolute(self.model),
            prompts=replace(
                sources,
                behaviours=source(sources.behaviours),
                conversations=_absolute(sources.conversations),
                harmful=source(sources.harmful),
                harmless=source(sources.harmless),
                overrefusal=source(sources.overrefusal),
            ),
            evaluation=replace(self.evaluation, suites=tuple(_absolute_suite(spec) for spec in self.evaluation.suites)),
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
    path = Path(name)
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


def _absolute_suite(spec: str) -> str:
    name, separator, source = spec.partition("=")
    return f"{name}{separator}{_absolute(source)}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
