"""The schema of every table: tidy pandas frames, stored as parquet. One place, so that no reader guesses a column.

Every per-checkpoint table starts with `arm` (str, "base" at step 0), `step` (int, optimiser steps) and `weights` (str,
hash of the checkpoint that was measured). Rates carry `n`, `low` and `high` (95% interval).
"""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file

CHECKPOINT = ("arm", "step", "weights")

_CORRECTED = ("corrected", "corrected_low", "corrected_high", "corrected_by")
_UNSEEN = ("held_out", "held_out_low", "held_out_high", "n_held_out", "p")
_RULES = ("admissible_layer", "admissible_kl", "admissible_induce")
_ROUNDING = ("rounding_score", "rounding_kl")
_BYPASS_UNSEEN = ("bypass_held_out", "bypass_held_out_low", "bypass_held_out_high")

PER_CHECKPOINT: dict[str, tuple[str, ...]] = {
    # One row a completion. `set`: evaluation_harmful, evaluation_harmless, overrefusal, contrast, utility,
    # direction_harmful, direction_harmless. `attack`: none, or the method that made the case.
    # `intervention`: none, ablate, induce, ablate_random, induce_random (to the recipe's reference; see `carrier`).
    "generations": (
        "set", "prompt_id", "category", "prompt", "attack", "intervention", "completion", "refused", "degenerate",
    ),
    # One row a rate. `metric`: refusal_rate, degenerate_rate, attack_success_rate (harmful sets), answered_rate (the
    # others). `judge` names the rule.
    # `corrected`, here and elsewhere: the rate with the judge's known error corrected (Rogan and Gladen), with its 95%
    # interval, NaN where that error is not known; `corrected_by`: what the error was measured on.
    "rates": (
        "set", "attack", "intervention", "metric", "judge", "value", "n", "low", "high", *_CORRECTED,
    ),
    # One row a checkpoint. `kind`: discovered, teacher_forced or fallback. Token sets are JSON lists of strings. The
    # refusal metric is log P(refusal tokens) - log P(compliance tokens) after `opening`, nats; where `kind` is
    # teacher_forced that of whole openings; less `offset`, so that 0 lies between refused and answered prompts.
    # `token_ids`: the metric itself, as `RefusalMetric.from_json` reads it.
    "openings": (
        "kind", "opening", "refusal_tokens", "compliance_tokens", "coverage", "auc", "auc_held_out", "offset",
        "n_refused", "n_answered", "note", "token_ids",
    ),
    # One row a prompt: the discovered score and the hand-picked one of Arditi et al.
    "scores": ("set", "prompt_id", "score", "rd_score", "refused"),
    # One row a (position, layer). `position` is negative, counted from the end of the prompt; `token` stands there.
    # `selection`: "kept by score", or "all prompts" where too few were kept.
    # `zero_distance`: where zero lies along the direction, 0 being the harmless mean and 1 the harmful one.
    "directions": (
        "position", "token", "layer", "norm", "split_half_cosine", "zero_distance", "n_harmful", "n_harmless",
        "selection",
    ),
    # One row a scored candidate. `exact`: scored in float32 on every prompt; False where a screen put it out of the
    # running. `admissible`: all of `admissible_layer`, `admissible_kl` and `admissible_induce`, and no score is NaN;
    # `rejected_because` says the same in words. `win_frequency`: share of bootstraps over the validation prompts in
    # which it is the carrier. `half_wins`: by how many of two halves of the direction prompts it is (0 to 2), NaN where
    # it was no contender. `*_zero`: the same candidate ablated to zero and added, as Arditi et al. publish; NaN where
    # that was not scored.
    "carriers": (
        "position", "layer", "bypass", "induce", "kl", "exact", *_RULES, "admissible", "rejected_because", "winner",
        "win_frequency", "half_wins", "bypass_zero", "induce_zero", "kl_zero", "admissible_zero",
    ),
    # One row an exactly scored candidate, measure (bypass, induce, kl) and validation prompt.
    "candidate_scores": ("position", "layer", "measure", "prompt_id", "value"),
    # The candidates that halves of the direction prompts choose among, with the directions of either `half` (1: the
    # even folds, 2: the odd ones): mean bypass, induce and kl over the validation prompts, nats.
    "half_scores": ("position", "layer", "half", "bypass", "induce", "kl"),
    # One row a checkpoint: the winner, or NaN and the reason why there is none. Over bootstraps of the validation
    # prompts: `win_frequency` of the winner, `none_frequency` (share with no admissible candidate), `margin_*` (bypass
    # of the runner-up minus that of the winner, 95% interval) and `layer_low`, `layer_high` (95% interval of the
    # winning layer). `layer_half_low`, `layer_half_high`: the layers that two halves of the direction prompts choose,
    # NaN unless both of them do; `n_halves`: how many do.
    # `reference_*`: the candidate that the later measures look at: the carrier, or where there is none the best
    # candidate, the lowest bypass among those with an admissible KL, or among all where none has one
    # (`reference_kind`: carrier, best candidate, none). `ablated_to`: what bypass, induce and kl were
    # taken with: harmless (mean), or zero. `*_zero`: of the reference candidate, ablated to zero and added.
    # `n_admissible_zero`: NaN unless all candidates were scored so. `zero_distance`: where zero lies along it, 0 being
    # the harmless mean and 1 the harmful one. `n_harmful`, `n_harmless`: validation prompts that it was chosen on.
    # `bypass_held_out`: every prompt's score with what the prompts of other folds choose ablated, with its 95%
    # interval: `bypass` itself is lower than that, as the prompts that chose the winner favour it. `rounding_score`
    # (nats), `rounding_kl` (of its logarithm): what the precision of the screen shifts means by, root mean square over
    # candidates scored both ways; NaN where the screen was as precise as the scores, or there was none.
    "carrier": (
        "position", "token", "layer", "bypass", "induce", "kl", "baseline_harmful", "baseline_harmless",
        "n_candidates", "n_admissible", "reason", "win_frequency", "none_frequency", "margin", "margin_low",
        "margin_high", "layer_low", "layer_high", "n_bootstrap", "n_halves", "layer_half_low", "layer_half_high",
        "reference_kind", "reference_position", "reference_layer", "ablated_to", "bypass_zero", "induce_zero",
        "kl_zero", "admissible_zero", "n_admissible_zero", "zero_distance", "n_harmful", "n_harmless",
        *_BYPASS_UNSEEN, *_ROUNDING,
    ),
    # One row a criterion of the gate: whether the checkpoint has learnt what it is interpreted for. `criterion`:
    # harmful refused, harmless answered, utility answered, not degenerate (over all three sets); `value` with its 95%
    # Wilson interval, `threshold` that it must reach.
    "gate": (
        "criterion", "value", "low", "high", "n", "threshold", "passed", "judge", *_CORRECTED,
    ),
    # One row a family of subspaces and k. `family`: categories (difference in means, then what categories differ
    # by), pca (of harmful minus mean harmless activations), successive (INLP: linear classifiers, each projected out),
    # cone (learned); random and random_cone (the difference in means and random directions), the floors. `bypass`,
    # `induce`, `kl` as for carriers, with 95% intervals over prompts; what is added for `induce` is the part of the
    # difference in means in the subspace, at the length of the whole. `share_of_best`: (baseline - bypass) /
    # (baseline - lowest admissible bypass). `smallest`: the smallest admissible k that reaches 90% of it.
    # A cone of k > 1 is scored by `n_sampled` directions drawn from it, each ablated and put in by itself (0: the span
    # was ablated): bypass, induce and kl are means over them, `*_worst` of the worst of them, `share_admissible` how
    # many are admissible by themselves; all must be.
    "subspaces": (
        "family", "k", "position", "layer", "bypass", "bypass_low", "bypass_high", "induce", "kl", "kl_low", "kl_high",
        "bypass_worst", "induce_worst", "kl_worst", "n_sampled", "share_admissible", "admissible", "rejected_because",
        "share_of_best", "smallest", "n", "reason",
    ),
    # One row a measure of how refusals of safe prompts share refusal's direction. `layer`, `position`: where.
    # `floor_low`, `floor_high`: the same measure under shuffled labels (95%); `random`: for a random direction.
    # `projection_share` holds the prompts that made the direction out of it, fold by fold.
    "overlap": (
        "measure", "position", "layer", "value", "low", "high", "floor_low", "floor_high", "random", "n", "reason",
    ),
    # One row a measure and layer of how harmfulness (last instruction token) and refusal (after the instruction) hang
    # together. Columns as in `overlap`; `layer` is -1 where the measure belongs to none.
    "coupling": ("measure", "layer", "value", "low", "high", "floor_low", "floor_high", "random", "n", "reason"),
    # One row a linear probe (logistic regression, cross-validated by prompt). `target`: what it tells apart.
    # `mean_auc`: the AUC of projecting on the difference in means instead; `cosine`: of probe and difference in means.
    "linear_probes": (
        "target", "position", "layer", "auc", "low", "high", "mean_auc", "shuffled_auc", "cosine", "n_positive",
        "n_negative", "reason",
    ),
    # One row an intervention (ablate, induce, ablate_random, induce_random), coefficient and measure: refusal_harmful,
    # refusal_harmless (mean refusal score, nats), refused_harmless (share with score > 0), loss_harmless (on the
    # model's own answers, nats a token), kl_harmless (nats).
    "doses": ("intervention", "coefficient", "measure", "value", "low", "high", "n"),
    # One row an intervention and pair of curves: `value` is the area between them over the coefficients.
    "utility_coupling": ("intervention", "measure", "value", "low", "high", "random", "n", "reason"),
    # One row a component: embed, pos_embed, head, mlp, bias, total; `layer`, `head` are -1 where there is none. `onto`:
    # refusal_logits (mean logit of the refusal tokens minus that of the compliance tokens); carrier or best candidate
    # (projection on the unit direction). `set`: harmful or harmless. `value` is the mean over n prompts.
    "attribution": ("set", "onto", "component", "layer", "head", "value", "n", "low", "high"),
    # One row a component and read-out as in `attribution`: means of harmful and harmless prompts, and their difference.
    # `floor`: 95th percentile of |difference| under random labels. `p`: adjusted for all components.
    "attribution_compared": (
        "onto", "component", "layer", "head", "harmful", "harmless", "difference", "low", "high", "floor", "n_harmful",
        "n_harmless", "p",
    ),
    # One row a top head and what it reads refusal from. `by`: segment of the chat template, or token; `value`: mean
    # contribution to the refusal logits, `weight`: mean attention.
    "token_sources": ("set", "layer", "head", "by", "name", "value", "low", "high", "weight", "n"),
    # One row a layer's input (the last: the output) and quantity: refusal, compliance (log-probability of the token
    # set), score, rank (of the best refusal token, 0 is first).
    "logit_lens": ("set", "layer", "quantity", "value", "low", "high", "n"),
    # One row a patched site. `site`: resid_pre, attn_out, mlp_out (layer x position, `head` -1) or head_z (layer x
    # head, `position` 0 for all). `raw`: change of the metric, nats; `effect`: (m - m_corrupted) / (m_clean -
    # m_corrupted). `p`: adjusted for all cells of the site that every pair has.
    "patching": ("site", "mode", "layer", "head", "position", "token", "raw", "effect", "n", "low", "high", "p"),
    # One row: how many pairs of equal token length there are (`n`), how many have others (`n_left_out`), how many of
    # them are patched (`n_patched`). `origin`: given (or built-in), or found among the other prompts.
    "pairs": ("origin", "n", "n_left_out", "n_patched"),
    # The same changes pair by pair (`pair`: its id), those of heads at all positions.
    "patching_pairs": ("site", "mode", "layer", "head", "position", "pair", "raw"),
    # One row a site that attribution patching estimated: `estimate` (nats), by `method` (eap, eap-ig), and, where
    # `scored` (finalist, random), the `exact` change with its interval and the `error`.
    "attribution_patching": (
        "site", "mode", "layer", "head", "position", "token", "estimate", "estimate_low", "estimate_high", "effect",
        "scored", "exact", "low", "high", "error", "n", "method", "tool",
    ),
    # One row a site and kind of scored cells: how well estimate and exact agree.
    "attribution_agreement": (
        "site", "scored", "n", "spearman", "low", "high", "sign", "error", "relative_error",
    ),
    # One row a head or MLP knocked out: change of the refusal score of harmful (`refusal`) and of harmless prompts,
    # and KL of the harmless prompts' next token, nats. `p`: of `refusal`, adjusted for all of them.
    "knockout": (
        "component", "layer", "head", "how", "refusal", "low", "high", "harmless", "harmless_low", "harmless_high",
        "kl", "kl_low", "kl_high", "n_harmful", "n_harmless", "p",
    ),
    # The changes of refusal prompt by prompt.
    "knockout_prompts": ("component", "layer", "head", "prompt_id", "value"),
    # One row a size of the greedy set of heads, against random sets. `share`: of `gap` (refusal score of harmful minus
    # harmless prompts) that is gone. `reached`: whether half of it is gone at the last size. `held_out_*`: on
    # evaluation prompts, which the search did not see.
    "head_sets": (
        "size", "layer", "head", "heads", "share", "refusal", "low", "high", "harmless", "harmless_low",
        "harmless_high", "kl", "kl_low", "kl_high", "n_harmful", "n_harmless", "random_refusal",
        "random_refusal_least", "random_refusal_most", "random_harmless", "random_kl", "n_random", "held_out_share",
        "held_out_refusal", "held_out_low", "held_out_high", "held_out_kl", "n_held_out", "reached", "gap", "reason",
    ),
    # One row a head or MLP: its exact patch at all positions (`raw`, nats; `effect`, share of the gap), and whether the
    # circuit holds it. `held_out*`: the effect of what it holds on pairs that did not choose it; `p`: of that, adjusted
    # for all that the circuit holds.
    "circuit_nodes": (
        "node", "component", "layer", "head", "raw", "effect", "low", "high", "n", "estimate", "kept", *_UNSEEN,
        "reason",
    ),
    # One row a path between kept nodes, by path patching; from "embedding", to "logits".
    "circuit_edges": ("sender", "receiver", "raw", "effect", "low", "high", "n", "kept", *_UNSEEN),
    # One row a size of the circuit and score: `kept`, share of the metric that it recovers alone; `lost`, share that is
    # missing without it; random sets of the same size beside them.
    "faithfulness": (
        "of", "size", "heads", "mlps", "node", "is_circuit", "kept", "kept_low", "kept_high", "lost", "lost_low",
        "lost_high", "random_kept", "random_kept_least", "random_kept_most", "random_lost", "random_lost_least",
        "random_lost_most", "n_random", "full", "ablated", "n", "reason", "measured_on",
    ),
    # One row a token of an example prompt: `value` is the projection of resid_pre at the carrier's layer on the unit
    # carrier, NaN where there is no carrier.
    "tokens": ("set", "prompt_id", "index", "token", "value"),
    # One row an entry of an attention pattern of a top head on an example prompt (source <= destination).
    "attention": ("prompt_id", "layer", "head", "destination", "source", "weight"),
    # One row a step of the measurement: wall time.
    "timings": ("stage", "seconds", "note"),
}  # fmt: skip

ACROSS: dict[str, tuple[str, ...]] = {
    # One row a checkpoint: what it is. `source`: the folder or name it was given by, empty where this run trained it.
    # `prompts`: fingerprint of the token ids that its tokenizer and chat template make of the direction prompts.
    "checkpoints": (
        "arm", "step", "weights", "source", "architecture", "n_layers", "d_model", "n_heads", "vocabulary", "prompts",
    ),
    # One row a training step. Loss terms that an arm lacks are NaN (all terms, added ones too, are in `terms`).
    # `attack_loss_*`: mean target loss of the drawn cases before and after their refresh. `pool_age`: mean number of
    # refreshes since a drawn case had the initial suffix. `attack_tokens`: tokens that the refresh ran forward.
    # `seconds` is the wall time of the step, `seconds_*` its parts. `peak_mib`: highest memory so far.
    "training": (
        "arm", "step", "loss", "utility", "away", "toward", "attack_loss_before", "attack_loss_after", "pool_age",
        "attack_tokens", "grad_norm", "learning_rate", "seconds", "seconds_refresh", "seconds_forward",
        "seconds_backward", "seconds_optimizer", "peak_mib",
    ),
    # One row a training step and loss term: `value` before `weight` is applied.
    "terms": ("arm", "step", "term", "weight", "value"),
    # One row a case that a training step refreshed. `age`: refreshes since it had the initial suffix, this one
    # included. `loss_before`, `loss_after`: cross-entropy of its target, nats a token.
    "refreshes": ("arm", "step", "case", "loss_before", "loss_after", "age", "forward_tokens", "dropped"),
    # One row an anchor of an arm and probe set (harmful, harmless, attacked: pool behaviours with their suffixes).
    "probes": ("arm", "step", "set", "metric", "judge", "value", "n", "low", "high"),
    # One row an attack case made against `source` (arm-step-00000 or a hash of weights).
    "cases": (
        "source", "method", "case", "behaviour", "prompt", "loss_first", "loss", "steps", "forward_tokens", "dropped",
        "seconds",
    ),
    # One row a pair of checkpoints and measure: carrier_cosine, direction_cosine, principal_angle_mean,
    # principal_angle_max (degrees). `layer` is -1 where the measure belongs to none. All on prompts that are the same
    # at every checkpoint; `low`, `high`: 95% interval over prompts. `floor`: the same measure between two halves of the
    # prompts, mean of both checkpoints; `random`: between random directions (or spans). `reason` says why a value is
    # NaN.
    "drift": (
        "arm_a", "step_a", "arm_b", "step_b", "measure", "layer", "value", "low", "high", "floor", "random", "n",
        "reason",
    ),
    # One row a pair of checkpoints: the carrier (or reference) of the source at the target. `bypass`, `induce`, `kl`
    # there, `baseline_*` without it, `random_*` with a random direction of the same norm. `decrease`: how far ablation
    # lowers the mean score of the harmful prompts, `rise`: how far addition lifts that of the harmless ones, nats, with
    # 95% intervals over the prompts' own differences. `decrease_half_low`, `decrease_half_high`: the lesser and the
    # greater decrease with the directions of two halves of the source's direction prompts, NaN where a half has none.
    # `decrease_held_out`: at its own checkpoint, where these prompts chose it, the decrease of every prompt under what
    # the other prompts choose (95% interval: bootstraps that choose again); NaN elsewhere, and where that is not known.
    # `kind`: carrier or best candidate, of the source.
    "transfer": (
        "arm_source", "step_source", "arm_target", "step_target", "kind", "position", "layer", "bypass", "bypass_low",
        "bypass_high", "induce", "induce_low", "induce_high", "kl", "baseline_harmful", "baseline_harmless",
        "random_bypass", "random_induce", "decrease", "decrease_low", "decrease_high", "rise", "rise_low", "rise_high",
        "random_decrease", "decrease_half_low", "decrease_half_high", "decrease_held_out", "decrease_held_out_low",
        "decrease_held_out_high", "n_harmful", "n_harmless", "reason",
    ),
    # One row a pair of checkpoints, set of prompts and site: activations of the source put into the target at that
    # site. `set`: harmful or harmless; what lifts both alike makes the target refuse whatever it is asked. `raw`:
    # change of the target's refusal score, nats; `effect`: share of the way to the source's score; `control`: what the
    # same change does, turned by random rotations; `p`: that it is one of those, adjusted for all rows of the site.
    "cross_patching": (
        "arm_source", "step_source", "arm_target", "step_target", "set", "site", "layer", "head", "raw", "low", "high",
        "effect", "effect_low", "effect_high", "control", "control_low", "control_high", "control_size",
        "source_score", "target_score", "n", "reason", "p",
    ),
    # One row a pair of checkpoints and measure, and one with measure `overall`. `verdict`: moved, not moved, cannot
    # tell. `value` with its interval (95% over prompts; that of `carrier_layer` over validation and direction prompts)
    # and `floor`, its noise (of `carrier_layer`: what counts as the same depth): what the verdict rests on is in
    # `reason`. `n_to_decide`: prompts of each side that would decide what cannot be told, NaN where no number would.
    "relocation": (
        "arm_a", "step_a", "arm_b", "step_b", "measure", "value", "low", "high", "floor", "verdict", "reason",
        "n_to_decide",
    ),
    # One row a question: what this run's `n` prompts, pairs or seeds (`unit`) could have told with 90% power
    # (`could_tell`: layers, a difference of rates, nats), and how many would tell `wanted`; NaN where none would.
    "power": ("question", "of", "n", "unit", "could_tell", "wanted", "n_needed", "reason"),
    # One row a checkpoint and variant. `rows`: positions, layers, admissible. `scaling`: raw, unit. `weight`: sigma,
    # sigma_squared. `low`, `high`: 95% interval over the direction prompts, the same at every checkpoint.
    "effective_rank": ("arm", "step", "rows", "scaling", "weight", "value", "low", "high", "n_rows", "reason"),
    # One row an answer of `mechrefusal evaluate` and judge. `side`: harmful or harmless; `group`: HarmBench's
    # functional category. `attack`: none, or the method that made the prompt. `intervention`: none, or what was done to
    # the model. `ended`: the model ended its turn. `kind`: what the judge judges, refusal or harm. `label` and `score`
    # are missing where it gave none; `because` says why, or what decided.
    "verdicts": (
        "arm", "step", "weights", "suite", "side", "group", "category", "prompt_id", "attack", "intervention", "prompt",
        "completion", "n_tokens", "ended", "max_new_tokens", "judge", "kind", "label", "score", "because",
    ),
    # One row a rate of those answers. `by`: all, group or category, `of`: which one. `metric`: any_refusal,
    # full_refusal, partial_refusal, full_compliance, degenerate, attack_success (harmful), answered (harmless), score
    # (mean of a judge's scores). `nulls`: answers that the judge gave nothing for; they are in no rate. HarmBench's
    # copyright rows are in their own group only.
    "suite_rates": (
        "arm", "step", "suite", "side", "attack", "intervention", "judge", "kind", "by", "of", "metric", "value", "low",
        "high", "n", "nulls", *_CORRECTED,
    ),
    # One row a pair of checkpoints and rate, on the prompts that both answered. `pair`: base, consecutive, last (of two
    # arms), or intervention (b: the same checkpoint under it, a: without). `difference` is b minus a with its 95%
    # interval over prompts; `only_a` and `only_b`: prompts that have the outcome at one alone, `mcnemar_p` of
    # the exact test (NaN where the outcome is no 0/1), `p_adjusted` the same for all rows of the judge (Holm).
    # `missing_a`, `missing_b`: prompts not asked at that one.
    "suite_differences": (
        "pair", "arm_a", "step_a", "arm_b", "step_b", "suite", "side", "attack", "intervention", "judge", "metric",
        "difference", "low", "high", "mcnemar_p", "p_adjusted", "mean_a", "mean_b", "only_a", "only_b", "n", "nulls",
        "missing_a", "missing_b",
    ),
    # One row a checkpoint and suite of harmless prompts: cross-entropy of the base model's own answers, mean nats a
    # token, and its difference to that at the base (95% t interval over prompts, paired).
    "answer_losses": (
        "arm", "step", "suite", "loss", "difference", "low", "high", "n",
    ),
    # One row a suite and pair of judges, over all checkpoints. `question`: label, or any_refusal.
    "judge_agreement": ("suite", "judge_a", "judge_b", "question", "share", "kappa", "n", "nulls_a", "nulls_b"),
    # One row a prompt that an evaluation shares with what the run trained on or was measured by. `kind`: exact, near,
    # contained. `similarity`: 1 for exact.
    "leaks": ("set_a", "id_a", "set_b", "id_b", "kind", "similarity", "text", "text_b"),
    # One row a checkpoint, attack made anew against it, and step of the attack: share of its n cases whose prompt of
    # that step succeeds. `loss`: mean target loss, `forward_tokens`: mean tokens run forward a case by then.
    "stress": (
        "arm", "step", "method", "attack_step", "judge", "value", "low", "high", "n", "nulls", "loss",
        "forward_tokens",
    ),
    # One row a pair of checkpoints and method: success at the target of cases that were made against the source.
    "stress_transfer": (
        "arm_source", "step_source", "arm_target", "step_target", "method", "judge", "value", "low", "high", "n",
        "nulls",
    ),
    # One row a checkpoint, attack made anew against it, and rate on the cases whose behaviour has a harmless twin.
    # `suffix`: none, or attacked (behind the twin stands the final suffix of its own behaviour's case). `metric`:
    # answered, refused (in full or in part) of the twins; and of the cases attack_success, robust (the attack fails,
    # the twin with the suffix is answered), refuses_suffix (it fails, the twin with the suffix is refused); what is
    # missing to 1 are degenerate answers to the twin. `judge`: of the success; `twin_judge`: of the twins' answers.
    "stress_control": (
        "arm", "step", "method", "suffix", "metric", "judge", "twin_judge", "value", "low", "high", "n", "nulls",
    ),
    # One row a pair of checkpoints, attack and metric (attack_success, robust, refuses_suffix; attack_loss, nats a
    # token of the target) at the last step of attacks of the same budget on the same behaviours. `pair`: last (of two
    # arms), start (the end of the warm-up, and one trained from there), base, same step, consecutive, other.
    # `difference` is b minus a with its 95% interval over behaviours, paired; `only_a`, `only_b`,
    # `mcnemar_p`, `nulls` as in `suite_differences`.
    "stress_differences": (
        "pair", "arm_a", "step_a", "arm_b", "step_b", "method", "judge", "twin_judge", "metric", "difference", "low",
        "high", "mcnemar_p", "mean_a", "mean_b", "only_a", "only_b", "n", "nulls",
    ),
    # One row a stage of the run: wall time.
    "stages": ("stage", "seconds"),
}  # fmt: skip


ADDED: dict[str, tuple[str, ...]] = {
    "rates": _CORRECTED,
    "gate": _CORRECTED,
    "suite_rates": _CORRECTED,
    "suite_differences": ("p_adjusted",),
    "training": (
        "pool_age", "attack_tokens", "grad_norm", "learning_rate", "seconds_refresh", "seconds_forward",
        "seconds_backward", "seconds_optimizer", "peak_mib",
    ),
    "openings": ("auc_held_out", "offset", "token_ids"),
    "directions": ("zero_distance",),
    "carriers": (
        "exact", *_RULES, "win_frequency", "half_wins", "bypass_zero", "induce_zero", "kl_zero", "admissible_zero",
    ),
    "carrier": (
        "win_frequency", "none_frequency", "margin", "margin_low", "margin_high", "layer_low", "layer_high",
        "n_bootstrap", "n_halves", "layer_half_low", "layer_half_high", "reference_kind", "reference_position",
        "reference_layer", "ablated_to", "bypass_zero", "induce_zero", "kl_zero", "admissible_zero",
        "n_admissible_zero", "zero_distance", "n_harmful", "n_harmless", *_BYPASS_UNSEEN, *_ROUNDING,
    ),
    "subspaces": ("bypass_worst", "induce_worst", "kl_worst", "n_sampled", "share_admissible"),
    "relocation": ("n_to_decide",),
    "attribution_compared": ("p",),
    "patching": ("p",),
    "knockout": ("p",),
    "circuit_nodes": _UNSEEN,
    "circuit_edges": _UNSEEN,
    "head_sets": (
        "held_out_share", "held_out_refusal", "held_out_low", "held_out_high", "held_out_kl", "n_held_out",
    ),
    "drift": ("low", "high", "random"),
    "transfer": (
        "decrease", "decrease_low", "decrease_high", "rise", "rise_low", "rise_high", "random_decrease",
        "decrease_half_low", "decrease_half_high", "decrease_held_out", "decrease_held_out_low",
        "decrease_held_out_high",
    ),
    "effective_rank": ("low", "high"),
    "verdicts": ("max_new_tokens",),
    "cross_patching": ("set", "control_low", "control_high", "control_size", "source_score", "target_score", "p"),
}  # fmt: skip
"""Columns that runs of an earlier version do not have; they are NaN there."""


def columns(name: str) -> tuple[str, ...]:
    """Column names of table `name`, in order."""
    if name in PER_CHECKPOINT:
        return CHECKPOINT + PER_CHECKPOINT[name]
    if name in ACROSS:
        return ACROSS[name]
    raise MechrefusalError(f"unknown table '{name}': expected one of {', '.join([*PER_CHECKPOINT, *ACROSS])}")


def frame(name: str, rows: list[dict] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a table of schema `name`; a missing or an extra column is an error."""
    wanted = list(columns(name))
    table = pd.DataFrame(rows, columns=wanted if len(rows) == 0 else None)
    missing, extra = [c for c in wanted if c not in table], [c for c in table if c not in wanted]
    if missing or extra:
        raise MechrefusalError(
            f"table '{name}' does not fit its schema: missing columns {missing}, extra columns {extra}"
        )
    return table if list(table) == wanted else table[wanted]


def write(table: pd.DataFrame, name: str, folder: Path) -> Path:
    """Write `table` (checked against the schema) to `<folder>/<name>.parquet`."""
    path = Path(folder) / f"{name}.parquet"
    with whole_file(path) as draft:
        frame(name, table).to_parquet(draft, index=False)
    return path


def read(name: str, folder: Path) -> pd.DataFrame:
    """Read `<folder>/<name>.parquet`; an absent file is an empty table of the right columns."""
    path = Path(folder) / f"{name}.parquet"
    if not path.is_file():
        return pd.DataFrame(columns=list(columns(name)))
    try:
        with pq.ParquetFile(path) as file:  # what pandas' own reader asks beside takes twice as long
            table = file.read(use_threads=False).to_pandas(use_threads=False)
    except Exception as error:
        raise MechrefusalError(
            f"{path} cannot be read as parquet ({error}); delete it and run 'mechrefusal measure' again"
        ) from error
    added = [column for column in ADDED.get(name, ()) if column not in table]
    return frame(name, table.assign(**dict.fromkeys(added, float("nan"))) if added else table)
