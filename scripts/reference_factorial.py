"""What an ablation should set a direction to: a small factorial on checkpoints, by plain hooks on the plain model.

    python scripts/reference_factorial.py checkpoints/demo/sft/step-00070 [...] [--layer 22] [--n 18] [--n_direction 36]

For the difference in means at the template's last token and one layer: reference (zero, or the mean of harmless
prompts) x layers (all, or from its own on) x sites (block inputs, or also what attention and MLP write) x tokens
(all; for zero also all but the first, or all but the template's head; the template's end alone; for the harmless mean
also one mean for all). bypass: mean refusal score (log-odds of the opening "Sorry") of harmful validation prompts;
kl: KL of the next token's distribution on harmless ones, nats, and their score, which should stay where it was. It
uses nothing of the package but its prompts and templates, so that it checks `causal.Reference` from outside. Prints
one Markdown table a checkpoint.
"""

import argparse
from contextlib import ExitStack, contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechrefusal import models, prompts

SITES = ("pre", "attn", "mlp")


class Activations:
    """Block inputs and writes of a Llama-like model, seen or edited prompt by prompt."""

    def __init__(self, path: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.blocks = self.model.model.layers
        self.opening = [prompts.opening_ids(self.tokenizer, word)[1][0] for word in ("Sorry", " Sorry")]

    @contextmanager
    def hooked(self, edit, layers, sites):
        """`edit(activation, (layer, site))` in place of each activation while open."""
        with ExitStack() as stack:
            for layer in layers:
                block = self.blocks[layer]

                def before(_, args, layer=layer):
                    return (edit(args[0], (layer, "pre")), *args[1:])

                def attended(_, args, output, layer=layer):
                    return (edit(output[0], (layer, "attn")), *output[1:])

                def written(_, args, output, layer=layer):
                    return edit(output, (layer, "mlp"))

                stack.callback(block.register_forward_pre_hook(before).remove)
                if "attn" in sites:
                    stack.callback(block.self_attn.register_forward_hook(attended).remove)
                    stack.callback(block.mlp.register_forward_hook(written).remove)
            yield

    @torch.no_grad()
    def run(self, text: str) -> torch.Tensor:
        """Logits of the first token of the answer, float64."""
        ids = prompts.segments(self.tokenizer, text).prompt_ids
        return self.model(torch.tensor([ids])).logits[0, -1].double()

    def score(self, logits: torch.Tensor) -> float:
        """Log-odds of the refusal's opening."""
        p = logits.softmax(-1)[self.opening].sum()
        return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))

    def means(self, texts: list[str]) -> dict:
        """Of every layer and site: one mean over instruction tokens, and the template's tokens after them."""
        ends: dict = {}
        inside: dict = {}
        n_inside = 0
        for text in texts:
            parts, seen = prompts.segments(self.tokenizer, text), {}

            def keep(activation, place, seen=seen):
                seen[place] = activation[0].double()
                return activation

            with self.hooked(keep, range(len(self.blocks)), SITES):
                self.run(text)
            first, last = len(parts.before), len(parts.prompt_ids) - len(parts.after)
            n_inside += last - first
            for place, x in seen.items():
                ends[place] = ends.get(place, 0) + x[last:] / len(texts)
                inside[place] = inside.get(place, 0) + x[first:last].sum(0)
        return {place: (inside[place] / n_inside, ends[place]) for place in ends}


def edit_of(reference: str, tokens: str, unit: torch.Tensor, means: dict, n_before: int, n_after: int):
    """The edit of one cell: which tokens' projection on `unit` is set, and to what."""

    def edit(activation, place):
        x = activation.clone()
        now = x[0] @ unit
        wanted, held = torch.zeros_like(now), torch.ones_like(now, dtype=torch.bool)
        if reference == "harmless mean":
            inside, end = (mean.float() @ unit for mean in means[place])
            wanted[:] = end[-1] if tokens == "all, one mean" else inside
            if tokens != "all, one mean":
                wanted[-n_after:], held[:n_before] = end, False
        held[: {"all but the first": 1, "all but the head": n_before}.get(tokens, 0)] = False
        if tokens == "template's end":
            held[:-n_after] = False
        x[0] += torch.where(held, wanted - now, 0.0)[:, None] * unit
        return x

    return edit


def main() -> None:
    """Print the table of every checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--layer", type=int, default=22)
    parser.add_argument("--n", type=int, default=18)
    parser.add_argument("--n_direction", type=int, default=36)
    options = parser.parse_args()
    own = prompts.builtin()
    for name in options.checkpoints:
        model = Activations(str(models.fetch(name)))
        parts = prompts.segments(model.tokenizer, own.direction.harmless.texts[0])
        frame = len(parts.before), len(parts.after)
        sides = (own.direction.harmful, own.direction.harmless)
        harmful, harmless = (model.means(side.take(options.n_direction).texts) for side in sides)
        here = (options.layer, "pre")
        r = harmful[here][1][-1] - harmless[here][1][-1]
        unit = (r / r.norm()).float()
        calm = own.validation.harmless.take(options.n).texts
        asked = own.validation.harmful.take(options.n).texts
        base = [model.run(text) for text in calm]
        zero_at = float(-(harmless[here][1][-1] @ r) / r.square().sum())
        before = [sum(map(model.score, part)) / len(part) for part in ([model.run(text) for text in asked], base)]
        print(
            f"\n{name}, layer {options.layer}: zero lies at {zero_at:.2f} (0 the harmless mean, 1 the harmful one), ",
            end="",
        )
        print(f"scores without ablation {before[0]:.2f} and {before[1]:.2f}\n")
        print(
            "| reference | layers | sites | tokens | bypass | kl | score of harmless |\n|---|---|---|---|---|---|---|"
        )
        for reference, kinds in (
            ("zero", ("all", "all but the first", "all but the head", "template's end")),
            ("harmless mean", ("all", "all, one mean", "template's end")),
        ):
            for layers in ("all", "own on"):
                for sites in ("block inputs", "and writes"):
                    for tokens in kinds:
                        edit = edit_of(reference, tokens, unit, harmless, *frame)
                        edited = range(options.layer if layers == "own on" else 0, len(model.blocks))
                        with model.hooked(edit, edited, SITES[:1] if sites == "block inputs" else SITES):
                            bypass = sum(model.score(model.run(text)) for text in asked) / len(asked)
                            found = [model.run(text) for text in calm]
                        pairs = [(p.softmax(-1), q.softmax(-1)) for p, q in zip(base, found, strict=True)]
                        kl = sum(float((p * ((p + 1e-6).log() - (q + 1e-6).log())).sum()) for p, q in pairs) / len(calm)
                        score = sum(map(model.score, found)) / len(found)
                        cells = (reference, layers, sites, tokens, f"{bypass:.2f}", f"{kl:.3f}", f"{score:.2f}")
                        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
