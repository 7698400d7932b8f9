"""Activations of one checkpoint, kept so that they can be put into another of the same architecture.

What of a checkpoint is comparable with another's, as `models.load_hooked` opens them:

- Where norms are RMSNorms (Llama, Qwen, Gemma), folding them into the matrices after them leaves resid_pre, attn_out,
  mlp_out and z what they are in the Hugging Face model.
- Where they are LayerNorms (GPT-2, GPT-NeoX), everything that is written to the stream has its mean over d_model taken
  out, in both checkpoints; the models themselves do not see that mean.
- Biases of values act on every token alike and are moved to the bias of attention's output: z and result are without
  them, attn_out has them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrefusal import prompts
from mechrefusal.causal.components import ComponentBatch, ComponentPasses, TemplateFrame
from mechrefusal.errors import MechrefusalError
from mechrefusal.forward import Edit, Metric, MetricReader, Number, Place, RefusalMetric, Site, flat
from mechrefusal.forward.patches import require_site
from mechrefusal.forward.tree import Branch, Tree
from mechrefusal.models import wanted_layers
from mechrefusal.models.bridge_internals import scale_of_writes

CrossSite = Literal["resid_pre", "attn_out", "mlp_out", "z", "result"]
SITES: tuple[CrossSite, ...] = ("resid_pre", "attn_out", "mlp_out", "z", "result")
DEFAULT_SITES: tuple[CrossSite, ...] = ("resid_pre", "attn_out", "mlp_out", "z")
MEMORY = 1 << 31
"""Bytes of kept activations, where the caller says nothing else."""


@dataclass(frozen=True)
class SourceActivations:
    """Activations of one checkpoint on some prompts; it holds no model.

    Fields:
        texts, ids: the prompts, and their token ids up to the start of the answer.
        metric: what `scores` [prompt] are of, on the checkpoint as it is; nats.
        architecture, weights: what a target must share, and the hash of the checkpoint ("" where it has none).
        sites, layers: what can be patched.
        values: activations at (layer, site), float32, over the tokens of all prompts and of the metric's runs after
            them, what they begin with in common once: [token, d_model], and [token, head, d_head] at z.
        places: of the tokens of each (prompt, run) in `values`.
        writers: W_O of each layer, where site "result" was asked for. None where heads do not add up to attn_out.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    metric: Metric
    scores: Float[Tensor, " prompt"]
    architecture: dict[str, object]
    weights: str
    sites: tuple[CrossSite, ...]
    layers: tuple[int, ...]
    values: dict[Place, Float[Tensor, "token ..."]]
    places: dict[Number, Int[Tensor, " token"]]
    writers: dict[int, Float[Tensor, "head d_head d_model"]] | None

    @property
    def n_bytes(self) -> int:
        """Memory of what was kept."""
        tensors = [*self.values.values(), *(self.writers or {}).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def keep_activations(
    source,
    texts: Sequence[str],
    metric: Metric,
    *,
    sites: Sequence[CrossSite] = DEFAULT_SITES,
    layers: Sequence[int] | None = None,
    memory: int = MEMORY,
) -> SourceActivations:
    """Run prompts through a checkpoint once and keep its activations, so that it can be released.

    Kept are, in float32, n_tokens × n_layers × (d_model a site of the stream, n_heads · d_head for z and result
    together), with n_tokens those of the prompts and of the metric's runs after each, what they begin with in common
    once; for "result" also W_O of each layer. 16 short prompts, 300 tokens in all, at the default sites take 83 MB of
    SmolLM2-135M, and 0.6 GB of a model of 32 layers with d_model 4096.

    Args:
        source: a hooked transformer, under whatever hooks the caller has open.
        texts: instructions.
        metric: a `RefusalMetric`, or a function from the last position's logits [row, vocab] to one score a row.
        memory: bytes that may be kept.

    Raises:
        MechrefusalError: no texts; an unknown site or layer, or a site that the architecture lacks; more than `memory`;
            a metric that is no function of the logits; activations that are not finite.
    """
    texts, sites = _texts(texts), require_sites(source, sites)
    chosen, reader = sorted(wanted_layers(source, layers, "patch")), MetricReader.of(metric)
    ids = prompts.prompt_ids(source.tokenizer, texts)
    tree, places = _packed(ids, reader)
    needed = _bytes(source, len(tree), sites, len(chosen))
    if needed > memory:
        raise MechrefusalError(
            f"activations of {len(texts)} prompts ({len(tree)} tokens) at {', '.join(sites)} of {len(chosen)} layers "
            f"take {needed / 2**20:,.1f} MiB, more than the {memory / 2**20:,.1f} MiB allowed; give fewer prompts, "
            "sites or layers, or more memory"
        )
    values = {(layer, site): _room(source, site, len(tree)) for layer in chosen for site in stored(sites)}
    passes = ComponentPasses(source, ids, reader.runs, TemplateFrame((), 0), whole=True, sites=stored(sites))
    adding_up = _AddingUp(source, chosen if "result" in sites else [])

    def keeping(batch: ComponentBatch) -> list[Edit]:
        places_in_pass = torch.cat(list(batch.places))
        places_kept = torch.cat([places[number] for number in batch.numbers]).to(places_in_pass.device)
        return [*(_into(source, *item, places_in_pass, places_kept) for item in values.items()), *adding_up.edits()]

    scores = torch.empty(len(ids))
    for numbers, logits in passes.logits(keeping):
        read = [part[:, -n:] for part, n in zip(logits, reader.kept, strict=True)]
        if not isinstance(metric, RefusalMetric):
            # A check needs two rows; what differs from one prompt is the same in another order.
            reader.check([part[:2] if len(part) > 1 else torch.cat([part, part.flip(-1)]) for part in read])
        scores[numbers] = reader.score(read).cpu()
    _require_finite(values)
    writers = {layer: writer(source, layer).clone() for layer in chosen} if "result" in sites and adding_up.true else {}
    return SourceActivations(
        tuple(texts),
        tuple(map(tuple, ids)),
        metric,
        scores,
        architecture(source),
        getattr(source, "weights", ""),
        tuple(sites),
        tuple(chosen),
        values,
        places,
        writers if adding_up.true else None,
    )


def split_by_memory(
    source, texts: Sequence[str], metric: Metric, sites: Sequence[CrossSite], layers: Sequence[int] | None, memory: int
) -> list[list[str]]:
    """Texts in consecutive parts whose activations `keep_activations` may keep (one text at the least)."""
    texts, sites = _texts(texts), require_sites(source, sites)
    chosen, reader = sorted(wanted_layers(source, layers, "patch")), MetricReader.of(metric)
    parts: list[list[str]] = [[]]
    tokens = 0
    for text, ids in zip(texts, prompts.prompt_ids(source.tokenizer, texts), strict=True):
        more = len(_packed([ids], reader)[0])  # alone: an upper bound, as parts share beginnings
        if parts[-1] and _bytes(source, tokens + more, sites, len(chosen)) > memory:
            parts.append([])
            tokens = 0
        parts[-1].append(text)
        tokens += more
    return parts


def architecture(model) -> dict[str, object]:
    """What two checkpoints must have in common, by name."""
    names = ("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_vocab", "normalization_type")
    kind = type(model.original_model).__name__
    return {"architecture": kind, **{name: getattr(model.cfg, name, None) for name in names}}


def require_same(known: Mapping[str, object], ids: Mapping[str, Sequence[int]], target) -> None:
    """Raise `MechrefusalError` where `target` has another architecture, or reads texts as other tokens than `ids`."""
    target_known = architecture(target)
    for name, value in known.items():
        if target_known[name] != value:
            raise MechrefusalError(
                f"source and target differ in {name}: {value} and {target_known[name]}; activations can be patched "
                "between checkpoints of one architecture only"
            )
    for text, seen in zip(ids, prompts.prompt_ids(target.tokenizer, ids), strict=True):
        if tuple(seen) != tuple(ids[text]):
            raise MechrefusalError(
                f"source and target read '{text[:40]}' as other tokens ({len(ids[text])} and {len(seen)} of them); use "
                "checkpoints with the same tokenizer and chat template"
            )


def require_sites(model, sites: Sequence[CrossSite]) -> tuple[CrossSite, ...]:
    """The sites, each once; raise `MechrefusalError` for none, an unknown one, or one that the architecture lacks."""
    if isinstance(sites, str) or not sites:
        raise MechrefusalError(f"sites to patch are {sites!r}; give some of {', '.join(SITES)}")
    for site in sites:
        if site not in SITES:
            raise MechrefusalError(f"unknown site '{site}'; give some of {', '.join(SITES)}")
        require_site(model, "z" if site == "z" or site == "result" else site)
    return tuple(dict.fromkeys(sites))


def stored(sites: Sequence[CrossSite]) -> list[Site]:
    """The sites whose activations are kept: of a head's result it is its z."""
    return list(dict.fromkeys("z" if site == "result" else site for site in sites))


def writer(model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of a layer, times what the block multiplies its output by."""
    return scale_of_writes(model) * model.blocks[layer].attn.W_O.detach().float()


class _AddingUp:
    """Whether heads' results and the bias add up to attn_out; not so where that is normed once more (Gemma 2)."""

    def __init__(self, model, layers: Sequence[int]) -> None:
        self._model, self._layers, self.true = model, layers, True
        self._z: dict[int, Tensor] = {}

    def edits(self) -> list[Edit]:
        """Watch every pass."""
        see: list[Edit] = [(layer, "z", self._see(layer)) for layer in self._layers]
        return see + [(layer, "attn_out", self._compare(layer)) for layer in self._layers]

    def _see(self, layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            self._z[layer] = flat(self._model, "z", z)
            return z

        return edit

    def _compare(self, layer: int) -> Callable[[Tensor], Tensor]:
        def edit(written: Tensor) -> Tensor:
            attention = self._model.blocks[layer].attn
            total = torch.einsum("thd,hdm->tm", self._z.pop(layer), writer(self._model, layer))
            total = total if attention.b_O is None else total + scale_of_writes(self._model) * attention.b_O
            off = (total - flat(self._model, "attn_out", written)).norm() / total.norm()
            self.true = self.true and bool(off <= 1e-3)
            return written

        return edit


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise MechrefusalError(f"patching takes a list of texts, not the text {texts[:40]!r}: put it into a list")
    if len(texts) == 0:
        raise MechrefusalError("patching needs at least one prompt; the list of texts is empty")
    return list(texts)


def _packed(ids: Sequence[Sequence[int]], reader: MetricReader) -> tuple[Tree, dict[Number, Tensor]]:
    numbers = [(prompt, run) for prompt in range(len(ids)) for run in range(len(reader.runs))]
    tree = Tree.of([Branch((*ids[prompt], *reader.runs[run]), ()) for prompt, run in numbers])
    return tree, {number: torch.tensor(places) for number, places in zip(numbers, tree.places, strict=True)}


def _bytes(model, n_tokens: int, sites: Sequence[CrossSite], n_layers: int) -> int:
    cfg = model.cfg
    widths = [cfg.n_heads * cfg.d_head if site == "z" else cfg.d_model for site in stored(sites)]
    writing = cfg.n_heads * cfg.d_head * cfg.d_model if "result" in sites else 0
    return 4 * n_layers * (n_tokens * sum(widths) + writing)


def _room(model, site: Site, n_tokens: int) -> Tensor:
    width = (model.cfg.n_heads, model.cfg.d_head) if site == "z" else (model.cfg.d_model,)
    return torch.empty((n_tokens, *width), device=model.cfg.device)


def _into(model, place: Place, room: Tensor, source_places: Tensor, kept_places: Tensor) -> Edit:
    def edit(activation: Tensor) -> Tensor:
        room[kept_places] = flat(model, place[1], activation)[source_places].to(room)
        return activation

    return (*place, edit)


def _require_finite(activations: dict[Place, Tensor]) -> None:
    for (layer, site), values in activations.items():
        if not values.isfinite().all():
            raise MechrefusalError(
                f"{site} of layer {layer} holds NaN or infinity; a weight of the source at or before it is not finite: "
                "load the checkpoint again, or use an earlier one"
            )
