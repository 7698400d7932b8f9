"""Path patching (Wang et al., 2211.00593; Goldowsky-Dill et al., 2304.05969): a sender's direct path into a receiver.

In the run that is patched, the receiver's input gets, besides what it has, the change that the sender's output makes
to the residual stream; no other component sees it. What the receiver writes then is handed on, and everything after it
runs on. All senders at once give the input of the other run: together they are an ordinary patch of the receiver.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.components import Component
from mechrefusal.forward import Asked, Edit, PairRun, Place, Site, by_continuation, flat, runner_of
from mechrefusal.forward.patches import MEMORY, activation_bytes, logit_bytes
from mechrefusal.models.batches import split_by_cost


@dataclass(frozen=True, order=True)
class Node:
    """A place of the graph: the embedding, a head (its q, k and v together), an MLP, or the final residual stream.

    `layer` is −1 for the embedding and n_layers for the logits; `head` is −1 where there is none.
    """

    layer: int
    component: Literal["embedding", "head", "mlp", "logits"]
    head: int = -1

    def __str__(self) -> str:
        names = {"head": f"head {self.layer}.{self.head}", "mlp": f"mlp {self.layer}"}
        return names.get(self.component, self.component)

    @property
    def part(self) -> Component:
        """The head or MLP as knock-outs name it."""
        assert self.component in ("head", "mlp")
        return Component("head" if self.component == "head" else "mlp", self.layer, self.head)


Edge = tuple[Node, Node]
EMBEDDING = Node(-1, "embedding")


def logits_of(model) -> Node:
    """The final residual stream, read by the unembedding."""
    return Node(model.cfg.n_layers, "logits")


def every_node(model) -> list[Node]:
    """Every head and every MLP, layer by layer."""
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    return [node for layer in layers for node in (*(Node(layer, "head", head) for head in heads), Node(layer, "mlp"))]


def edges_between(model, nodes: Iterable[Node]) -> list[Edge]:
    """Every pair of these nodes, the embedding and the logits, of which the first writes what the second reads."""
    distinct = list(nodes)
    return [
        (sender, receiver)
        for sender, receiver in product([EMBEDDING, *distinct], [*distinct, logits_of(model)])
        if _reaches(model, sender, receiver)
    ]


def _reaches(model, sender: Node, receiver: Node) -> bool:
    if sender.layer == receiver.layer:
        return sender.component == "head" and receiver.component == "mlp" and not parallel(model)
    return sender.layer < receiver.layer


def parallel(model) -> bool:
    """Whether attention and MLP of a block read the same residual stream."""
    return bool(getattr(model.cfg, "parallel_attn_mlp", False))


class PathPatching:
    """One pair of prompts, ready for any number of paths.

    A sender's change of the residual stream is what its block's attention or MLP writes with the sender's output taken
    from the other run, less what it writes without: exact also where that is normed before it is added (Gemma 2 and 3).

    Fields:
        n_rows, n_passes: patched prompts that were run so far, and passes, those through a single block among them.
    """

    @torch.no_grad()
    def __init__(self, model, run: PairRun) -> None:
        self.model, self.run, self.runner = model, run, runner_of(model, sites=("z",))
        n_layers = model.cfg.n_layers
        sites: tuple[Site, ...] = ("resid_pre", "z", "attn_out", "mlp_out")
        places: list[Place] = [(layer, site) for layer in range(n_layers) for site in sites]
        places.append((n_layers - 1, "resid_post"))
        source, self._batch = (
            self.runner.batch([Asked(prompt, run.reader.runs, run.reader.kept)], first=run.first)
            for prompt in (run.source, run.target)
        )
        self.source, unpatched = source.run(keep=places).cache, self._batch.run(keep=places)
        self.target, self._unpatched = unpatched.cache, run.reader.score([part[None] for part in unpatched.logits])[0]
        self.n_rows = self.n_passes = 0
        self._changes: dict[Node, Tensor] = {}

    @torch.no_grad()
    def effects(self, edges: Sequence[Edge]) -> Float[Tensor, " edge"]:
        """Change of the metric by each path, nats."""
        self._find_changes({sender for sender, _ in edges})
        effects = torch.empty(len(edges))
        for layer in sorted({receiver.layer for _, receiver in edges}):
            here = [i for i, (_, receiver) in enumerate(edges) if receiver.layer == layer]
            for part in self._parts(len(here)):
                chosen = [here[i] for i in part]
                changes = [self._changes[edges[i][0]] for i in chosen]
                effects[chosen] = self._into([edges[i][1] for i in chosen], changes).cpu()
        return effects

    @torch.no_grad()
    def from_everywhere(self, receivers: Sequence[Node]) -> Float[Tensor, " receiver"]:
        """Change of the metric where a receiver gets the changes of all that is written before it, nats."""
        effects = []
        for receiver in receivers:
            layer = receiver.layer
            if receiver.component == "logits":
                change = self._change(layer - 1, "resid_post")
            else:
                change = self._change(layer, "resid_pre")
                if receiver.component == "mlp" and not parallel(self.model):
                    change = change + self._change(layer, "attn_out")
            effects.append(self._into([receiver], [change])[0])
        return torch.stack(effects).cpu()

    @torch.no_grad()
    def changes(self, senders: Iterable[Node]) -> dict[Node, Tensor]:
        """Of the residual stream by each sender, [token, d_model]: in the source less in the target."""
        unknown = set(senders)
        self._find_changes(unknown)
        return {sender: self._changes[sender] for sender in unknown}

    @torch.no_grad()
    def written_by(self, receivers: Sequence[Node], changes: Sequence[Tensor]) -> list[Tensor]:
        """What heads of one layer, or its MLP, add to the residual stream less what they add in the target.

        Each gets one of `changes` [token, d_model] in its input.
        """
        layer = receivers[0].layer
        if receivers[0].component == "mlp":
            site: Site = "resid_pre" if parallel(self.model) else "attn_out"
            return [self._written(layer, site, changes, "mlp_out")[0] - self.target[layer, "mlp_out"]]
        z = self._written(layer, "resid_pre", changes, "z")
        z_of_receivers = torch.stack([row[:, node.head] for row, node in zip(z, receivers, strict=True)])
        return list(self._attention(receivers, z_of_receivers) - self.target[layer, "attn_out"])

    @torch.no_grad()
    def into_logits(self, change: Tensor) -> float:
        """Change of the metric where `change` [token, d_model] is added to the final residual stream, nats."""
        return float(self._into([logits_of(self.model)], [change])[0])

    def _into(self, receivers: Sequence[Node], changes: Sequence[Tensor]) -> Float[Tensor, " receiver"]:
        """Change of the metric where receivers of one layer get `changes` [token, d_model] in their inputs."""
        layer, n = receivers[0].layer, len(receivers)
        if receivers[0].component == "logits":
            change = torch.cat(list(changes))
            return self._score(layer, n, [(layer - 1, "resid_post", lambda x: x + change.reshape(x.shape))])
        heads = [i for i, node in enumerate(receivers) if node.component == "head"]
        mlps = [i for i, node in enumerate(receivers) if node.component == "mlp"]
        edits: list[Edit] = []
        if heads:
            index = torch.tensor([receivers[i].head for i in heads])
            z = self._written(layer, "resid_pre", [changes[i] for i in heads], "z")
            z = torch.stack([row[:, head] for row, head in zip(z, index.tolist(), strict=True)])
            edits.append((layer, "z", self._put(n, heads, z, index)))
        if mlps:
            site: Site = "resid_pre" if parallel(self.model) else "attn_out"
            written = self._written(layer, site, [changes[i] for i in mlps], "mlp_out")
            edits.append((layer, "mlp_out", self._put(n, mlps, written)))
        return self._score(layer, n, edits)

    def _written(self, layer: int, site: Site, changes: Sequence[Tensor], of: Site) -> Float[Tensor, "row token ..."]:
        """What stands at site `of` of a block where `site` is changed, row by row, all else unpatched."""
        unique = list({id(change): change for change in changes}.values())
        order = [next(i for i, value in enumerate(unique) if value is change) for change in changes]
        change = torch.cat(unique)
        by_change = self._block(layer, len(unique), [(layer, site, lambda x: x + change.reshape(x.shape))], of)
        return by_change[order]

    def _put(self, n: int, rows: list[int], values: Tensor, heads: Tensor | None = None):
        """An edit that gives some of `n` rows other values, of one head each where `heads` says which."""

        def put(activation: Tensor) -> Tensor:
            whole = flat(self.model, "resid_pre" if heads is None else "z", activation)
            changed = whole.clone().unflatten(0, (n, -1))
            if heads is None:
                changed[rows] = values
            else:
                changed[torch.tensor(rows), :, heads] = values
            return changed.reshape(activation.shape)

        return put

    def _find_changes(self, senders: set[Node]) -> None:
        """Of the residual stream by each sender, [token, d_model]."""
        for sender in senders - self._changes.keys():
            if sender.component == "embedding":
                self._changes[sender] = self._change(0, "resid_pre")
            elif sender.component == "mlp":
                self._changes[sender] = self._change(sender.layer, "mlp_out")
        for layer in sorted({node.layer for node in senders - self._changes.keys()}):
            heads = sorted(node for node in senders if node.layer == layer and node.component == "head")
            z = torch.stack([self.source[layer, "z"][:, node.head] for node in heads])
            for head, row in zip(heads, self._attention(heads, z), strict=True):
                self._changes[head] = row - self.target[layer, "attn_out"]

    def _attention(self, heads: Sequence[Node], z: Float[Tensor, "row token d_head"]) -> Float[Tensor, "row token d"]:
        """What attention writes where one head of its layer has another output, a row a head."""
        layer, index = heads[0].layer, torch.tensor([node.head for node in heads])
        edits: list[Edit] = [(layer, "z", self._put(len(heads), list(range(len(heads))), z, index))]
        return self._block(layer, len(heads), edits, "attn_out")

    def _block(self, layer: int, n: int, edits: Sequence[Edit], of: Site) -> Float[Tensor, "row token ..."]:
        """What stands at site `of` of a block that alone is run, in `n` rows under `edits`."""
        self._count(n)
        result = self._batch.repeated(n).run(edits, layers=range(layer, layer + 1), keep=[(layer, of)])
        return result.cache[layer, of].unflatten(0, (n, -1))

    def _change(self, layer: int, site) -> Tensor:
        return self.source[layer, site] - self.target[layer, site]

    def _score(self, layer: int, n: int, edits: Sequence[Edit]) -> Float[Tensor, " row"]:
        self._count(n)
        logits = self._batch.repeated(n).run(edits, layers=range(layer, self.model.cfg.n_layers)).logits
        return self.run.reader.score(by_continuation(logits, len(self.run.reader.runs))) - self._unpatched

    def _count(self, n: int) -> None:
        self.n_rows, self.n_passes = self.n_rows + n, self.n_passes + 1

    def _parts(self, n: int) -> Iterable[range]:
        a_token, _ = activation_bytes(self.model)
        cost = self._batch.n_tokens * a_token + logit_bytes(self.model, self.run.reader)
        return split_by_cost(([cost] * n, MEMORY))
