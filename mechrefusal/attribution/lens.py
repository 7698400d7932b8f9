"""Logit lens of the refusal opening: what the model would say if it stopped at each layer.

nostalgebraist, interpreting GPT: the logit lens (2020). TransformerLens' `logit_readout` reads each layer's residual
stream through the final norm, of that stream's own scale, the unembedding and the output transform (soft cap).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.tools.analysis.logit_lens import logit_readout

from mechrefusal.attribution.readouts import require_tokens
from mechrefusal.attribution.writes import Writes, prompt_segments
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import RefusalMetric
from mechrefusal.statistics import intervals

TOLERANCE = 1e-3
"""Largest difference allowed between the last row and the model's own log-probabilities, nats."""

QUANTITIES = ("refusal", "compliance", "score", "rank")


@dataclass(frozen=True)
class Lens:
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
    def table(self) -> pd.DataFrame:
        """layer (n_layers is the output), quantity (one of `QUANTITIES`), value (mean over prompts), n, low, high."""
        return pd.DataFrame(
            [
                {"layer": layer, "quantity": name, **vars(intervals.mean(row))}
                for name in QUANTITIES
                for layer, row in enumerate(getattr(self, name).double().numpy())
            ]
        )


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
    ids = [(*found.prompt_ids, *metric.opening) for found in prompt_segments(model, texts)]
    written = Writes.take(model, ids, tokens=tokens)
    stream = torch.cat([written.resid_pre, written.final[:, None]], dim=1).transpose(0, 1)
    try:
        found = logit_readout(model, stream, targets=tokens, return_type="log_probs")
    except (ValueError, NotImplementedError) as error:
        raise MechrefusalError(f"the layers of this model cannot be read by a logit lens: {error}") from error
    likely = found.values.double()
    own = written.logits - written.log_total[:, None]
    gap = (likely[-1] - own).abs().max().item()
    if not gap <= TOLERANCE:
        raise MechrefusalError(
            f"the logit lens ends {gap:.2g} nats off the model's own output (allowed {TOLERANCE:g}); this architecture "
            "does more than norm and unembed, so no lens is given"
        )
    n = len(metric.refusal_tokens)
    assert found.target_ranks is not None
    refusal, compliance = (part.logsumexp(-1).cpu() for part in (likely[..., :n], likely[..., n:]))
    rank = found.target_ranks[..., :n].amin(-1).cpu()
    return Lens(refusal, compliance, refusal - compliance, rank)


def compare_lenses(model, harmful: Sequence[str], harmless: Sequence[str], metric: RefusalMetric) -> pd.DataFrame:
    """`Lens.table` of harmful and of harmless prompts, told apart by a first column `set`."""
    frames = []
    for name, texts in (("harmful", harmful), ("harmless", harmless)):
        table = logit_lens(model, texts, metric).table
        table.insert(0, "set", name)
        frames.append(table)
    return pd.concat(frames, ignore_index=True)
