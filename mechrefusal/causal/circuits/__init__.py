"""The circuit of refusal: the heads and MLPs that carry it, the paths between them, and how faithful they are.

Nodes are those whose exact patch moves enough of the metric, edges are path patches between them (`paths`),
faithfulness is what the circuit does with everything else mean-ablated (`faithfulness`). `attribute_edges` estimates
all paths from gradients.
"""

from mechrefusal.causal.circuits.discovery import Circuit, circuit
from mechrefusal.causal.circuits.edge_attribution import EdgeScores, attribute_edges
from mechrefusal.causal.circuits.paths import Node

__all__ = [
    "Circuit",
    "EdgeScores",
    "Node",
    "attribute_edges",
    "circuit",
]
