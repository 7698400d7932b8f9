"""Where refusal points: directions, carriers, and how they drift between checkpoints."""

from mechrefusal.forward.direction import Carrier, Direction
from mechrefusal.geometry import carriers, cones, drift, stability, subspaces
from mechrefusal.geometry.carrier_scores import CarrierScores
from mechrefusal.geometry.carriers import Selection, select
from mechrefusal.geometry.cones import Cone, ConeSettings, learn_cone
from mechrefusal.geometry.contrast import last_instruction_position, post_instruction_positions
from mechrefusal.geometry.contrast_activations import ContrastActivations
from mechrefusal.geometry.coupling import harmfulness_refusal_coupling
from mechrefusal.geometry.directions import Directions
from mechrefusal.geometry.doses import Doses, dose_response
from mechrefusal.geometry.drift import cosine, effective_rank, principal_angles
from mechrefusal.geometry.overlap import over_refusal_overlap
from mechrefusal.geometry.probes import linear_probe, linear_probes, probe_layers
from mechrefusal.geometry.scoring import Scorer, kl_divergence, score
from mechrefusal.geometry.screening import screened
from mechrefusal.geometry.separability import Separability
from mechrefusal.geometry.span_scores import Subspace
from mechrefusal.geometry.streamed_means import difference_in_means, difference_in_means_of_part
from mechrefusal.geometry.subspace_scores import Subspaces, score_subspaces
from mechrefusal.geometry.transfers import transfer
from mechrefusal.statistics.choosing import Admissible

__all__ = [
    "Admissible",
    "Carrier",
    "CarrierScores",
    "Cone",
    "ConeSettings",
    "ContrastActivations",
    "Direction",
    "Directions",
    "Doses",
    "Scorer",
    "Selection",
    "Separability",
    "Subspace",
    "Subspaces",
    "carriers",
    "cones",
    "cosine",
    "difference_in_means",
    "difference_in_means_of_part",
    "dose_response",
    "drift",
    "effective_rank",
    "harmfulness_refusal_coupling",
    "kl_divergence",
    "last_instruction_position",
    "learn_cone",
    "linear_probe",
    "linear_probes",
    "over_refusal_overlap",
    "post_instruction_positions",
    "principal_angles",
    "probe_layers",
    "score",
    "score_subspaces",
    "screened",
    "select",
    "stability",
    "subspaces",
    "transfer",
]
