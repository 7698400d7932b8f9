"""Guided reorganisation: terms that hold, move, part or double the direction of refusal while any arm trains."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mechrefusal import causal, prompts
from mechrefusal.attacks import random_stream
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward.hugging_face import HuggingFaceModel
from mechrefusal.training.class_means import ClassMeans
from mechrefusal.training.guide_settings import RESEMBLES, GuideSettings
from mechrefusal.training.losses import Hidden, Reads, Term, cross_entropy
from mechrefusal.training.measured import Measured, State
from mechrefusal.training.settings import TrainingSettings
from mechrefusal.training.under import Under

if TYPE_CHECKING:
    from mechrefusal.training.trainer_setup import TrainerSetup


def freeze(model: nn.Module, share: float) -> None:
    """Train neither the embedding nor the first `share` of the layers; a head that is tied to the embedding stays, too.

    Raises:
        MechrefusalError: nothing but the head would be trained.
    """
    if not share:
        return
    blocks = HuggingFaceModel.of(model).modules.blocks
    n = round(share * len(blocks))
    if n >= len(blocks):
        raise MechrefusalError(f"guide freeze is {share}, which leaves none of {len(blocks)} layers: give less")
    model.get_input_embeddings().requires_grad_(requires_grad=False)  # type: ignore[operator]
    for block in blocks[:n]:
        block.requires_grad_(requires_grad=False)


def require_guidable(guide: GuideSettings, settings: TrainingSettings) -> None:
    """Raise MechrefusalError for a guide that these settings of training cannot have."""
    if guide.freeze and settings.lora is not None:
        raise MechrefusalError("guide freeze is of layers that adapters leave as they are: give one of freeze and lora")


def guide_terms(setup: "TrainerSetup", guide: GuideSettings) -> dict[str, Term]:
    """The terms of a guide, by name.

    Raises:
        MechrefusalError: `apart` without utility rows that say that they resemble harm, or with those alone.
    """
    return _Terms(setup, guide).all() if guide.has_terms else {}


@dataclass(frozen=True)
class _Terms:
    setup: "TrainerSetup"
    guide: GuideSettings

    def all(self) -> dict[str, Term]:
        guide, n_layers = self.guide, HuggingFaceModel.of(self.setup.model).cfg.n_layers
        if n_layers < 2:
            raise MechrefusalError(
                "a guide needs a model of two layers or more: at the input of the first one all prompts end alike"
            )
        measure = self._measure(tuple(range(n_layers)))
        now, first = Measured("guide", measure, guide.every), Measured("guide, at first", measure, 0)
        # At the input of the first layer the last token of every prompt is the same, so that there is no direction.
        every = tuple(range(1, n_layers))
        low, high, at = (
            min(max(1, int(share * n_layers)), n_layers - 1)
            for share in (guide.shift_from, guide.shift_to, guide.redundant_at)
        )
        between = tuple(range(low, max(high, low + 1)))
        under = Under("guide: redundant", lambda state: causal.Ablation(state["direction"][at]), now)
        answers = Reads(every, "resid_pre", "answer", frozen=True, measured=first)
        last = Reads(every, "resid_pre", "last", measured=now)
        terms = [
            Term("guide_hold", held, guide.hold_weight, None, answers),
            Term("guide_shift", shifted, guide.shift_weight, self._refused, replace(last, layers=between)),
            Term("guide_apart", apart, guide.apart_weight, self._refused, last),
            Term("guide_redundant", cross_entropy, guide.redundant_weight, self._refused, under=under),
        ]
        return {term.name: term for term in terms if term.weight}

    def _refused(self, tokenizer: Any, case: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The behaviour as it is, whatever attack the arm has on it, and the refusal."""
        parts = prompts.segments(tokenizer, case.behaviour, target=self.setup.settings.refusal)
        return parts.prompt_ids, parts.target

    def _measure(self, layers: tuple[int, ...]):
        """What terms read: `direction`, `harmless` and, where `apart` asks, `resembling`, each [layer, d_model], and
        `first_length` [layer], the length of the direction at the first measurement.
        """
        utility = self.setup.inputs.utility
        plain, resembling = (
            list(dict.fromkeys(row["prompt"] for row in utility if bool(row.get(RESEMBLES)) is kind))
            for kind in (False, True)
        )
        classes = {"harmful": self.setup.inputs.behaviours.texts, "harmless": [*plain, *resembling]}
        if self.guide.apart_weight:
            if not plain or not resembling:
                raise MechrefusalError(
                    f"guide apart_weight is {self.guide.apart_weight}, but {len(resembling)} of {len(utility)} utility "
                    f"rows resemble harmful requests (key '{RESEMBLES}'): give rows of both kinds"
                )
            classes |= {"plain": plain, "resembling": resembling}
        means = ClassMeans(self.setup, layers, classes, self.guide.n_prompts)

        def measure(trainer: Any) -> State:
            of = means.means(trainer)
            state = {"direction": of["harmful"] - of["harmless"], "harmless": of["harmless"]}
            if "plain" in of:
                state["resembling"] = of["resembling"] - of["plain"]
            if self.guide.direction == "random":
                for name in ("direction", "resembling"):
                    if name in state:
                        state[name] = self._random(state[name], name)
            before = trainer.passes.states.get("guide", {})
            state["first_length"] = before.get("first_length", state["direction"].norm(dim=-1))
            return {name: tensor.float() for name, tensor in state.items()}

        return measure

    def _random(self, directions: Float[Tensor, "layer d_model"], name: str) -> Float[Tensor, "layer d_model"]:
        """Random directions of the same lengths: the same at every measurement."""
        stream = random_stream(self.setup.settings.seed, f"guide {name}")
        random = torch.randn(directions.shape, generator=stream, dtype=torch.float64).to(directions)
        return directions.norm(dim=-1, keepdim=True) * functional.normalize(random, dim=-1)


def held(hidden: Hidden) -> Float[Tensor, " token"]:
    """((h − h₀)·r₀ / ‖r₀‖²)² of each token, the mean over layers (ProCon, 2509.06795)."""
    parts = [
        _along(h - hidden.frozen[layer], hidden.state["direction"][layer]).square()
        for layer, h in hidden.trained.items()
    ]
    return torch.stack(parts).mean(0)


def shifted(hidden: Hidden) -> Float[Tensor, " token"]:
    """((h − μ)·r / (‖r‖ ‖r₀‖))² of each token, the mean over layers; μ the harmless mean.

    In units of the direction's length before the first step: against its own, a loss of what is left would stay as it
    is however little is left, and push for ever.
    """
    state = hidden.state
    shares = {layer: state["direction"][layer].norm() / state["first_length"][layer] for layer in hidden.trained}
    parts = [
        (_along(h - state["harmless"][layer], state["direction"][layer]) * shares[layer]).square()
        for layer, h in hidden.trained.items()
    ]
    return torch.stack(parts).mean(0)


def apart(hidden: Hidden) -> Float[Tensor, " token"]:
    """cos² of the tokens' mean less the harmless mean and the direction of requests that resemble harm, over layers.

    It is one number of all tokens, and stands at each of them.
    """
    own = {layer: h.float().mean(0) - hidden.state["harmless"][layer] for layer, h in hidden.trained.items()}
    cosines = [functional.cosine_similarity(r, hidden.state["resembling"][layer], dim=0) for layer, r in own.items()]
    n = len(next(iter(hidden.trained.values())))
    return torch.stack(cosines).square().mean().expand(n)


def _along(activation: Float[Tensor, "token d_model"], direction: Float[Tensor, " d_model"]) -> Float[Tensor, " token"]:
    return activation.float() @ direction / direction.square().sum().clamp(min=1e-12)
