"""PPO mathematics in numpy float64, written from the papers' equations with plain loops: slow and obvious."""

import math

import numpy as np


def gae(rewards, values, next_values, terminated, ended, gamma, gae_lambda):
    """One row: A[t] = sum over l of (gamma lambda)^l delta[t + l], up to and including the step that ended."""
    num_steps = len(rewards)
    advantages = np.zeros(num_steps)
    for t in range(num_steps):
        for step in range(t, num_steps):
            future = 0.0 if terminated[step] else next_values[step]
            delta = rewards[step] + gamma * future - values[step]
            advantages[t] += (gamma * gae_lambda) ** (step - t) * delta
            if ended[step]:
                break
    return advantages


def discounted_return(rewards, gamma):
    """One row: sum over l of gamma^l reward[t + l]."""
    return np.array([sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))])


def policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, dual_clip=None):
    """Mean over masked tokens of the negative of min(r A, clip(r) A); eq. 7 of the PPO paper."""
    terms = []
    for index in np.ndindex(mask.shape):
        if not mask[index]:
            continue
        ratio = math.exp(logprobs[index] - old_logprobs[index])
        clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
        objective = min(ratio * advantages[index], clipped * advantages[index])
        if dual_clip is not None and advantages[index] < 0:
            objective = max(objective, dual_clip * advantages[index])
        terms.append(-objective)
    return sum(terms) / len(terms)


def value_loss(values, old_values, returns, mask, value_clip_range):
    """Mean over masked tokens of half the larger squared error."""
    terms = []
    for index in np.ndindex(mask.shape):
        if not mask[index]:
            continue
        errors = [values[index] - returns[index]]
        if value_clip_range is not None:
            low, high = old_values[index] - value_clip_range, old_values[index] + value_clip_range
            errors.append(min(max(values[index], low), high) - returns[index])
        terms.append(0.5 * max(error * error for error in errors))
    return sum(terms) / len(terms)


def explained_variance(values, returns, mask):
    v, r = values[mask], returns[mask]
    return 1 - np.var(r - v) / np.var(r)


def kl_estimate(logprobs, ref_logprobs, kind):
    """Schulman's estimators in terms of the probability ratio r = ref / policy."""
    ratio = np.exp(ref_logprobs) / np.exp(logprobs)
    return {"k1": -np.log(ratio), "k2": np.log(ratio) ** 2 / 2, "k3": (ratio - 1) - np.log(ratio)}[kind]


def token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef, kind="k1"):
    rewards = np.zeros(mask.shape)
    for row in range(len(scores)):
        sampled = [t for t in range(mask.shape[1]) if mask[row, t]]
        for t in sampled:
            rewards[row, t] = -kl_coef * kl_estimate(logprobs[row, t], ref_logprobs[row, t], kind)
        rewards[row, sampled[-1]] += scores[row]
    return rewards


def token_logprobs(logits, targets, temperature):
    """Log-probability and entropy of each row, through the probabilities themselves."""
    logprobs, entropies = [], []
    for row, target in zip(np.asarray(logits, dtype=np.float64) / temperature, targets, strict=True):
        weights = np.exp(row - row.max())
        probabilities = weights / weights.sum()
        logprobs.append(math.log(probabilities[target]))
        entropies.append(-sum(p * math.log(p) for p in probabilities if p > 0))
    return np.array(logprobs), np.array(entropies)


def rloo_advantages(scores, group_size):
    advantages = []
    for start in range(0, len(scores), group_size):
        group = list(scores[start : start + group_size])
        for i, score in enumerate(group):
            others = group[:i] + group[i + 1 :]
            advantages.append(score - sum(others) / len(others))
    return np.array(advantages)


def grpo_advantages(scores, penalties, group_size, normalize_std=True):
    """Score against its group in deviations (n - 1) of the scores alone, less penalty against its group."""
    advantages = []
    for start in range(0, len(scores), group_size):
        group, costs = list(scores[start : start + group_size]), list(penalties[start : start + group_size])
        mean, mean_cost = math.fsum(group) / group_size, math.fsum(costs) / group_size
        deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in group) / (group_size - 1))
        scale = deviation + 1e-4 if normalize_std else 1.0
        advantages += [(s - mean) / scale - (c - mean_cost) for s, c in zip(group, costs, strict=True)]
    return np.array(advantages)


def family_terms(logprobs, old_logprobs, advantages, mask, low, high, *, objective="clip", ratio_of="token"):
    """Loss of each masked token, {(row, place): term}, and its slopes, {(row, place): {place of a logprob: slope}}."""
    terms, slopes = {}, {}
    for row in range(mask.shape[0]):
        places = [t for t in range(mask.shape[1]) if mask[row, t]]
        probabilities = {t: (math.exp(logprobs[row, t]), math.exp(old_logprobs[row, t])) for t in places}
        whole = math.prod(new / old for new, old in probabilities.values()) ** (1 / max(len(places), 1))
        for t in places:
            new, old = probabilities[t]
            ratio = whole if ratio_of == "sequence" else new / old
            clipped, advantage = min(max(ratio, 1 - low), 1 + high), advantages[row, t]
            if objective == "cispo":
                terms[row, t] = -clipped * advantage * logprobs[row, t]
                slopes[row, t] = {t: -clipped * advantage}
                continue
            terms[row, t] = -min(ratio * advantage, clipped * advantage)
            slope = -ratio * advantage if ratio * advantage <= clipped * advantage else 0.0
            hangs_on = places if ratio_of == "sequence" else [t]
            slopes[row, t] = {place: slope / len(hangs_on) for place in hangs_on}
    return terms, slopes


def aggregated(terms, slopes, mask, how, constant_tokens=None):
    """(loss, its gradient in the logprobs): the mean of terms over tokens, or over rows of their means or sums."""
    lengths = mask.sum(1)
    num_rows = sum(1 for length in lengths if length)

    def share(row):
        of_row = {"token": 1 / mask.sum(), "sequence": 1 / (num_rows * lengths[row])}
        return of_row[how] if how in of_row else 1 / (num_rows * constant_tokens)

    gradient = np.zeros(mask.shape)
    for (row, _), by_place in slopes.items():
        for place, slope in by_place.items():
            gradient[row, place] += share(row) * slope
    return sum(share(row) * term for (row, _), term in terms.items()), gradient


def reinforce_advantages(rewards, mask, gamma, scores=None, group_size=1):
    """What the masked tokens of a row still earn, a token a step, less the mean score of the row's group."""
    advantages = np.zeros(mask.shape)
    for row in range(mask.shape[0]):
        places = [t for t in range(mask.shape[1]) if mask[row, t]]
        start = row - row % group_size
        baseline = 0.0 if scores is None else math.fsum(scores[start : start + group_size]) / group_size
        for number, t in enumerate(places):
            to_come = [gamma**k * rewards[row, place] for k, place in enumerate(places[number:])]
            advantages[row, t] = math.fsum(to_come) - baseline
    return advantages


def kl_terms(logprobs, old_logprobs, ref_logprobs, mask, kind):
    """As `family_terms`: the KL as a term of the loss, by probabilities; k3 with the ratio, derived by hand."""
    terms, slopes = {}, {}
    for row, t in zip(*np.nonzero(mask), strict=True):
        now, old, ref = (math.exp(x[row, t]) for x in (logprobs, old_logprobs, ref_logprobs))
        if kind == "k2":
            terms[row, t], slopes[row, t] = math.log(now / ref) ** 2 / 2, {t: math.log(now / ref)}
        else:  # now / old * (ref / now - 1 - log(ref / now)) = (ref - now + now log(now / ref)) / old
            terms[row, t] = (ref - now + now * math.log(now / ref)) / old
            slopes[row, t] = {t: now * math.log(now / ref) / old}
    return terms, slopes
