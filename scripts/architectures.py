"""What every causal architecture of transformers can do here: docs/architectures.md is written by this script.

    python scripts/architectures.py [--only llama ...] [--runs] [--found FOUND.json] [--out docs/architectures.md]

Of each architecture a tiny random model is made from its default config (`models.small`), with noise on every weight,
and tried: whether a batch of unequal prompts gives what prompts give one at a time, whether a cached beginning does,
whether an ablation by TransformerLens' hooks does what the same ablation by torch's hooks on the Hugging Face model
does, and (with --runs) whether a whole run ends: the recipe `tiny` with two training steps of r2d2. An architecture
that cannot be measured is refused before anything is trained. What was found is kept in FOUND.json, so that a sweep can
go on where it stopped; without --runs the runs noted there stay. On two cores: two seconds an architecture, and half a
minute with a run.
"""

import argparse
import json
import os
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mechrefusal import MechrefusalError, causal, models, study
from mechrefusal.models import architectures, one_number, small
from mechrefusal.models.library_output import quiet
from mechrefusal.study.loader import recipe_from_dict

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart, decoder": ("bart", {"is_decoder": True}),
    "bert, decoder": ("bert", {"is_decoder": True}),
    "roberta, decoder": ("roberta", {"is_decoder": True}),
    "falcon, ALiBi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_attention_heads": 4}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "granite, multipliers": ("granite", {}),
    "granitemoe, multipliers": ("granitemoe", {}),
    "granitemoeshared, multipliers": ("granitemoeshared", {}),
    "mixtral, window": ("mixtral", {"sliding_window": 128}),
    "opt, norms after": ("opt", {"do_layer_norm_before": False}),
    "qwen3, YaRN": ("qwen3", {"rope_parameters": YARN}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
}  # fmt: skip
"""Settings of an architecture that compute something else than its defaults."""
for _name in ("granite, multipliers", "granitemoe, multipliers", "granitemoeshared, multipliers"):
    VARIANTS[_name][1].update(
        embedding_multiplier=6.0, attention_multiplier=0.1, residual_multiplier=0.4, logits_scaling=3.0
    )

NEEDED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 8},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_hidden_layers": 4},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
}
"""What default configs leave out although their models need it."""

FEWER = {
    "prompts": {"n_conversations": 8},
    "training": {"steps": 2, "anchors": [0, 2]},
    "attack": {"methods": ["gcg"]},
}
"""What of the recipe `tiny` is cut for a sweep."""


def names() -> list[str]:
    """Every architecture, one name for those that share class and config, and the variants."""
    known: dict[tuple[Any, Any], str] = {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known.setdefault((MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind], CONFIG_MAPPING[kind]), kind)
    return sorted([*known.values(), *VARIANTS])


def config_of(name: str):
    """The config of an architecture or variant, as large as it is by default."""
    kind, changes = VARIANTS.get(name, (name, {}))
    return CONFIG_MAPPING[kind](**NEEDED.get(kind, {}), **changes)


def save(name: str, folder: Path) -> None:
    """Write the tiny random model of an architecture, with tokenizer and chat template."""
    words = models.tiny.tokenizer()
    with quiet():
        small.small_model(small.small_config(config_of(name), len(words))).save_pretrained(folder)
        words.save_pretrained(folder)


def tried(name: str) -> dict[str, str]:
    """What an architecture can do: "yes", or why not."""
    try:
        config = config_of(name)
    except Exception as error:  # a config whose defaults it does not take itself
        return {"class": _class(name), "measured": "yes", "built": _line(error)}
    why = architectures.why_unsupported(config)
    found: dict[str, str] = {"class": _class(name), "measured": why or "yes"}
    if why is not None:
        return found | {"built": "not asked for"}
    with TemporaryDirectory() as draft:
        folder = Path(draft) / "model"
        try:
            save(name, folder)
        except Exception as error:  # whatever a config says of sizes that do not fit
            return found | {"built": _line(error)}
        return found | {"built": "yes", **_numbers(folder), "ablation": _ablation(folder)}


def run(name: str) -> dict[str, str]:
    """Whether a whole run ends: "yes", "refused" where it was before training, or what ended it."""
    started = time.perf_counter()
    with TemporaryDirectory() as draft:
        folder, out = Path(draft) / "model", Path(draft) / "run"
        save(name, folder)
        chats = Path(draft) / "chats.jsonl"  # a random model may answer nothing at all
        rows = [{"prompt": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(8)]
        chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = recipe_from_dict(_merged(str(folder), str(chats)))
        try:
            with quiet():
                made = study.Run.create(out, recipe)
                study.train(made)
                study.measure(made)
            found = "yes"
        except MechrefusalError as error:
            found = f"no: {_line(error)}"
        except Exception as error:
            found = f"no: {_line(error)} ({traceback.extract_tb(error.__traceback__)[-1].name})"
    return {"run": found, "seconds": f"{time.perf_counter() - started:.0f}"}


def table(found: dict[str, dict[str, str]]) -> str:
    """The page: what can be measured, what is refused and why, what could not be built small."""
    can = {name: row for name, row in found.items() if row["measured"] == row["built"] == "yes"}
    cannot = {name: row for name, row in found.items() if row["measured"] != "yes"}
    unbuilt = {name: row for name, row in found.items() if row["measured"] == "yes" != row["built"]}
    lines = [
        "# Architectures",
        "",
        "Written by `python scripts/architectures.py --runs` (transformers, TransformerLens and torch of "
        "`constraints.txt`); the script says how each column is found out. Every model is a random one of 4 layers and "
        "d_model 64 with noise on all weights. *Batch*: a batch of unequal prompts gives what they give one at a time. "
        "*Cached head*: so do prompts that continue a cached beginning, and tokens that follow. *Ablation*: by "
        "TransformerLens' hooks and by torch's on the Hugging Face model, the same. *Run*: the recipe `tiny` ends.",
        "",
        f"## Can be measured ({len(can)})",
        "",
        "| architecture | class | batch | cached head | ablation | run |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in can.items():
        whole = row.get("run", "not tried")
        cells = [name, f"`{row['class']}`", row["batch"], row["cached head"], row["ablation"], whole]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"## Refused by name, before anything is trained ({len(cannot)})",
        "",
        "| architecture | class | why |",
        "| --- | --- | --- |",
        *(f"| {name} | `{row['class']}` | {_why(row['measured'])} |" for name, row in cannot.items()),
        "",
        f"## Not tried ({len(unbuilt)})",
        "",
        "No small model could be made of the default config: other parts than text, or sizes that do not fit together. "
        "A real model of these is tried when it is opened.",
        "",
        "| architecture | class | what transformers says |",
        "| --- | --- | --- |",
        *(f"| {name} | `{row['class']}` | {_cell(row['built'])} |" for name, row in unbuilt.items()),
        "",
    ]
    return "\n".join(lines)


@torch.no_grad()
def _numbers(folder: Path) -> dict[str, str]:
    """Batch and cached head on the Hugging Face model."""
    with quiet():
        model, _ = models.load_causal_lm(folder, device="cpu")
    apart = one_number.differences(model)
    good = {way: difference <= one_number.TOLERANCE for way, difference in apart.items()}
    return {
        "batch": "yes" if good["padding"] and good["later tokens"] else "no",
        "cached head": "yes" if good["shared head"] and good["continuing"] else "no",
    }


@torch.no_grad()
def _ablation(folder: Path) -> str:
    """The projection on a direction set to a constant at every site, by both kinds of hooks."""
    with quiet():
        plain, _ = models.load_causal_lm(folder, device="cpu")
        hooked = models.load_hooked(folder, device="cpu")
    drawn = torch.Generator().manual_seed(0)
    token_ids = torch.randint(3, 900, (2, 12), generator=drawn)
    edit = causal.Clamp(torch.randn(small.WIDTH, generator=drawn), 0.5, sites=("resid_pre", "attn_out", "mlp_out"))
    before = plain(token_ids).logits.log_softmax(-1)
    try:
        with causal.intervened(plain, edit):
            expected = plain(token_ids).logits.log_softmax(-1)
    except MechrefusalError as error:
        return f"hooked only: {_cell(str(error).partition(';')[0])}"
    with causal.intervened(hooked, edit):
        found = hooked(token_ids).log_softmax(-1)
    assert (expected - before).abs().max() > 0.01, "an ablation that does nothing would agree with anything"
    apart = (found - expected).abs().max().item()
    return "yes" if apart <= one_number.TOLERANCE else f"no: {apart:.2g} nats apart"


def _merged(model: str, chats: str) -> dict[str, Any]:
    recipe = study.load_recipe("tiny").as_dict()
    for part, changed in FEWER.items():
        recipe[part] |= changed
    recipe["arms"] = {"r2d2": recipe["arms"]["r2d2"]}
    recipe["prompts"]["conversations"] = chats
    return recipe | {"model": model}


def _class(name: str) -> str:
    found = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[VARIANTS.get(name, (name,))[0]]]
    return (found[0] if isinstance(found, tuple) else found).__name__


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _why(message: str) -> str:
    return _cell(message.partition(" cannot be measured: ")[2].partition("; docs/")[0] or message)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").replace("<", "&lt;")


def main() -> None:
    """Try out and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--runs", action="store_true")
    parser.add_argument("--again", action="store_true", help="try out what is noted in FOUND.json once more")
    parser.add_argument("--found", type=Path, default=Path("architectures.json"))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as cache:  # what was found before is not asked
        os.environ["MECHREFUSAL_CACHE"] = cache
        _sweep(options)


def _sweep(options: argparse.Namespace) -> None:
    found = json.loads(options.found.read_text()) if options.found.is_file() else {}
    for name in options.only or names():
        if options.again or name not in found:
            started = time.perf_counter()
            found[name] = {k: v for k, v in found.get(name, {}).items() if k in ("run", "seconds")} | tried(name)
            print(f"{name}: {found[name]} [{time.perf_counter() - started:.1f} s]", flush=True)
        can = found[name]["measured"] == found[name]["built"] == "yes"
        if options.runs and can and (options.again or found[name].get("run") != "yes"):
            found[name] |= run(name)
            print(f"{name}: run {found[name]['run']} [{found[name]['seconds']} s]", flush=True)
        options.found.write_text(json.dumps(found, indent=1, sort_keys=True))
    if options.out is not None:
        options.out.write_text(table(dict(sorted(found.items()))), encoding="utf-8")


if __name__ == "__main__":
    main()
