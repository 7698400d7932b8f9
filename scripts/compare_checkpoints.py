"""Compare two checkpoints: what they refuse, where their directions point, whether one's carrier works at the other.

    python scripts/compare_checkpoints.py checkpoints/demo/sft/step-00070 checkpoints/demo/r2d2/step-00070 --n 16
    python scripts/compare_checkpoints.py owner/model@main my-finetuned-model/ --n 16

The same prompts at both, so that differences are paired. Decrease: how far taking a carrier out lowers the refusal
score of harmful prompts, nats; a random direction of the same length stands beside it. What the first line printed for
`make demo`:

    harmful             refused 0.81 and 0.75: -0.06 [-0.25, +0.12], n = 16
    harmless            refused 0.19 and 0.06: -0.12 [-0.36, +0.10], n = 16
    safe, looks unsafe  refused 0.38 and 0.38: +0.00 [-0.12, +0.12], n = 16

    carrier of first at layer 22; carrier of second at layer 22
    cosine of the two directions at the last token: L5 1.00, L10 1.00, L15 1.00, L20 1.00, L25 1.00

    carrier of  at      decrease, nats          random   kl
    first       first   +7.64 [+6.86, +8.42]    +0.03   0.021
    second      first   +7.54 [+6.75, +8.33]    +0.03   0.021
    first       second  +7.49 [+6.75, +8.24]    +0.03   0.017
    second      second  +7.41 [+6.66, +8.17]    +0.03   0.016
"""

import argparse
from collections.abc import Sequence

import mechrefusal as mr


def main(arguments: Sequence[str] | None = None) -> None:
    """Print rates and their paired difference, cosines by layer, and the transfer of carriers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="one of a run's checkpoints, a model's folder or hub name")
    parser.add_argument("second", help="another of the same architecture")
    parser.add_argument("--n", type=int, default=16, help="prompts of each kind")
    options = parser.parse_args(arguments)

    own, named = mr.prompts.builtin(), {"first": options.first, "second": options.second}
    plays = {name: mr.playground.open(source, n=options.n) for name, source in named.items()}
    asked = {
        "harmful": own.evaluation.harmful,
        "harmless": own.evaluation.harmless,
        "safe, looks unsafe": own.overrefusal,
    }
    for kind, prompts in asked.items():
        texts = prompts.take(options.n).texts
        refused = []
        for play in plays.values():
            answers = mr.evaluation.generate(play.model, texts, max_new_tokens=32)
            refused.append([float(mr.evaluation.is_refusal(answer)) for answer in answers])
        change = mr.evaluation.paired_difference(*refused, ids=texts)
        rates = " and ".join(f"{sum(each) / len(each):.2f}" for each in refused)
        interval = f"{change.difference:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        print(f"{kind:19} refused {rates}: {interval}, n = {len(texts)}")

    carriers = {name: play.carrier for name, play in plays.items()}
    print("\n" + "; ".join(f"{one.kind} of {name} at layer {one.layer}" for name, one in carriers.items()))
    taken = [mr.geometry.difference_in_means(play.model, own.direction.take(2 * options.n)) for play in plays.values()]
    n_layers = plays["first"].model.cfg.n_layers
    layers = range(max(1, n_layers // 6), n_layers, max(1, n_layers // 6))
    cosines = [
        f"L{at} {mr.geometry.cosine(*(each.values[each.row(-1), at].numpy() for each in taken)):.2f}" for at in layers
    ]
    print("cosine of the two directions at the last token: " + ", ".join(cosines))

    print("\ncarrier of  at      decrease, nats          random   kl")
    for target, play in plays.items():
        found = mr.geometry.transfer(
            play.model,
            {name: each.direction() for name, each in plays.items()},
            own.validation.take(options.n),
            play.metric,
            target_directions=play.directions,
        )
        for row in found.itertuples():
            decrease = f"{row.decrease:+.2f} [{row.decrease_low:+.2f}, {row.decrease_high:+.2f}]"
            print(f"{row.source:11} {target:7} {decrease:23} {row.random_decrease:+.2f}   {row.kl:.3f}")


if __name__ == "__main__":
    main()
