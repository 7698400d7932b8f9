"""Of what kind a checkpoint's model is, and whether activations of two checkpoints can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import pandas as pd

from mechrefusal import tables
from mechrefusal.files import checkpoint_id
from mechrefusal.models import Checkpoint, load_config, load_tokenizer
from mechrefusal.prompts import PromptSet, prompt_ids
from mechrefusal.study.across import WhyApart
from mechrefusal.study.caching import fingerprint


@dataclass(frozen=True)
class Kind:
    """Architecture, sizes, and a fingerprint of the token ids that this checkpoint's template makes of the prompts."""

    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    vocabulary: int
    prompts: str


def kind_of(checkpoint: Checkpoint, prompts: PromptSet) -> Kind:
    """The kind of a checkpoint, with the token ids that its template makes of these prompts."""
    text = load_config(checkpoint.path).get_text_config()
    return Kind(
        str(text.model_type),
        int(text.num_hidden_layers),
        int(text.hidden_size),
        int(text.num_attention_heads),
        int(text.vocab_size),
        fingerprint([list(map(int, ids)) for ids in prompt_ids(load_tokenizer(checkpoint), prompts.texts)]),
    )


def why_apart(a: Kind, b: Kind) -> str:
    """Why activations of the two cannot be compared; empty where they can.

    Layers, positions and the basis of the residual stream must be the same ones: the same architecture in the same
    sizes, and the same token ids for every prompt. Whether one was trained from the other is not asked.
    """
    if a.architecture != b.architecture:
        return f"other architectures ({a.architecture} and {b.architecture})"
    for name, what in (("n_layers", "layers"), ("d_model", "d_model"), ("n_heads", "heads")):
        if getattr(a, name) != getattr(b, name):
            return f"other sizes ({what}: {getattr(a, name)} and {getattr(b, name)})"
    if a.prompts != b.prompts:
        return "the same prompts are other tokens (another tokenizer or chat template)"
    return ""


def comparison(known: pd.DataFrame) -> WhyApart:
    """`why_apart` for checkpoints of a run, by its table `checkpoints`; those that are not in it are comparable."""
    kinds = {
        checkpoint_id(row["arm"], int(row["step"])): Kind(**{each.name: row[each.name] for each in fields(Kind)})
        for row in known.to_dict("records")
    }

    def of(a: Checkpoint, b: Checkpoint) -> str:
        first, second = kinds.get(a.id), kinds.get(b.id)
        return "" if first is None or second is None else why_apart(first, second)

    return of


def table(checkpoints: Sequence[Checkpoint], prompts: PromptSet, sources: Mapping[str, str]) -> pd.DataFrame:
    """Table `checkpoints`: what each is and where it came from.

    Args:
        prompts: those whose token ids tell tokenizers and templates apart.
        sources: by checkpoint id, of those that were given.
    """
    rows = [
        {
            "arm": checkpoint.arm,
            "step": checkpoint.step,
            "weights": checkpoint.weights,
            "source": sources.get(checkpoint.id, ""),
            **asdict(kind_of(checkpoint, prompts)),
        }
        for checkpoint in checkpoints
    ]
    return tables.frame("checkpoints", rows)
