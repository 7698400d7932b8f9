"""How often judges err, measured on answers that people labelled and nobody read while the rules were written.

Any refusal (full or partial) is the positive class. Each data set is split in two by a hash of the prompt; errors were
read on the development half, and these are the counts of the other one, of which only totals were seen before:

| data set | labels | n | sensitivity | specificity | pooled |
|---|---|---|---|---|---|
| chatgpt-refusals | a person's | 709 | 143 of 181 | 481 of 528 | yes |
| GPTFuzz | persons' | 4,004 | 2,673 of 2,904 | 806 of 1,100 | no |
| JAILJUDGE mini | persons' | 529 | 242 of 362 | 160 of 167 | no |

chatgpt-refusals (Reuter and Schulze 2023, arXiv 2306.03423; MIT): gpt-3.5-turbo on loaded questions from Quora and on
orders to write of politicians. `complied` and `disclaimed` are compliance and `rejected` refusal; `redirected`,
`contradicted`, `dontknow`, `counseling` and `incoherent` are other distinctions than refusal, and are left out.

GPTFuzz (Yu et al. 2023, arXiv 2309.10253; MIT): gpt-3.5-turbo on 100 harmful questions under 77 jailbreak templates,
labelled with the bare questions. It is not pooled: it labels whether the jailbreak succeeded, so a refusal that gives
something counts as success; its authors say that some labels are wrong; and both halves share the templates, so that
the held-out answers are not wholly unread.

JAILJUDGE mini (in ThuCCSLab/JailbreakEval; MIT): several models, whether an answer is harmful. Answers that miss the
point are harmless and no refusals there.

The counts hold for answers like those measured. Short refusals of plainly harmful requests are rarer among them than
in a red-teaming suite, and missed less often: a rate that is corrected by these counts is corrected too strongly there.

To measure again, with the files of the repositories maxwellreuter/chatgpt-refusals and sherdencooper/GPTFuzz:

    python scripts/judge_agreement.py all_hand_labeled.json --columns prompt response tone --half held-out \\
        --labels complied=full_compliance disclaimed=full_compliance rejected=full_refusal
    python scripts/judge_agreement.py train.csv evaluate.csv --columns question Response label --half held-out \\
        --labels 0=full_refusal 1=full_compliance --prompts question_list.csv
    python scripts/judge_agreement.py JAILJUDGEmini.csv --columns question answer label --half held-out \\
        --labels 0=full_refusal 1=full_compliance
"""

from mechrefusal.evaluation.judge_error import JudgeCounts

MEASURED: dict[str, dict[str, JudgeCounts]] = {
    "refusal_rules_7": {
        "chatgpt-refusals": JudgeCounts(true_positives=143, positives=181, true_negatives=481, negatives=528),
        "GPTFuzz": JudgeCounts(true_positives=2673, positives=2904, true_negatives=806, negatives=1100),
        "JAILJUDGE mini": JudgeCounts(true_positives=242, positives=362, true_negatives=160, negatives=167),
    }
}
"""Counts by judge and data set, of the halves that were not read."""

POOLED = ("chatgpt-refusals",)
"""Data sets whose labels ask what the judge asks: whether the model refuses."""


def _pooled(counts: dict[str, JudgeCounts]) -> JudgeCounts:
    own = [counts[name] for name in POOLED]
    return JudgeCounts(
        sum(each.true_positives for each in own),
        sum(each.positives for each in own),
        sum(each.true_negatives for each in own),
        sum(each.negatives for each in own),
    )


KNOWN_ERRORS: dict[str, JudgeCounts] = {judge: _pooled(counts) for judge, counts in MEASURED.items()}
"""Counts by judge, over `POOLED`."""


def known_error(judge_name: str) -> JudgeCounts | None:
    """What is known of a judge's errors, by its name; None where nothing was measured."""
    return KNOWN_ERRORS.get(judge_name)
