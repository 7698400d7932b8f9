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


def attribution_of_refusal(subject: Measurement) -> Results:
    """Who writes refusal (tables `attribution`, `attribution_compared`), from where (`token_sources`), and when.

    When: the logit lens, table `logit_lens`.
    """
    n, model, metric = subject.settings.n_attributed, subject.model, subject.metric
    texts = {"harmful": subject.prompts.harmful.take(n).texts, "harmless": subject.prompts.harmless.take(n).texts}
    readouts: dict[str, attribution.RefusalLogits | attribution.Onto] = {LOGITS: attribution.RefusalLogits(metric)}
    if subject.best is not None:
        readouts[subject.best.kind] = attribution.Onto.of(subject.best)
    written = {
        (onto, name): attribution.attribute(model, prompts, readout)
        for onto, readout in readouts.items()
        for name, prompts in texts.items()
    }
    compared = {onto: attribution.difference(written[onto, "harmful"], written[onto, "harmless"]) for onto in readouts}
    yield "attribution", _stacked(each.table.assign(set=name, onto=onto) for (onto, name), each in written.items())
    yield "attribution_compared", _stacked(each.assign(onto=onto) for onto, each in compared.items())
    heads = written[LOGITS, "harmful"].top(subject.settings.n_top_heads)
    sources = {
        name: attribution.sources(model, prompts, readouts[LOGITS], heads=heads) for name, prompts in texts.items()
    }
    yield (
        "token_sources",
        _stacked(
            table.rename(columns={kind: "name"}).assign(set=name, by=kind)
            for name, each in sources.items()
            for kind, table in (("segment", each.by_segment), ("token", each.by_token))
        ),
    )
    yield "logit_lens", attribution.compare_lenses(model, texts["harmful"], texts["harmless"], metric).table


def patching_of_pairs(subject: Measurement) -> Results:
    """What moves refusal: table `patching`; attention and tokens of a pair are in `attention` and `tokens`."""
    settings, model, metric = subject.recipe.causal, subject.model, subject.metric
    pairs = subject.prompts.pairs_for(model.tokenizer)
    patched = pairs[: subject.settings.n_pairs]
    origin = "given" if subject.prompts.pairs is not None else "found"
    counts = {"n": len(pairs), "n_left_out": len(pairs.left_out), "n_patched": len(patched)}
    yield "pairs", [{"origin": origin, **counts}]
    layers = range(0, model.cfg.n_layers, subject.settings.layer_step)
    by_layer = [patching.residual, *([patching.attention_output, patching.mlp_output] if settings.sites else [])]
    frames: list[pd.DataFrame] = []
    by_mode = {mode: patching.heads(model, patched, metric, mode=mode) for mode in settings.modes}
    for mode, heads in by_mode.items():
        residual, *sites = (of(model, patched, metric, layers=layers, mode=mode).table for of in by_layer)
        frames += [residual, heads.table, *sites]
    yield "patching", _stacked(frames)
    yield "patching_pairs", _stacked(heads.by_pair for heads in by_mode.values())
    yield from _look(subject, pairs[0], by_mode[settings.modes[0]].top(subject.settings.n_top_heads))
    if n := settings.n_finalists:
        screened = attribution_patching.screened(
            model, patched, metric, finalists=n, others=n, method=settings.screening
        )
        yield "attribution_patching", screened.table
        yield "attribution_agreement", screened.agreement


def _look(subject: Measurement, pair: Pair, heads: list[tuple[int, int]]) -> Results:
    """What heads attend to in both prompts of a pair, and how their tokens lie along the direction."""
    sides = {"harmful": pair.harmful, "harmless": pair.harmless}
    patterns = (attribution.attention(subject.model, text, heads)[0].assign(set=name) for name, text in sides.items())
    yield "attention", _stacked(patterns).assign(prompt_id=pair.id)
    # Without a direction the tokens are still listed: the attention figures need their names.
    nothing = torch.full((subject.model.cfg.d_model,), float("nan"))
    along: Along = Direction(nothing, layer=0) if subject.best is None else subject.best
    projected = (attribution.projections(subject.model, text, along).assign(set=name) for name, text in sides.items())
    yield "tokens", _stacked(projected).assign(prompt_id=pair.id)


def knock_outs(subject: Measurement) -> Results:
    """What refusal loses without each head and MLP (`knockout`), and without the fewest heads (`head_sets`)."""
    settings, n = subject.recipe.causal, subject.recipe.causal.n_knocked_out
    if n == 0:
        return
    model, metric, validation = subject.model, subject.metric, subject.prompts.validation
    harmful, harmless = validation.harmful.take(n), validation.harmless.take(n).texts
    layers = range(0, model.cfg.n_layers, settings.layer_step)
    knocked = knockout.knock_out(model, harmful.texts, harmless, metric, how=settings.how, layers=layers)
    table = knocked.table
    yield "knockout", table
    cells = table[["component", "layer", "head"]].loc[table.index.repeat(len(harmful))].reset_index(drop=True)
    values = knocked.observations.values.T.ravel()
    yield "knockout_prompts", cells.assign(prompt_id=harmful.ids * len(table), value=values)
    heads = table[table["component"] == "head"].sort_values("refusal", kind="stable").head(settings.n_candidates)
    smallest = knockout.smallest_set(
        model,
        harmful.texts,
        harmless,
        metric,
        how=settings.how,
        candidates=[(int(row.layer), int(row.head)) for row in heads.itertuples()],
        largest=settings.largest_set,
        n_random=settings.n_random,
        held_out=(subject.prompts.harmful.take(n).texts, subject.prompts.harmless.take(n).texts),
    )
    curve = smallest.curve
    if curve.empty:
        curve = pd.DataFrame([{"size": 0}]).reindex(columns=list(head_sets.COLUMNS))
    yield "head_sets", curve.assign(reached=smallest.reached, gap=smallest.gap, reason=smallest.reason)


def circuit(subject: Measurement) -> Results:
    """The circuit of refusal: tables `circuit_nodes`, `circuit_edges`, `faithfulness`."""
    settings = subject.recipe.causal
    if settings.n_nodes == 0:
        return
    model, sizes = subject.model, {name: getattr(settings, name) for name in ("n_nodes", "n_edges", "n_random")}
    pairs = subject.prompts.pairs_for(model.tokenizer)[: subject.settings.n_pairs]
    refusal = circuit_of(model, pairs, subject.metric, **sizes)
    yield "circuit_nodes", refusal.components.assign(reason=refusal.reason)
    yield "circuit_edges", refusal.edges
    yield "faithfulness", refusal.faithfulness.table.assign(measured_on=refusal.measured_on)


def _stacked(parts) -> pd.DataFrame:
    return pd.concat(list(parts), ignore_index=True)
