"""Attribution patching: a first-order estimate of every patch from one gradient, and how far it is from the exact one.

Estimate (Nanda, "Attribution Patching", 2023; Syed et al., 2310.10348): (a_source − a_target) · ∂m/∂a, the gradient
taken in the run that is patched. Two passes and one gradient a pair serve every site; exact patching confirms the
finalists. "eap-ig" takes the mean gradient over several runs between the two prompts (2403.17806), by our own passes.
Gradients of one run come from TransformerLens' attribution patching tool, at the level of nodes (its edges refuse
grouped-query attention), or, where it gives none, from the same first-order formula in passes of our own.
"""

from mechrefusal.causal.attribution_patching.screening import SITES, Screen, Screened, agreement, screen, screened

__all__ = [
    "SITES",
    "Screen",
    "Screened",
    "agreement",
    "screen",
    "screened",
]
