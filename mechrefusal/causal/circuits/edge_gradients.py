"""Edge attribution patching (Syed et al., 2310.10348), with integrated gradients (Hanna et al., 2403.17806): one pair.

score(u → v) = Σ (z_u(source) − z_u(target)) · mean over runs of ∂m/∂(input of v). z_u is what u adds to the residual
stream, the input of v is the residual stream before its norm, and ∂m/∂ takes everything after v along. It estimates
what `paths.PathPatching` measures: the change of the metric where v alone reads what u writes in the other prompt.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.attribution_patching.gradients import (
    EMBEDDED,
    STEPS,
    Method,
    PairGradients,
    Tool,
    between,
    by_tools,
    shares,
    watching,
)
from mechrefusal.causal.circuits.paths import EMBEDDING, Edge, Node, logits_of, parallel
from mechrefusal.forward import Edit, Metric, PairRun, Place, Runner, Site, flat

Changes = Mapping[Node, Float[Tensor, "place d_model"]]
"""What each sender adds to the residual stream in the source, less what it adds in the target."""
Gradients = dict[Node, Float[Tensor, "place d_model"]]
"""Of the metric with regard to each receiver's input, before its norm."""


def edge_estimates(
    model,
    run: PairRun,
    metric: Metric,
    edges: Sequence[Edge],
    *,
    method: Method = "eap-ig",
    steps: int = STEPS,
    tool: Tool | None = None,
) -> tuple[Float[Tensor, " edge"], Tool]:
    """Estimated change of the metric by each path, nats (float64), and the tool that gave the gradients.

    Args:
        model: a hooked transformer, under whatever hooks the caller has open.
        method: "eap": gradients in the target as it is. "eap-ig": their mean over `steps` runs in which the embedding
            is k / steps of the way to that of the source.
        tool: "token trees" or "hooks"; by default the first that works.

    Raises:
        MechrefusalError: an unknown method, no steps; the metric has no gradient, or no tool gives one.
    """
    points = shares(method, steps)
    senders, receivers = ({edge[i] for edge in edges} for i in (0, 1))

    def make(runner: Runner) -> Float[Tensor, " edge"]:
        passes = EdgePasses(PairGradients(runner, run, metric))
        gradients = passes.gradients(sorted(receivers), points)
        return contracted(passes.changes(sorted(senders)), gradients, edges)

    sites: tuple[Site, ...] = ("z",)
    return by_tools(model, {}, make, sites, tool)


def contracted(changes: Changes, gradients: Changes, edges: Sequence[Edge]) -> Float[Tensor, " edge"]:
    """Score of each edge: the sender's change times the receiver's mean gradient, over places and features."""
    if not edges:
        return torch.zeros(0, dtype=torch.float64)
    sent, received = (torch.stack(list(of.values())) for of in (changes, gradients))
    total = torch.zeros(len(sent), len(received), dtype=torch.float64, device=sent.device)
    for token in range(sent.shape[1]):  # in float64 a token at a time: all at once take a lot of memory
        total += sent[:, token].double() @ received[:, token].double().T
    row, column = ({node: i for i, node in enumerate(of)} for of in (changes, gradients))
    which = torch.tensor([(row[sender], column[receiver]) for sender, receiver in edges], device=sent.device)
    return total[which[:, 0], which[:, 1]].cpu()


class EdgePasses:
    """One pair, its activations, and passes that give gradients."""

    def __init__(self, both: PairGradients) -> None:
        self.both, self.cfg = both, both.model.cfg
        sites: tuple[Site, ...] = ("resid_pre", "z", "attn_out", "mlp_out")
        self.places: list[Place] = [(layer, site) for layer in range(self.cfg.n_layers) for site in sites]
        self.last: Place = (self.cfg.n_layers - 1, "resid_post")
        self.places.append(self.last)
        self.source, self.target = (both.recorded(batch, self.places) for batch in (both.source, both.target))

    def changes(self, senders: Sequence[Node]) -> Changes:
        """Changes of the residual stream by each sender; exact also where attention is normed before it is added."""
        by_sender: dict[Node, Tensor] = {}
        for sender in senders:
            if sender.component != "head":
                place: Place = EMBEDDED if sender == EMBEDDING else (sender.layer, "mlp_out")
                by_sender[sender] = self.source[place] - self.target[place]
        heads = [sender for sender in senders if sender.component == "head"]
        for head in sorted({node.head for node in heads}):
            written = self._written_by(head, sorted({node.layer for node in heads if node.head == head}))
            for layer, value in written.items():
                by_sender[Node(layer, "head", head)] = value - self.target[layer, "attn_out"]
        return by_sender

    def _written_by(self, head: int, layers: Sequence[int]) -> dict[int, Tensor]:
        """What attention of each layer writes where this head alone is as in the source, in one pass for all layers."""
        edits: list[Edit] = []
        for layer in layers:
            z = self.target[layer, "z"].clone()
            z[:, head] = self.source[layer, "z"][:, head]
            edits += [(layer, "resid_pre", _constant(self.target[layer, "resid_pre"])), (layer, "z", _constant(z))]
        with torch.no_grad():
            cache = self.both.target.run(edits, keep=[(layer, "attn_out") for layer in layers]).cache
        return {layer: cache[layer, "attn_out"] for layer in layers}

    def gradients(self, receivers: Sequence[Node], points: Sequence[float]) -> Gradients:
        """Mean gradients with regard to each receiver's input over `points` of the way from target to source.

        One pass backward gives the gradient at what every head and MLP writes; from there to the receiver's own input
        it is taken back through that receiver alone: a part of a block for each head and MLP, whatever the number of
        edges, and the same for every architecture.
        """
        total: Gradients = {}
        for share in points:
            for receiver, gradient in self._gradients_at(share, receivers).items():
                total[receiver] = total.get(receiver, 0) + gradient.double() / len(points)
        return total

    def _gradients_at(self, share: float, receivers: Sequence[Node]) -> Gradients:
        graph: dict[Place, Tensor] = {}
        score = self.both.score([between(self.source, self.target, share), *watching(self.places, graph)])
        outputs = list(dict.fromkeys(self._output(node) for node in receivers))
        values = [graph[output] for output in outputs]
        after = torch.autograd.grad(score, values, retain_graph=True, materialize_grads=True)
        by_output = dict(zip(outputs, after, strict=True))
        by_receiver: Gradients = {}
        for receiver in receivers:
            output, into = self._output(receiver), self._input(receiver)
            gradient = by_output[output]
            if receiver != logits_of(self.both.model):
                if receiver.component == "head":
                    whole = flat(self.both.model, "z", gradient)
                    alone = torch.zeros_like(whole)
                    alone[:, receiver.head] = whole[:, receiver.head]
                    gradient = alone.reshape(gradient.shape)
                (gradient,) = torch.autograd.grad(
                    graph[output], graph[into], gradient, retain_graph=True, materialize_grads=True
                )
            by_receiver[receiver] = flat(self.both.model, into[1], gradient)
        return by_receiver

    def _output(self, receiver: Node) -> Place:
        if receiver == logits_of(self.both.model):
            return self.last
        return receiver.layer, "z" if receiver.component == "head" else "mlp_out"

    def _input(self, receiver: Node) -> Place:
        """Where something added reaches this receiver, and in its block nothing that the receiver does not read."""
        after_attention = receiver.component == "mlp" and not parallel(self.both.model)
        return receiver.layer, "attn_out" if after_attention else "resid_pre"


def _constant(value: Tensor):
    return lambda activation: value.reshape(activation.shape)
