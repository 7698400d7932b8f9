"""Stages of cause and attribution at one checkpoint, by layer and head: what writes refusal, and what takes it away."""

import pandas as pd
import torch

from mechrefusal import attribution
from mechrefusal.causal import attribution_patching, head_sets, knockout, patching
from mechrefusal.causal.circuits import circuit as circuit_of
from mechrefusal.forward.direction import Along, Direction
from mechrefusal.prompts import Pair
from mechrefusal.study.measurement import Measurement
from mechrefusal.study.stages import Results

LOGITS = "refusal_logits"
"""`onto` of what is written onto the refusal logits; else it is the carrier's kind."""


def attribution_of_refusal(at: Measurement) -> Results:
    """Who writes refusal (tables `attribution`, `attribution_compared`), from where (`token_sources`), and when.

    When: the logit lens, table `logit_lens`.
    """
    n = at.settings.n_attributed
    texts = {"harmful": at.prompts.harmful.take(n).texts, "harmless": at.prompts.harmless.take(n).texts}
    readouts: dict[str, attribution.RefusalLogits | attribution.Onto] = {LOGITS: attribution.RefusalLogits(at.metric)}
    if at.best is not None:
        readouts[at.best.kind] = attribution.Onto.of(at.best)
    written = {
        (onto, name): attribution.attribute(at.model, prompts, readout)
        for onto, readout in readouts.items()
        for name, prompts in texts.items()
    }
    compared = {onto: attribution.difference(written[onto, "harmful"], written[onto, "harmless"]) for onto in readouts}
    yield "attribution", _stacked(each.table.assign(set=name, onto=onto) for (onto, name), each in written.items())
    yield "attribution_compared", _stacked(each.assign(onto=onto) for onto, each in compared.items())
    heads = written[LOGITS, "harmful"].top(at.settings.n_top_heads)
    sources = {
        name: attribution.sources(at.model, prompts, readouts[LOGITS], heads=heads) for name, prompts in texts.items()
    }
    yield (
        "token_sources",
        _stacked(
            table.rename(columns={kind: "name"}).assign(set=name, by=kind)
            for name, each in sources.items()
            for kind, table in (("segment", each.by_segment), ("token", each.by_token))
        ),
    )
    yield "logit_lens", attribution.compare_lenses(at.model, texts["harmful"], texts["harmless"], at.metric).table


def patching_of_pairs(at: Measurement) -> Results:
    """What moves refusal: table `patching`; attention and tokens of a pair are in `attention` and `tokens`."""
    settings = at.recipe.causal
    pairs = at.prompts.pairs_for(at.model.tokenizer)
    patched = pairs[: at.settings.n_pairs]
    origin = "given" if at.prompts.pairs is not None else "found"
    counts = {"n": len(pairs), "n_left_out": len(pairs.left_out), "n_patched": len(patched)}
    yield "pairs", [{"origin": origin, **counts}]
    layers = range(0, at.model.cfg.n_layers, at.settings.layer_step)
    by_layer = [patching.residual, *([patching.attention_output, patching.mlp_output] if settings.sites else [])]
    frames: list[pd.DataFrame] = []
    by_mode = {mode: patching.heads(at.model, patched, at.metric, mode=mode) for mode in settings.modes}
    for mode, heads in by_mode.items():
        residual, *sites = (of(at.model, patched, at.metric, layers=layers, mode=mode).table for of in by_layer)
        frames += [residual, heads.table, *sites]
    yield "patching", _stacked(frames)
    yield "patching_pairs", _stacked(heads.by_pair for heads in by_mode.values())
    yield from _look(at, pairs[0], by_mode[settings.modes[0]].top(at.settings.n_top_heads))
    if n := settings.n_finalists:
        screened = attribution_patching.screened(
            at.model, patched, at.metric, finalists=n, others=n, method=settings.screening
        )
        yield "attribution_patching", screened.table
        yield "attribution_agreement", screened.agreement


def _look(at: Measurement, pair: Pair, heads: list[tuple[int, int]]) -> Results:
    """What heads attend to in the harmful prompt of a pair, and how both prompts' tokens lie along the direction."""
    pattern, _ = attribution.attention(at.model, pair.harmful, heads)
    yield "attention", pattern.assign(prompt_id=pair.id)
    # Without a direction the tokens are still listed: the attention figures need their names.
    nothing = torch.full((at.model.cfg.d_model,), float("nan"))
    along: Along = Direction(nothing, layer=0) if at.best is None else at.best
    sides = {"harmful": pair.harmful, "harmless": pair.harmless}
    projected = (attribution.projections(at.model, text, along).assign(set=name) for name, text in sides.items())
    yield "tokens", _stacked(projected).assign(prompt_id=pair.id)


def knock_outs(at: Measurement) -> Results:
    """What refusal loses without each head and MLP (`knockout`), and without the fewest heads (`head_sets`)."""
    settings, n = at.recipe.causal, at.recipe.causal.n_knocked_out
    if n == 0:
        return
    harmful, harmless = at.prompts.validation.harmful.take(n), at.prompts.validation.harmless.take(n).texts
    layers = range(0, at.model.cfg.n_layers, settings.layer_step)
    knocked = knockout.knock_out(at.model, harmful.texts, harmless, at.metric, how=settings.how, layers=layers)
    table = knocked.table
    yield "knockout", table
    cells = table[["component", "layer", "head"]].loc[table.index.repeat(len(harmful))].reset_index(drop=True)
    values = knocked.observations.values.T.ravel()
    yield "knockout_prompts", cells.assign(prompt_id=harmful.ids * len(table), value=values)
    heads = table[table["component"] == "head"].sort_values("refusal", kind="stable").head(settings.n_candidates)
    smallest = knockout.smallest_set(
        at.model,
        harmful.texts,
        harmless,
        at.metric,
        how=settings.how,
        candidates=[(int(row.layer), int(row.head)) for row in heads.itertuples()],
        largest=settings.largest_set,
        n_random=settings.n_random,
        held_out=(at.prompts.harmful.take(n).texts, at.prompts.harmless.take(n).texts),
    )
    curve = smallest.curve
    if curve.empty:
        curve = pd.DataFrame([{"size": 0}]).reindex(columns=list(head_sets.COLUMNS))
    yield "head_sets", curve.assign(reached=smallest.reached, gap=smallest.gap, reason=smallest.reason)


def circuit(at: Measurement) -> Results:
    """The circuit of refusal: tables `circuit_nodes`, `circuit_edges`, `faithfulness`."""
    settings = at.recipe.causal
    if settings.n_nodes == 0:
        return
    n_edges, n_random = settings.n_edges, settings.n_random
    pairs = at.prompts.pairs_for(at.model.tokenizer)[: at.settings.n_pairs]
    refusal = circuit_of(at.model, pairs, at.metric, n_nodes=settings.n_nodes, n_edges=n_edges, n_random=n_random)
    yield "circuit_nodes", refusal.components.assign(reason=refusal.reason)
    yield "circuit_edges", refusal.edges
    yield "faithfulness", refusal.faithfulness.table.assign(measured_on=refusal.measured_on)


def _stacked(parts) -> pd.DataFrame:
    return pd.concat(list(parts), ignore_index=True)
