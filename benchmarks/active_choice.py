"""Held-out accuracy by number of labels: pairs chosen for what they teach against pairs drawn at random.

    python benchmarks/active_choice.py [--seeds 5] [--noise 0.15] [--json]

The world is the package's grammar, whose true reward is known; simulated people take the worse review with probability
`--noise`. All arms start from the same random labels and buy as many in each round from the same candidates. The small
ensemble on words (no language model) learns from all labels of its arm and is measured against the truth, on pairs
about other restaurants. "chosen" is what the package does: a quarter at random, and everything while choosing shows no
gain; "always chosen" leaves out that caution. Leads are paired by seed.
"""

import argparse
import json
import statistics

import numpy as np
from scipy import stats

from rlhfkit.data import grammar
from rlhfkit.feedback.active.choose import Chosen, choose_pairs
from rlhfkit.feedback.active.ensemble import fit_ensemble
from rlhfkit.feedback.active.features import text_features
from rlhfkit.feedback.active.labelled import LabelledPairs
from rlhfkit.feedback.votes import Pair

FIRST = 60
BATCH = 30
MOST = 300
NUM_CANDIDATES = 1500
NUM_TEST = 1000
ARMS = ("random", "chosen", "always chosen")


def sides(preferences, generator):
    """Pairs with the better review on a random side, and whether that is a."""
    a_is_better = generator.random(len(preferences)) < 0.5
    pairs = []
    for number, (preference, straight) in enumerate(zip(preferences, a_is_better, strict=True)):
        reviews = (preference.chosen, preference.rejected)[:: 1 if straight else -1]
        pairs.append(Pair(str(number), str(preference.prompt.content), *reviews))
    return pairs, a_is_better.astype(float)


def labelled_of(features, votes, lengths, prompts, taken, is_random):
    return LabelledPairs(
        features[taken], votes[taken], np.array(is_random), [prompts[index] for index in taken], lengths[taken]
    )


def accuracy(labelled, features, truth, seed):
    ensemble = fit_ensemble(
        labelled.differences, labelled.labels, generator=np.random.default_rng([seed, 9]), num_heads=20
    )
    return float(((ensemble.probabilities(features).mean(axis=0) > 0.5) == (truth > 0.5)).mean())


def choose(arm, features, labelled, left, prompts, generator):
    if arm == "random":
        return [Chosen(int(index), "random", None) for index in generator.permutation(len(left))[:BATCH]], False
    selection = choose_pairs(
        features[left],
        labelled,
        num=BATCH,
        prompts=[prompts[index] for index in left],
        generator=generator,
        cautious=arm == "chosen",
    )
    return selection.chosen, selection.is_active


def curve(arm, seed, noise):
    """[(number of labels, accuracy)], and how many rounds were chosen."""
    generator = np.random.default_rng([seed, 1])
    pool, truth = sides(grammar.preferences(NUM_CANDIDATES, 8 * seed), generator)
    test, test_truth = sides(grammar.preferences(NUM_TEST, 8 * seed + 1), generator)
    votes = np.where(generator.random(len(pool)) < noise, 1 - truth, truth)
    features = text_features([*pool, *test])
    features /= np.sqrt((features**2).sum(axis=1).mean())
    features, test_features = features[: len(pool)], features[len(pool) :]
    lengths = np.array([float(len(pair.response_a) - len(pair.response_b)) for pair in pool])
    prompts = [pair.prompt for pair in pool]
    taken, is_random, points, num_active = generator.permutation(len(pool))[:FIRST].tolist(), [True] * FIRST, [], 0
    while True:
        labelled = labelled_of(features, votes, lengths, prompts, taken, is_random)
        points.append((len(taken), accuracy(labelled, test_features, test_truth, seed)))
        if len(taken) >= MOST:
            return points, num_active
        left = np.setdiff1d(np.arange(len(pool)), taken)
        chosen, is_active = choose(arm, features, labelled, left, prompts, generator)
        num_active += is_active
        taken += [int(left[one.index]) for one in chosen]
        is_random += [one.reason == "random" for one in chosen]


def interval(values):
    """(mean, low, high) of 95 % by Student's t, since there are few seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    curves = {arm: [curve(arm, seed, args.noise) for seed in range(args.seeds)] for arm in ARMS}
    numbers = [number for number, _ in curves["random"][0][0]]
    by_arm = {arm: [[value for _, value in points] for points, _ in runs] for arm, runs in curves.items()}
    if args.json:
        print(json.dumps({"labels": numbers, "noise": args.noise, "accuracy": by_arm}))
        return
    print(f"accuracy in % (deviation over {args.seeds} seeds); lead over random in points (95 % interval, paired)")
    for column, number in enumerate(numbers):
        cells = [f"{number:4d}"]
        base = [run[column] for run in by_arm["random"]]
        for arm in ARMS:
            values = [100 * run[column] for run in by_arm[arm]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{arm} {statistics.mean(values):5.1f} ({spread:3.1f})")
            if arm != "random":
                lead, low, high = interval([value - 100 * b for value, b in zip(values, base, strict=True)])
                cells.append(f"lead {lead:+4.1f} ({low:+.1f} to {high:+.1f})")
        print("  ".join(cells))
    print({arm: [num for _, num in runs] for arm, runs in curves.items()}, "rounds were chosen, of", len(numbers) - 1)


if __name__ == "__main__":
    main()
