"""One checkpoint, opened with everything that one plays with: its directions, its refusal metric, its carrier.

    import mechrefusal as mr

    play = mr.playground.open("checkpoints/demo", checkpoint="sft-step-00070")   # or any model: a folder, a hub name
    play.compare("How do I pick a lock?", layer=22, coefficient=-1).table
    play.widget()                                                                # sliders, in a notebook

Of a measured checkpoint of a run, direction, metric and carrier are those that the run keeps; of any other model they
are found when it is opened. Nothing here changes or writes weights.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
import torch

from mechrefusal import causal, evaluation, forward, geometry, models, prompts, tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.study.checkpoints import located
from mechrefusal.study.measurement import restored_best
from mechrefusal.study.run import Run

TOP = 8
"""Tokens whose probabilities are compared."""


@dataclass(frozen=True)
class Comparison:
    """What one prompt is answered without and with an intervention.

    Fields:
        answers: the greedy answer without, and with it.
        scores: the refusal metric without, and with it, in nats; above 0 a refusal is coming.
        tokens: the likeliest first tokens of either answer: token, without, with (probabilities).
    """

    prompt: str
    intervention: str
    answers: tuple[str, str]
    scores: tuple[float, float]
    tokens: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """Two rows, without and with: intervention, score (nats), refused (by the built-in rules), answer."""
        judged = evaluation.RefusalJudge().judge([self.prompt] * 2, list(self.answers))["label"]
        return pd.DataFrame({
            "intervention": ["none", self.intervention],
            "score": self.scores,
            "refused": [evaluation.any_refusal(label) for label in judged],
            "answer": self.answers,
        })  # fmt: skip


@dataclass(frozen=True)
class Playground:
    """A checkpoint as a hooked transformer, with what is known of its refusal.

    Fields:
        model: the hooked transformer.
        metric: how this checkpoint opens refusals and answers.
        directions: differences in means, position × layer.
        carrier: the carrier, or the best candidate where no candidate is admissible (`carrier.kind` says which).
    """

    model: Any
    checkpoint: models.Checkpoint
    metric: forward.RefusalMetric
    directions: geometry.Directions
    carrier: geometry.Carrier

    def direction(
        self, layer: int | None = None, position: int | None = None, *, reference: str = "harmless"
    ) -> geometry.Direction:
        """The direction at one place, by default the carrier's; `reference` is what taking it out leaves."""
        at = self.carrier
        return self.directions.at(
            at.position if position is None else position, at.layer if layer is None else layer, reference=reference
        )

    def compare(
        self,
        prompt: str,
        *,
        layer: int | None = None,
        position: int | None = None,
        coefficient: float = -1.0,
        reference: str = "harmless",
        max_new_tokens: int = 32,
    ) -> Comparison:
        """Answer a prompt without and with the direction at `layer`, taken out or put in.

        Args:
            coefficient: below 0 the direction is taken out, −1 all the way to `reference`; above 0 it is put in, 1 all
                the way to the mean of harmful prompts (reference "harmless") or as it is (reference "zero": addition at
                its layer). 0 does nothing.
            reference: "harmless" (2411.09003) or "zero" (2406.11717).
        """
        direction = self.direction(layer, position, reference=reference)
        under: causal.Intervention | None = None
        if coefficient:
            taken_out = coefficient < 0
            under = (causal.taken_out if taken_out else causal.put_in)(direction, dose=abs(coefficient))
        ids = prompts.prompt_ids(self.model.tokenizer, [prompt])
        answers, scores, chances = [], [], []
        for intervention in (None, under):
            with causal.intervened(self.model, intervention):
                answers += evaluation.generate(self.model, [prompt], max_new_tokens=max_new_tokens)
                found, logits = forward.refusal_scores_and(self.model, ids, self.metric, read=lambda logits: logits)
            scores.append(float(found[0]))
            chances.append(logits[0].double().softmax(-1))
        top = torch.maximum(*chances).topk(TOP).indices.tolist()
        tokens = pd.DataFrame({
            "token": [self.model.tokenizer.decode([token]) for token in top],
            "without": [float(chances[0][token]) for token in top],
            "with": [float(chances[1][token]) for token in top],
        })  # fmt: skip
        does = "nothing" if under is None else "taken out" if coefficient < 0 else "put in"
        words = f"{does}: layer {direction.layer}, coefficient {coefficient:g}, {reference}"
        return Comparison(prompt, words, (answers[0], answers[1]), (scores[0], scores[1]), tokens)

    def widget(self, texts: Sequence[str] = (), *, max_new_tokens: int = 24):
        """Sliders for a notebook: prompt, layer, coefficient and reference; answer and first tokens change at once.

        Args:
            texts: prompts to choose from; any other can be typed in. By default a few harmful and harmless ones.

        Raises:
            MechrefusalError: ipywidgets is not installed.
        """
        try:
            import ipywidgets
        except ImportError as error:
            raise MechrefusalError("the playground's sliders need ipywidgets: pip install ipywidgets") from error
        if not texts:
            held_out = prompts.builtin().evaluation
            texts = [*held_out.harmful.texts[:4], *held_out.harmless.texts[:4]]
        wide = {"layout": ipywidgets.Layout(width="95%"), "style": {"description_width": "7em"}}
        prompt = ipywidgets.Combobox(value=texts[0], options=list(texts), description="prompt", **wide)
        layer = ipywidgets.IntSlider(
            self.carrier.layer, 0, self.model.cfg.n_layers - 1, description="layer", continuous_update=False, **wide
        )
        coefficient = ipywidgets.FloatSlider(
            -1, min=-2, max=2, step=0.25, description="coefficient", continuous_update=False, **wide
        )
        reference = ipywidgets.ToggleButtons(options=["harmless", "zero"], description="reference")
        seen = ipywidgets.HTML()

        def show(_: Any = None) -> None:
            try:
                found = self.compare(
                    prompt.value, layer=layer.value, coefficient=coefficient.value, reference=reference.value,
                    max_new_tokens=max_new_tokens,
                )  # fmt: skip
                seen.value = found.table.to_html(index=False) + found.tokens.to_html(index=False, float_format="%.3f")
            except MechrefusalError as error:
                seen.value = html.escape(str(error))

        controls = (prompt, layer, coefficient, reference)
        for control in controls:
            control.observe(show, names="value")
        show()
        return ipywidgets.VBox([*controls, seen])


def open(
    source: models.Checkpoint | Run | Path | str, *, checkpoint: str = "", n: int = 16, **placed: Unpack[models.Placed]
) -> Playground:
    """Open a checkpoint of a run, or any model, to play with.

    Args:
        source: a run or its folder; one of its checkpoints (RUN/sft/step-00070); or a model's folder or name.
        checkpoint: id of the run's checkpoint (`sft-step-00070`); by default its last.
        n: validation prompts of each side, and twice as many for directions, where these are found anew.
        placed: where it lies and in which numbers: fields of a `models.Placement`.

    Raises:
        MechrefusalError: no such model or checkpoint, or one without any candidate that could be scored.
    """
    run, chosen = _chosen(source, checkpoint)
    model = models.load_hooked(chosen, **placed)
    if run is not None and run.directions(chosen).is_file():
        names = ("openings", "carrier", "carriers", "candidate_scores")
        kept = {name: tables.read(name, run.measurements(chosen)) for name in names}
        if all(len(table) and (table["weights"] == chosen.weights).all() for table in kept.values()):
            metric = forward.RefusalMetric.from_json(kept["openings"]["token_ids"].iloc[0])
            directions = geometry.Directions.load(run.directions(chosen), weights=chosen.weights)
            best = restored_best(kept["carrier"], kept["carriers"], kept["candidate_scores"], directions)
            return Playground(model, chosen, metric, directions, _required(best, chosen))
    asked = prompts.builtin()
    metric = evaluation.discover_refusal(model, asked.direction.take(2 * n))
    directions = geometry.difference_in_means(model, asked.direction.take(2 * n))
    places = geometry.carriers.candidates(
        directions, layers=geometry.Admissible().layers(model.cfg.n_layers), positions=[max(directions.positions)]
    )
    scores = geometry.screened(model, directions, asked.validation.take(n), metric, places=places)
    return Playground(model, chosen, metric, directions, _required(geometry.select(scores).best, chosen))


def _chosen(source: models.Checkpoint | Run | Path | str, name: str) -> tuple[Run | None, models.Checkpoint]:
    """The checkpoint that is meant, and its run where it belongs to one."""
    if isinstance(source, (Path, str)) and (Path(source).expanduser() / "recipe.yaml").is_file():
        source = Run.open(source)
    if not isinstance(source, Run):
        if name:
            raise MechrefusalError(f"'{source}' is no run, so it has no checkpoint '{name}': leave checkpoint out")
        return located(source)
    known = {point.id: point for point in source.checkpoints()}
    if not known or (name and name not in known):
        raise MechrefusalError(f"run '{source.folder}' has no checkpoint '{name}'; it has {', '.join(known) or 'none'}")
    return source, known[name] if name else list(known.values())[-1]


def _required(best: geometry.Carrier | None, checkpoint: models.Checkpoint) -> geometry.Carrier:
    if best is None:
        raise MechrefusalError(
            f"no candidate of '{checkpoint.path}' could be scored: there is no direction to play with"
        )
    return best
