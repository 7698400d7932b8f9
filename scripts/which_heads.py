"""Which heads carry refusal: patched from a harmful prompt into a harmless one, and what they write.

    python scripts/which_heads.py checkpoints/demo --checkpoint sft-step-00070 --n 4
    python scripts/which_heads.py my-model/ --n 16 --html heads.html

Moved: change of the refusal score when the head's output is copied from the harmful prompt's run, nats, with its 95%
interval over pairs; p is adjusted for all heads. Written: what the head adds to (refusal − compliance) logits, harmful
minus harmless. A head may move refusal without writing it, by what later heads read from it. With four pairs
no p can be small: take six or more to tell a head from nothing. What the first line printed for `make demo`:

    4 pairs; 30 layers of 9 heads

    head        moved, nats            p      written, logits
    L21.H4     +1.68 [+1.06, +2.30]      0.250  +0.13
    L14.H2     +1.66 [+0.49, +2.82]      0.750  +0.01
    L10.H6     +1.28 [+1.03, +1.52]      0.250  -0.00
    L29.H1     +1.08 [+0.35, +1.80]      0.750  +0.78
    L14.H8     +1.03 [+0.29, +1.77]      1.000  +0.03
    L12.H4     +1.02 [+0.03, +2.00]      1.000  -0.03
    L21.H6     +0.98 [+0.69, +1.26]      0.250  +0.09
    L13.H6     +0.93 [-0.28, +2.15]      1.000  +0.01
"""

import argparse
from collections.abc import Sequence

import mechrefusal as mr


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the strongest heads; draw all of them into a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run, one of its checkpoints, a model's folder or hub name")
    parser.add_argument("--checkpoint", default="", help="of the run, such as sft-step-00070; default: its last")
    parser.add_argument("--n", type=int, default=8, help="pairs of a harmful and a harmless prompt of equal length")
    parser.add_argument("--top", type=int, default=8, help="heads to print")
    parser.add_argument("--html", default="", help="file of the figure, layer × head")
    options = parser.parse_args(arguments)

    play = mr.playground.open(options.source, checkpoint=options.checkpoint)
    asked = mr.prompts.builtin()
    pairs = asked.pairs.equal_length(play.model.tokenizer)[: options.n]
    heads = mr.causal.patching.heads(play.model, pairs, play.metric)
    harmful, harmless = pairs.harmful.texts, pairs.harmless.texts
    written = mr.attribution.compare(
        play.model, harmful, harmless, mr.attribution.RefusalLogits(play.metric), paired=True
    )
    print(f"{len(pairs)} pairs; {play.model.cfg.n_layers} layers of {play.model.cfg.n_heads} heads\n")
    print("head        moved, nats            p      written, logits")
    for layer, head in heads.top(options.top):
        at = heads.table[(heads.table["layer"] == layer) & (heads.table["head"] == head)].iloc[0]
        moved = heads.interval(layer=layer, head=head)
        writes = written[(written["layer"] == layer) & (written["head"] == head)]["difference"].iloc[0]
        interval = f"{moved.value:+.2f} [{moved.low:+.2f}, {moved.high:+.2f}]"
        print(f"L{layer}.H{head:<5} {interval:25} {at['p']:.3f}  {writes:+.2f}")
    if options.html:
        figure = mr.report.figures.layer_by_head(heads, value="raw", title="Heads, patched one at a time", unit="nats")
        figure.write_html(options.html)


if __name__ == "__main__":
    main()
