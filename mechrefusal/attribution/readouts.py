"""What a residual stream is read by: the refusal logits, or a direction. Each is linear in it once norms are held.

A read-out's value is scale · (residual stream · vector) + constant, at `position` of prompt + `opening`; layers below
`n_layers` have written to that stream. `total` is the same value read from the model, for which `tokens` are those
whose logits it needs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.attribution.norms import HeldNorm
from mechrefusal.attribution.writes import Writes
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.forward.direction import Along, direction_of, require_weights
from mechrefusal.models import require_direction, require_layers


@dataclass(frozen=True)
class RefusalLogits:
    """Mean logit(refusal tokens) − mean logit(compliance tokens), at the end of prompt + the metric's opening.

    The final norm's scale is held as it is there. A mean over token sets is linear in the logits, which the metric's
    log of summed probabilities is not. A metric with `forced` openings, whose score spans several tokens, is read by
    its token sets too: those that separate refusals from answers best at a single token.
    """

    metric: RefusalMetric

    position = -1

    @property
    def opening(self) -> tuple[int, ...]:
        """The metric's."""
        return self.metric.opening

    @property
    def tokens(self) -> tuple[int, ...]:
        """Refusal tokens, then compliance tokens."""
        return (*self.metric.refusal_tokens, *self.metric.compliance_tokens)

    def check(self, model) -> None:
        """Raise `MechrefusalError` for tokens beyond the vocabulary."""
        require_tokens(model, self.metric)

    def n_layers(self, model) -> int:
        """All of them."""
        return model.cfg.n_layers

    def vector(self, model) -> Float[Tensor, " d_model"]:
        """Difference of the mean columns of the unembedding, through the final norm's gain."""
        return _logit_scale(model) * _final_norm(model).pulled_back(self._difference(model.W_U.T))

    def constant(self, model) -> float:
        """From the biases of the unembedding and of the final norm."""
        through = _final_norm(model).bias @ self._difference(model.W_U.T)
        return _logit_scale(model) * (through + self._difference(model.b_U)).item()

    def scales(self, model, written: Writes) -> Float[Tensor, " prompt"]:
        """The final norm's, held."""
        return _final_norm(model).scales(written.final, written.normed)

    def total(self, model, written: Writes) -> Float[Tensor, " prompt"]:
        """From the model's own logits, with Gemma's soft cap undone: the stream adds up to what goes into it."""
        cap = getattr(model.original_model.config.get_text_config(), "final_logit_softcapping", None)
        logits = written.logits
        if cap:
            logits = cap * torch.atanh((logits / cap).clamp(-1 + 1e-12, 1 - 1e-12))
        n = len(self.metric.refusal_tokens)
        return logits[:, :n].mean(1) - logits[:, n:].mean(1)

    def _difference(self, rows: Float[Tensor, "vocab *rest"]) -> Float[Tensor, "*rest"]:
        sets = (self.metric.refusal_tokens, self.metric.compliance_tokens)
        refusal, compliance = (rows[list(tokens)].double().mean(0) for tokens in sets)
        return refusal - compliance


@dataclass(frozen=True)
class Onto:
    """Projection of resid_pre of `layer`, at `position` of the prompt, on the unit `direction`.

    `weights`: hash of those that the direction is of, "" for any.
    """

    direction: Float[Tensor, " d_model"]
    layer: int
    position: int = -1
    weights: str = ""

    opening = ()
    tokens = ()

    @classmethod
    def of(cls, along: Along, *, layer: int | None = None, position: int | None = None) -> "Onto":
        """Onto a direction or carrier, read where it was taken; a tensor needs its layer."""
        direction = direction_of(along)
        at = direction.require_layer() if layer is None else layer
        read = next(each for each in (position, direction.position, -1) if each is not None)
        return cls(direction.vector, at, read, direction.weights)

    def check(self, model) -> None:
        """Raise `MechrefusalError` for a direction of other weights or width, or that is none; a layer that is not."""
        require_weights(model, self.weights)
        require_layers(model, [self.layer])
        require_direction(model, self.direction)

    def n_layers(self, model) -> int:
        """Components at or above the layer have not written yet."""
        return self.layer

    def vector(self, model) -> Float[Tensor, " d_model"]:
        """The unit direction."""
        direction = self.direction.detach().to(model.cfg.device).double()
        return direction / direction.norm()

    def constant(self, model) -> float:
        """None."""
        return 0.0

    def scales(self, model, written: Writes) -> Float[Tensor, " prompt"]:
        """One."""
        return torch.ones_like(written.log_total)

    def total(self, model, written: Writes) -> Float[Tensor, " prompt"]:
        """The projection itself."""
        return written.resid_pre[:, self.layer] @ self.vector(model)


Readout = RefusalLogits | Onto


def require_tokens(model, metric: RefusalMetric) -> None:
    """Raise `MechrefusalError` for a metric whose tokens this model's vocabulary does not have."""
    ids = (*metric.opening, *metric.refusal_tokens, *metric.compliance_tokens)
    if outside := [token for token in ids if not 0 <= token < model.cfg.d_vocab]:
        raise MechrefusalError(
            f"token {outside[0]} of the refusal metric is beyond this model's vocabulary of {model.cfg.d_vocab}; "
            "discover the metric on this model"
        )


def _logit_scale(model) -> float:
    """What the model multiplies the unembedding's output by (Granite, Cohere); a soft cap does nothing to so little."""
    little = torch.tensor([1e-3], dtype=torch.float64, device=model.cfg.device)
    return model.adapter.apply_output_logits_transform(little).item() / little.item()


def _final_norm(model) -> HeldNorm:
    return HeldNorm.of(model, model.ln_final)
