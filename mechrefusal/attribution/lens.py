"""Logit lens of the refusal opening: what the model would say if it stopped at each layer.

nostalgebraist, interpreting GPT: the logit lens (2020). TransformerLens' `logit_readout` reads each layer's residual
stream through the final norm, of that stream's own scale, the unembedding and the output transform (soft cap).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.tools.analysis.logit_lens import logit_readout

from mechrefusal.attribution.readouts import require_tokens
from mechrefusal.attribution.writes import Writes, prompt_segments
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.models.rounding import rounded_at_most
from mechrefusal.statistics import Observations, Observed, intervals
from mechrefusal.statistics.observations import numbered

TOLERANCE = 1e-3
"""Largest difference allowed between the last row and the model's own log-probabilities, nats."""

QUANTITIES = ("refusal", "compliance", "score", "rank")


@dataclass(frozen=True)
class Lens(Observed):
    """Layer l reads resid_pre of layer l; the last row is the model's output. For the token after prompt + opening.

    Fields:
        refusal, compliance: log-probability of each token set, nats.
        score: their difference: the refusal metric by its token sets.
        rank: of the likeliest refusal token in the vocabulary, 0 the argmax.
    """

    refusal: Float[Tensor, "layer prompt"]
    compliance: Float[Tensor, "layer prompt"]
    score: Float[Tensor, "layer prompt"]
    rank: Int[Tensor, "layer prompt"]

    @property
    def observations(self) -> Observations:  # type: ignore[override]
        """Every prompt's value; axes quantity (one of `QUANTITIES`) and layer."""
        rows = torch.cat([getattr(self, name).double() for name in QUANTITIES])
        cells = [(name, layer) for name in QUANTITIES for layer in range(len(self.score))]
        names = numbered(rows.shape[1])
        return Observations(rows.T.numpy(), pd.DataFrame(cells, columns=["quantity", "layer"]), names)

    @property
    def table(self) -> pd.DataFrame:
        """layer (n_layers is the output), quantity (one of `QUANTITIES`), value (mean over prompts), n, low, high."""
        seen = self.observations
        estimates = [vars(intervals.mean(values)) for values in np.ascontiguousarray(seen.values.T)]
        return pd.concat([seen.cells[["layer", "quantity"]], pd.DataFrame(estimates)], axis=1)


@dataclass(frozen=True)
class Lenses(Observed):
    """The lens on harmful and on harmless prompts."""

    harmful: Lens
    harmless: Lens

    @property
    def observations(self) -> Observations:  # type: ignore[override]
        """Of all prompts; axis `set` first."""
        sides = vars(self).items()
        cells = {
            (side, quantity, layer): (side, values.double().numpy())
            for side, lens in sides
            for quantity in QUANTITIES
            for layer, values in enumerate(getattr(lens, quantity))
        }
        sizes = {side: lens.score.shape[1] for side, lens in sides}
        return Observations.of_sides(sizes, cells, ("set", "quantity", "layer"))

    @property
    def table(self) -> pd.DataFrame:
        """Both tables one after the other, with a first column `set`."""
        parts = vars(self).items()
        return pd.concat([one.table.assign(set=name) for name, one in parts], ignore_index=True)[
            ["set", "layer", "quantity", "value", "low", "high", "n"]
        ]


@torch.no_grad()
def logit_lens(model, texts: Sequence[str], metric: RefusalMetric) -> Lens:
    """Log-probabilities of refusal and compliance at every layer's input and at the end.

    Args:
        model: a hooked transformer, under whatever hooks are open.
        texts: instructions; the model's chat template is put around them.
        metric: read by its token sets at its opening, also where it has `forced` openings.

    Raises:
        MechrefusalError: no texts; weights that are not finite; a last row that is not the model's output, as where
            the architecture does more than norm and unembed.
    """
    require_tokens(model, metric)
    tokens = [*metric.refusal_tokens, *metric.compliance_tokens]
    ids = [(*segments.prompt_ids, *metric.opening) for segments in prompt_segments(model, texts)]
    written = Writes.take(model, ids, tokens=tokens)
    stream = torch.cat([written.resid_pre, written.final[:, None]], dim=1).transpose(0, 1)
    try:
        readout = logit_readout(model, stream, targets=tokens, return_type="log_probs")
    except (ValueError, NotImplementedError) as error:
        raise MechrefusalError(f"the layers of this model cannot be read by a logit lens: {error}") from error
    likely = readout.values.to(written.logits.device).double()
    of_model = written.logits - written.log_total[:, None]
    gap = (likely[-1] - of_model).abs().max().item()
    read = written.normed.square() @ model.W_U[:, tokens].to(written.normed.device).double().square()
    rounding = rounded_at_most(model, read)  # what entered the output matrix was rounded, each number by itself
    if not gap <= TOLERANCE + rounding:
        raise MechrefusalError(
            f"the logit lens ends {gap:.2g} nats off the model's own output (allowed {TOLERANCE + rounding:.2g}); this "
            "architecture does more than norm and unembed, so no lens is given"
        )
    n = len(metric.refusal_tokens)
    assert readout.target_ranks is not None
    refusal, compliance = (part.logsumexp(-1).cpu() for part in (likely[..., :n], likely[..., n:]))
    rank = readout.target_ranks[..., :n].amin(-1).cpu()
    return Lens(refusal, compliance, refusal - compliance, rank)


def compare_lenses(model, harmful: Sequence[str], harmless: Sequence[str], metric: RefusalMetric) -> Lenses:
    """`logit_lens` of harmful and of harmless prompts."""
    return Lenses(logit_lens(model, harmful, metric), logit_lens(model, harmless, metric))
