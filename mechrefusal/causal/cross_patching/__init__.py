"""Cross-checkpoint patching: activations of one checkpoint put into another, at the same site on the same prompts.

"Which layer, or head, of the trained model, given to the base, makes it refuse", and the other way round. The two must
be of one architecture and read the prompts as the same tokens. What their activations have in common, and what not,
says `mechrefusal.causal.cross_patching.activations`.

    found = cross_patching.patch_across(trained, base, asked.validation.harmful, metric)
    found.table, found.top(4), found.interval(site="attn_out", layer=3)

    kept = cross_patching.keep_activations(trained, asked.validation.harmful, metric)
    del trained  # one checkpoint in memory at a time
    found = cross_patching.patch_across(kept, base)

Sites: "resid_pre" makes a model that is the source below a layer and the target from there on. "attn_out" and "mlp_out"
are what one layer writes. "z" is what a head of the source reads and carries, written by the *target's* W_O; "result"
is the head with both, z and W_O of the source, in place of the target's. Where training changed W_O, only "result" is
the whole head. Architectures that norm attention's output once more (Gemma 2 and 3) have no result of a single head.

The control is the same change turned: in place of x_target + (x_source − x_target) the target gets
x_target + (x_source − x_target) Q, with one random rotation Q for all tokens, prompts and layers. It has the norm of
the change at every token, and angles between tokens, but not its direction: what it does to refusal any disturbance of
this size and coherence may do. That is much where the stream is read directly: after the last layers a change that all
prompts have in common moves the refusal token by chance, up or down, whatever its direction.

Harmless prompts in place of harmful ones are the other control: they tell a site that carries refusal of harmful
requests from one that makes the model refuse whatever it is asked.
"""

from mechrefusal.causal.cross_patching.across import HEAD_SITES, both_directions, cumulative, patch_across
from mechrefusal.causal.cross_patching.activations import (
    DEFAULT_SITES,
    SITES,
    SourceActivations,
    architecture,
    keep_activations,
    require_same,
)
from mechrefusal.causal.cross_patching.passes import rotation
from mechrefusal.causal.cross_patching.results import BothDirections, CrossPatching

__all__ = [
    "DEFAULT_SITES",
    "HEAD_SITES",
    "SITES",
    "BothDirections",
    "CrossPatching",
    "SourceActivations",
    "architecture",
    "both_directions",
    "cumulative",
    "keep_activations",
    "patch_across",
    "require_same",
    "rotation",
]
