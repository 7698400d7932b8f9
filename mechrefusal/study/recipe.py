"""The recipe: everything that a study is told, as one dataclass. YAML files and the command line fill it in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from mechrefusal.causal.settings import CausalSettings
from mechrefusal.durability.settings import DurabilitySettings
from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.settings import EvaluationSettings
from mechrefusal.geometry.settings import GeometrySettings
from mechrefusal.models import Placement
from mechrefusal.prompts import ChatSettings
from mechrefusal.prompts.thoughts import MAX_THOUGHT_TOKENS
from mechrefusal.study.arms import PlannedArm, planned_arm
from mechrefusal.study.given import RESERVED, require_arms, require_name
from mechrefusal.study.settings import AttackSettings, MeasuringSettings, PromptSources, Sides, Source
from mechrefusal.training import TrainingSettings


def _both() -> dict[str, dict[str, Any]]:
    return {"sft": {}, "r2d2": {}}


@dataclass(frozen=True)
class Recipe:
    """A study: one model, matched arms, anchors, and what is measured at each.

    Attributes:
        name: shown in the report.
        model: a packaged model, a hub name (`owner/name`, `owner/name@revision`) or a local folder: what arms are
            trained from, and what checkpoints are compared with. Empty: none, where nothing is trained.
        arms: what is trained, by name: a mapping from each arm's name to what it is told, `{sft: {}, r2d2: {}}`, or
            names alone, `[sft, r2d2]`; none where only given checkpoints are measured. Without `method` the name is
            that of the method. See `PlannedArm`.
        checkpoints: models that others trained, to be measured too, by the name of their arm: lists of folders, hub
            names, or output folders of a Trainer, each of which stands for all of its checkpoints.
        prompts: which prompts.
        training: how every arm trains.
        attack: fixed-source attacks.
        measuring: how every checkpoint is measured.
        geometry: how far its geometry is taken.
        causal: how far cause by layer and head is taken.
        durability: what it takes to remove refusal; nothing of it unless it is asked for.
        evaluation: benchmarks that every checkpoint is evaluated on.
        chat_template: in place of the model's own, which a base model has none of: a file (Jinja), or the name of a
            packaged one (zephyr, plain). What it writes at the end of an answer is the tokenizer's end token.
        chat_template_kwargs: what the chat template gets beside the messages wherever the model is asked: in training,
            attacks and measurements alike. `{enable_thinking: false}` turns the thinking of Qwen3-like models off.
        placement: where models lie while they are measured, evaluated and attacked, and in which numbers; training's
            numbers are `training.bf16`'s.
        max_thought_tokens: tokens that a thought ("<think> ... </think>") may take beside the answer's; 0: it takes
            the answer's.
    """

    name: str = "study"
    model: str = "smollm2-135m-instruct"
    arms: dict[str, dict[str, Any]] | tuple[str, ...] = field(default_factory=_both)
    checkpoints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prompts: PromptSources = field(default_factory=PromptSources)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    attack: AttackSettings = field(default_factory=AttackSettings)
    measuring: MeasuringSettings = field(default_factory=MeasuringSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    causal: CausalSettings = field(default_factory=CausalSettings)
    durability: DurabilitySettings = field(default_factory=DurabilitySettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    chat_template: str = ""
    placement: Placement = field(default_factory=Placement)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_thought_tokens: int = MAX_THOUGHT_TOKENS

    def __post_init__(self) -> None:
        _ = self.chat  # what cannot be told a chat template is said at once
        if not isinstance(self.arms, dict):
            if len(set(self.arms)) < len(self.arms):
                raise MechrefusalError(f"arms are {list(self.arms)}: name each arm once")
            object.__setattr__(self, "arms", {name: {} for name in self.arms})
        for name in self.arms:
            require_name(name, "arm")
            if name in RESERVED:
                raise MechrefusalError(f"arm '{name}' has a name that every run uses itself: give it another")
        require_arms(self.checkpoints, taken=(*RESERVED, *self.arms))
        if not self.arms and not self.checkpoints and not self.model:
            raise MechrefusalError("the recipe names neither a model nor checkpoints: give what is to be measured")
        if self.arms and not self.model:
            raise MechrefusalError(f"arms are {list(self.arms)}, but model is empty: give what they are trained from")
        if self.arms and not self.training.arm_anchors:
            above = f"above the warm-up of {warm_up} steps" if (warm_up := self.training.warm_up) else "above 0"
            raise MechrefusalError(f"training anchors hold no step {above}: there would be nothing to compare")
        _ = self.planned_arms

    @cached_property
    def planned_arms(self) -> list[PlannedArm]:
        """The arms with their settings.

        Raises:
            MechrefusalError: an unknown method or setting, or a value that cannot be.
        """
        assert isinstance(self.arms, dict)
        return [planned_arm(name, values, self.training) for name, values in self.arms.items()]

    @property
    def chat(self) -> ChatSettings:
        """How the model is asked."""
        return ChatSettings.of(self.chat_template_kwargs, self.max_thought_tokens, self.chat_template)

    @property
    def opened(self) -> dict[str, Any]:
        """How its checkpoints are opened, as arguments of `Checkpoint.open`."""
        return {"chat": self.chat, "placement": self.placement}

    def with_absolute_paths(self) -> "Recipe":
        """The same recipe with existing files and folders named in full, so that it holds from any folder."""
        prompts: dict[str, Any] = {
            name: type(part)(
                **{key: value if key == "reader" else _absolute(value) for key, value in vars(part).items()}
            )
            for name, part in vars(self.prompts).items()
            if isinstance(part, Source | Sides)
        }
        conversations = _absolute(self.prompts.conversations)
        of_evaluation: dict[str, Any] = {
            name: tuple(map(_absolute_spec, getattr(self.evaluation, name))) for name in ("suites", "judges")
        }
        return replace(
            self,
            model=_absolute(self.model),
            chat_template=_absolute(self.chat_template),
            checkpoints={arm: tuple(map(_absolute, sources)) for arm, sources in self.checkpoints.items()},
            prompts=replace(self.prompts, conversations=conversations, **prompts),
            measuring=replace(self.measuring, judge=_absolute_spec(self.measuring.judge)),
            evaluation=replace(self.evaluation, **of_evaluation),
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


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Dotted keys in which two recipes (as dictionaries) differ."""
    first, second = leaves(a), leaves(b)
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name


def _absolute_spec(spec: str) -> str:
    """NAME=PATH with the path in full."""
    name, separator, source = spec.partition("=")
    return f"{name}{separator}{_absolute(source)}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
