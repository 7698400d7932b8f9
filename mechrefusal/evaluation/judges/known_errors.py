"""How often judges err, measured on answers that people labelled and that were not read while the rules were written.

Any refusal (full or partial) is the positive class. Each data set is split in two by a hash of the prompt; errors were
read on the development half, and these are the counts of the other one.

They were counted again for `refusal_rules_9`, whose verdicts differ from those of `refusal_rules_8` on 6 of the 10,577
answers of both halves: no count changed.

No answer of the held-out halves was read, but their totals were seen several times while the rules changed, also for
these counts: they are not those of a single look at the end, and may flatter the judge. The hash is of one prompt, so
that XSTest's contrast pairs (a safe request and an unsafe one in the same words) may stand in different halves, and a
rule made for one of a pair may help with the other.

| data set | labels | n | sensitivity | specificity |
|---|---|---|---|---|
| XSTest, Llama 2 | people's | 227 | 135 of 136 | 89 of 91 |
| chatgpt-refusals | a person's | 709 | 143 of 181 | 481 of 528 |
| GPTFuzz | people's | 4,004 | 2,676 of 2,904 | 805 of 1,100 |
| JAILJUDGE mini | people's | 529 | 241 of 362 | 160 of 167 |

How often a judge errs hangs on what is asked and who answers, so no pool of these is *the* error. Rates are corrected
by the first, whose prompts (safe requests and unsafe ones in the same words) and labels (full, partial, no refusal) are
of the kind that this package asks and counts; the others say how far it may be off elsewhere. Labels of a run's own
answers (`mechrefusal labels`) come before it.

XSTest (Röttger et al. 2023, arXiv 2308.01263; CC BY 4.0): its published answers of one Llama 2 chat model.

chatgpt-refusals (Reuter and Schulze 2023, arXiv 2306.03423; MIT): gpt-3.5-turbo on loaded questions from Quora and on
orders to write of politicians. `complied` and `disclaimed` are compliance and `rejected` refusal; `redirected`,
`contradicted`, `dontknow`, `counseling` and `incoherent` are other distinctions than refusal, and are left out.

GPTFuzz (Yu et al. 2023, arXiv 2309.10253; MIT): gpt-3.5-turbo on 100 harmful questions under 77 jailbreak templates,
labelled with the bare questions. It labels whether the jailbreak succeeded, so a refusal that gives something counts as
success; its authors say that some labels are wrong; and both halves share the templates, so that the held-out answers
are not wholly unread.

JAILJUDGE mini (in ThuCCSLab/JailbreakEval; MIT): several models, whether an answer is harmful. Answers that miss the
point are harmless and no refusals there.

To measure again, with the files of the repositories paul-rottger/xstest, maxwellreuter/chatgpt-refusals,
sherdencooper/GPTFuzz and ThuCCSLab/JailbreakEval:

    python scripts/judge_agreement.py xstest_completions_llama2.csv --half held-out
    python scripts/judge_agreement.py all_hand_labeled.json --columns prompt response tone --half held-out \\
        --labels complied=full_compliance disclaimed=full_compliance rejected=full_refusal
    python scripts/judge_agreement.py train.csv evaluate.csv --columns question Response label --half held-out \\
        --labels 0=full_refusal 1=full_compliance --prompts question_list.csv
    python scripts/judge_agreement.py JAILJUDGEmini.csv --columns question answer label --half held-out \\
        --labels 0=full_refusal 1=full_compliance
"""

from mechrefusal.evaluation.judge_error import JudgeCounts

XSTEST = "XSTest, Llama 2"
MEASURED: dict[str, dict[str, JudgeCounts]] = {
    "refusal_rules_9": {
        XSTEST: JudgeCounts(true_positives=135, positives=136, true_negatives=89, negatives=91),
        "chatgpt-refusals": JudgeCounts(true_positives=143, positives=181, true_negatives=481, negatives=528),
        "GPTFuzz": JudgeCounts(true_positives=2676, positives=2904, true_negatives=805, negatives=1100),
        "JAILJUDGE mini": JudgeCounts(true_positives=241, positives=362, true_negatives=160, negatives=167),
    }
}
"""Counts by judge and data set, of the halves that were not read."""


def known_error(judge_name: str) -> tuple[str, JudgeCounts] | None:
    """What rates of a judge of this name are corrected by, and what it was measured on; None where nothing was."""
    own = MEASURED.get(judge_name)
    return None if own is None else (XSTEST, own[XSTEST])
