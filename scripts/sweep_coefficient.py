"""Take a direction out, and put it in, by degrees: refusal, and what it costs the answers to harmless prompts.

    python scripts/sweep_coefficient.py checkpoints/demo --checkpoint sft-step-00070 --n 8
    python scripts/sweep_coefficient.py my-model/ --layer 14 --coefficients 0 0.5 1 1.5 2

Coefficient 1 goes all the way: out to the mean of harmless prompts, in to that of harmful ones. Scores are nats, above
0 a refusal is coming; loss is nats a token of the model's own answers to harmless prompts, kl nats of their next token.
Beside each stands a random direction of the same length. What the first line printed for `make demo`:

    direction of layer 22, 8 requests of either kind

    measure                    kl_harmless  loss_harmless  refusal_harmful  refusal_harmless  refused_harmless
    intervention  coefficient
    ablate        0.0                 0.00           0.24             3.01             -6.88              0.00
                  0.5                 0.01           0.23            -0.66             -6.86              0.00
                  1.0                 0.04           0.24            -4.16             -6.80              0.00
                  1.5                 0.07           0.28            -7.15             -6.76              0.00
    ablate_random 0.0                 0.00           0.24             3.01             -6.88              0.00
                  1.0                 0.00           0.24             2.91             -6.86              0.00
                  1.5                 0.01           0.24             2.86             -6.85              0.00
    induce        0.0                 0.00           0.24             3.01             -6.88              0.00
                  0.5                 0.15           0.33             3.42             -2.26              0.12
                  1.0                 1.68           0.56             3.77              1.74              0.88
                  1.5                 4.44           0.92             4.09              4.63              1.00
    induce_random 0.0                 0.00           0.24             3.01             -6.88              0.00
                  1.0                 0.00           0.24             2.90             -6.88              0.00
                  1.5                 0.01           0.25             2.84             -6.87              0.00

    ablate: 0.002 nats a token for a nat of refusal (random: 0.025)
    induce: 0.443 nats a token for a nat of refusal (random: 0.034)
"""

import argparse
from collections.abc import Sequence

import mechrefusal as mr


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of doses, and what a nat of refusal costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run, one of its checkpoints, a model's folder or hub name")
    parser.add_argument("--checkpoint", default="", help="of the run, such as sft-step-00070; default: its last")
    parser.add_argument("--layer", type=int, default=None, help="of the direction; default: the carrier's")
    parser.add_argument("--coefficients", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5])
    parser.add_argument("--n", type=int, default=8, help="requests of either kind")
    parser.add_argument("--csv", default="", help="file of the whole table, with intervals")
    options = parser.parse_args(arguments)

    play = mr.playground.open(options.source, checkpoint=options.checkpoint)
    validation = mr.prompts.builtin().validation.take(options.n)
    doses = mr.geometry.dose_response(
        play.model,
        play.direction(options.layer),
        validation.harmful,
        validation.harmless,
        play.metric,
        coefficients=sorted({0.0, *options.coefficients}),
    )
    print(f"direction of layer {play.direction(options.layer).layer}, {options.n} requests of either kind\n")
    wide = doses.table.pivot_table(index=["intervention", "coefficient"], columns="measure", values="value")
    print(wide.round(2).to_string())
    print()
    for row in doses.area[doses.area["measure"] == "cost_per_refusal"].itertuples():
        print(f"{row.intervention}: {row.value:.3f} nats a token for a nat of refusal (random: {row.random:.3f})")
    if options.csv:
        doses.table.to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
