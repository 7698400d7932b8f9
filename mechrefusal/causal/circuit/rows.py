"""Rows of one prompt under edits that differ from row to row: on the twin from a layer on, or through hooks.

Both give activations flat: [row · token, ...], the tokens of a row one after another, [row · token, head, d_head] at z.
On the twin a row holds the tokens from the first difference of the pair on, and reads the others from the unpatched
run; through hooks it holds whole prompts with their runs, padded on the right.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from mechrefusal.causal.component_passes import flat
from mechrefusal.causal.patching.rows import Endings, Rows, RowsRunning
from mechrefusal.causal.patching.sites import PairRun
from mechrefusal.forward.tree import Bank, Tree
from mechrefusal.forward.tree_forward import Running, TreeForward
from mechrefusal.forward.unhooked import Edit, Site, Twin, bridge_hooks, twin
from mechrefusal.models.batches import contiguous_head

SITES: tuple[Site, ...] = ("resid_pre", "z", "attn_out", "mlp_out")
Activations = dict[tuple[int, Site], Tensor]


def rows_of(model, run: PairRun) -> "TreeRows | HookedRows":
    """Rows of a pair's target: on the twin where there is one that shares trees."""
    found = twin(model)
    if found is not None and found.has("z") and (forward := TreeForward(found.model)).shares:
        return TreeRows(model, found, forward, run)
    return HookedRows(model, run)


class TreeRows:
    """Rows on the twin.

    Fields:
        source, target: unpatched activations of one row, [token, ...], by layer and site; "resid_post" of the last.
        n_tokens: of a row.
        score: the metric of the unpatched target.
    """

    def __init__(self, model, found: Twin, forward: TreeForward, run: PairRun) -> None:
        self.model, self.run = model, run
        self._twin, self._forward = found, forward
        endings = Endings(run.target, run.reading.runs, run.reading.kept)
        self._whole = Tree.of(endings.branches())
        self._ending = endings.at(run.first, self._whole)
        self.n_tokens = len(self._ending)
        self.source, _, _ = self._unpatched(Endings(run.source, run.reading.runs, run.reading.kept))
        self.target, self._bank, logits = self._unpatched(endings)
        self._kept = list(run.reading.kept)
        self.score = run.reading.score(list(logits.float()[None].split(self._kept, dim=1)))[0]

    def logits(self, layer: int, n: int, edits: Sequence[Edit]) -> list[Float[Tensor, "row place vocab"]]:
        """Logits of `n` rows under flat `edits` in `layer` or above it, run by run."""
        rows = Rows([self._ending] * n, bank_size=len(self._whole), device=self._forward.device)
        with self._twin.skipping(layer), self._twin.edited(self._flat([self._entering(layer, n), *edits])):
            logits = self._forward.run_tree(RowsRunning(rows, self._bank))
        return list(logits.float().unflatten(0, (n, -1)).split(self._kept, dim=1))

    def block(self, layer: int, n: int, edits: Sequence[Edit]) -> None:
        """Run block `layer` alone, which has its unpatched input."""
        rows = Rows([self._ending] * n, bank_size=len(self._whole), device=self._forward.device)
        running = RowsRunning(rows, self._bank)
        running.tree = replace(running.tree, kept=running.tree.kept[:0])
        others = set(range(len(self._twin.blocks))) - {layer}
        with self._twin.skipping(others), self._twin.edited(self._flat([self._entering(layer, n), *edits])):
            self._forward.run_tree(running)

    def _entering(self, layer: int, n: int) -> Edit:
        n_layers = len(self._twin.blocks)
        at: tuple[int, Site] = (n_layers - 1, "resid_post") if layer == n_layers else (layer, "resid_pre")
        stream = self.target[at].repeat(n, 1)
        return (*at, lambda _: stream)

    def _flat(self, edits: Sequence[Edit]) -> list[Edit]:
        return [(layer, site, _on_rows(self.model, site, edit)) for layer, site, edit in edits]

    def _unpatched(self, endings: Endings) -> tuple[Activations, Bank, Tensor]:
        tree = Tree.of(endings.branches()).to(self._forward.device)
        assert tree.places == self._whole.places, "both prompts have the same length"
        running, found = Running(tree, Bank(), {}), Activations()
        with self._twin.edited(self._flat(_recording(self.model, found))):
            logits = self._forward.run_tree(running)
        own = self._ending.base.to(self._forward.device)
        return {at: activation[own] for at, activation in found.items()}, running.bank(), logits


class HookedRows:
    """Rows through the hooks of the hooked transformer, each pass from the first layer on. Fields as in `TreeRows`."""

    def __init__(self, model, run: PairRun) -> None:
        self.model, self.run = model, run
        self.n_tokens = run.padded(run.target).numel()
        self.source, self.target = Activations(), Activations()
        self._run(run.source, 1, _recording(model, self.source))
        self.score = run.reading.score(self._run(run.target, 1, _recording(model, self.target)))[0]

    def logits(self, layer: int, n: int, edits: Sequence[Edit]) -> list[Float[Tensor, "row place vocab"]]:
        """See `TreeRows`."""
        return self._run(self.run.target, n, edits)

    def block(self, layer: int, n: int, edits: Sequence[Edit]) -> None:
        """See `TreeRows`; the blocks above run, too, and nobody looks at them."""
        self._run(self.run.target, n, edits)

    def _run(self, prompt: tuple[int, ...], n: int, edits: Sequence[Edit]) -> list[Tensor]:
        padded = self.run.padded(prompt).repeat(n, 1).to(self.model.cfg.device)
        hooks = bridge_hooks([(layer, site, _on_rows(self.model, site, edit)) for layer, site, edit in edits])
        with self.model.hooks(fwd_hooks=hooks), contiguous_head(self.model):
            logits = self.model(padded, return_type="logits").float()
        return self.run.read(logits.unflatten(0, (n, -1)).unbind(1))


def _on_rows(model, site: Site, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda activation: edit(flat(model, site, activation)).reshape(activation.shape)


def _recording(model, into: Activations) -> list[Edit]:
    def keep(at: tuple[int, Site]) -> Callable[[Tensor], Tensor]:
        def edit(activation: Tensor) -> Tensor:
            into[at] = activation.detach()
            return activation

        return edit

    n_layers = model.cfg.n_layers
    places: list[tuple[int, Site]] = [(layer, site) for layer in range(n_layers) for site in SITES]
    return [(*at, keep(at)) for at in [*places, (n_layers - 1, "resid_post")]]
