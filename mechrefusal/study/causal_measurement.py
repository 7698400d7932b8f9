"""Cause and attribution of one checkpoint, by layer and head: what writes refusal, and what takes it away."""

from collections.abc import Callable

import pandas as pd
import torch

from mechrefusal import attribution
from mechrefusal.causal import attribution_patching, head_sets, knockout, patching
from mechrefusal.causal.circuits import circuit
from mechrefusal.evaluation import Discovered
from mechrefusal.forward.direction import Along, Carrier, Direction
from mechrefusal.study.recipe import Recipe
from mechrefusal.study.selection import Asked

Add = Callable[[str, list[dict] | pd.DataFrame], None]


class CausalMeasurement:
    """Cause and attribution under way on one model; `add` keeps tables.

    `best`, where it is asked for: the carrier, or the best candidate in its place; None where there is neither.
    """

    def __init__(self, model, metric: Discovered, asked: Asked, recipe: Recipe, add: Add) -> None:
        self.model, self.metric, self.asked, self.add = model, metric, asked, add
        self.settings, self.wanted = recipe.measuring, recipe.causal

    def take_attribution(self, best: Carrier | None) -> None:
        """Who writes refusal (tables `attribution`, `attribution_compared`), from where (`token_sources`), and when.

        When: the logit lens, table `logit_lens`.
        """
        texts = {
            name: chosen.take(self.settings.n_attributed).texts
            for name, chosen in (("harmful", self.asked.harmful), ("harmless", self.asked.harmless))
        }
        readouts: dict[str, attribution.RefusalLogits | attribution.Onto] = {
            "refusal_logits": attribution.RefusalLogits(self.metric)
        }
        if best is not None:
            readouts[best.kind] = attribution.Onto.of(best)
        written, compared = [], []
        for onto, readout in readouts.items():
            found = {name: attribution.attribute(self.model, chosen, readout) for name, chosen in texts.items()}
            written += [one.table.assign(set=name, onto=onto) for name, one in found.items()]
            compared.append(attribution.difference(found["harmful"], found["harmless"]).assign(onto=onto))
            if onto == "refusal_logits":
                top = found["harmful"].top(self.settings.n_top_heads)
        self.add("attribution", pd.concat(written, ignore_index=True))
        self.add("attribution_compared", pd.concat(compared, ignore_index=True))
        self.add("token_sources", self._sources(texts, readouts["refusal_logits"], top))
        lenses = attribution.compare_lenses(self.model, texts["harmful"], texts["harmless"], self.metric)
        self.add("logit_lens", lenses.table)

    def _sources(self, texts: dict[str, list[str]], readout, heads: list[tuple[int, int]]) -> pd.DataFrame:
        frames = []
        for name, chosen in texts.items():
            found = attribution.sources(self.model, chosen, readout, heads=heads)
            for kind, table in (("segment", found.by_segment), ("token", found.by_token)):
                frames.append(table.rename(columns={kind: "name"}).assign(set=name, by=kind))
        return pd.concat(frames, ignore_index=True)

    def take_patching(self, best: Carrier | None) -> None:
        """What moves refusal: table `patching`; attention and tokens of a pair are in `attention` and `tokens`."""
        pairs = self.asked.pairs_for(self.model.tokenizer)
        chosen = pairs[: self.settings.n_pairs]
        origin = "given" if self.asked.pairs is not None else "found"
        told = {"origin": origin, "n": len(pairs), "n_left_out": len(pairs.left_out), "n_patched": len(chosen)}
        self.add("pairs", [told])
        layers = range(0, self.model.cfg.n_layers, self.settings.layer_step)
        found: list[pd.DataFrame] = []
        by_pair: list[pd.DataFrame] = []
        top: list[tuple[int, int]] = []
        for mode in self.wanted.modes:
            heads = patching.heads(self.model, chosen, self.metric, mode=mode)
            top = top or heads.top(self.settings.n_top_heads)
            by_pair.append(heads.by_pair)
            found += [patching.residual(self.model, chosen, self.metric, layers=layers, mode=mode).table, heads.table]
            if self.wanted.sites:
                found += [
                    of(self.model, chosen, self.metric, layers=layers, mode=mode).table
                    for of in (patching.attention_output, patching.mlp_output)
                ]
        self.add("patching", pd.concat(found, ignore_index=True))
        self.add("patching_pairs", pd.concat(by_pair, ignore_index=True))
        self._look(pairs[0], top, best)
        if self.wanted.n_finalists:
            n = self.wanted.n_finalists
            screened = attribution_patching.screened(
                self.model, chosen, self.metric, finalists=n, others=n, method=self.wanted.screening
            )
            self.add("attribution_patching", screened.table)
            self.add("attribution_agreement", screened.agreement)

    def _look(self, pair, heads: list[tuple[int, int]], best: Carrier | None) -> None:
        pattern, _ = attribution.attention(self.model, pair.harmful, heads)
        self.add("attention", pattern.assign(prompt_id=pair.id))
        # Without a direction the tokens are still listed: the attention figures need their names.
        nothing = torch.full((self.model.cfg.d_model,), float("nan"))
        along: Along = Direction(nothing, layer=0) if best is None else best
        frames = [
            attribution.projections(self.model, text, along).assign(set=name)
            for name, text in (("harmful", pair.harmful), ("harmless", pair.harmless))
        ]
        self.add("tokens", pd.concat(frames, ignore_index=True).assign(prompt_id=pair.id))

    def take_knock_outs(self) -> None:
        """What refusal loses without each head and MLP (`knockout`), and without the fewest heads (`head_sets`)."""
        n, wanted = self.wanted.n_knocked_out, self.wanted
        if n == 0:
            return
        asked = self.asked.validation.harmful.take(n)
        harmful, harmless = asked.texts, self.asked.validation.harmless.take(n).texts
        layers = range(0, self.model.cfg.n_layers, wanted.layer_step)
        out = knockout.knock_out(self.model, harmful, harmless, self.metric, how=wanted.how, layers=layers)
        table = out.table
        self.add("knockout", table)
        by_prompt = table[["component", "layer", "head"]].loc[table.index.repeat(len(asked))].reset_index(drop=True)
        values = out.observations.values.T.ravel()
        self.add("knockout_prompts", by_prompt.assign(prompt_id=asked.ids * len(table), value=values))
        heads = table[table["component"] == "head"].sort_values("refusal", kind="stable").head(wanted.n_candidates)
        sets = knockout.smallest_set(
            self.model,
            harmful,
            harmless,
            self.metric,
            how=wanted.how,
            candidates=[(int(row.layer), int(row.head)) for row in heads.itertuples()],
            largest=wanted.largest_set,
            n_random=wanted.n_random,
            held_out=(self.asked.harmful.take(n).texts, self.asked.harmless.take(n).texts),
        )
        curve = sets.curve if len(sets.curve) else pd.DataFrame([{"size": 0}]).reindex(columns=list(head_sets.COLUMNS))
        self.add("head_sets", curve.assign(reached=sets.reached, gap=sets.gap, reason=sets.reason))

    def take_circuit(self) -> None:
        """The circuit of refusal: tables `circuit_nodes`, `circuit_edges`, `faithfulness`."""
        if self.wanted.n_nodes == 0:
            return
        pairs = self.asked.pairs_for(self.model.tokenizer)[: self.settings.n_pairs]
        found = circuit(
            self.model,
            pairs,
            self.metric,
            n_nodes=self.wanted.n_nodes,
            n_edges=self.wanted.n_edges,
            n_random=self.wanted.n_random,
        )
        self.add("circuit_nodes", found.components.assign(reason=found.reason))
        self.add("circuit_edges", found.edges)
        self.add("faithfulness", found.faithfulness.table.assign(measured_on=found.measured_on))
