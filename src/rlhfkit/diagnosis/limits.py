"""The one table of limits: what is healthy, what is worth a caution, what is wrong.

The rules while a run trains and afterwards, the checks before the first update, `rlhfkit doctor`, the verdict, and the
tables in docs/diagnose.md and docs/settings.md all read it, so that none can contradict another. The limits of alarms
are wide on purpose: a rule that speaks up in a healthy run is worse than none. Each stands with what healthy runs were
seen to do.
"""

# ── the data, before anything is trained ─────────────────────────────────────────────────────────────────────────────

MUCH_LOST = 3.0
"""A limit that leaves less than this part of a typical row is worth a message; cutting as such is usual."""
MANY_DOUBLES = 0.1
MANY_CONTRARY = 0.1
LEAK_SHARE = 0.05
"""Short prompts may come twice by chance; a larger share of the test rows was copied."""
SAME_SIDE, ENOUGH_SIDES = 0.8, 20
"""Where people choose the longer response this often, length is most of what a reward model can learn."""
FEW_ENDS, HARDLY_ENDS = 0.8, 0.5
"""Share of the demonstrations that keep their EOS."""

# ── the model and the reward, before anything is trained ─────────────────────────────────────────────────────────────

SPARE_TOKENS = 0.2
"""Models round their number of embeddings up, which leaves a few spare ones; this share is no rounding."""
ORDER_NATS = 0.1
"""How much likelier a text must be than its own tokens in another order, in nats per token."""
# (largest, mean) difference of a token's logprob, in nats, that rounding explains. In bfloat16 the ratio's spread is
# about 0.05 (figures of the RLOO authors), so a single token may differ by several times that.
ROUNDING_NATS = {"float32": (1e-3, 1e-4), "bfloat16": (0.5, 0.05)}
# The same for another engine, whose kernels add up in another order; single tokens stray far in half precision (Yao et
# al. 2025 show it), which the importance weights fix, so that the mean has to tell what is rounding.
ENGINE_ROUNDING_NATS = {"float32": (1e-2, 1e-3), "bfloat16": (5.0, 0.1), "float16": (2.0, 0.02)}
OTHER_TEMPERATURE = 10.0
"""Times the mean difference that rounding explains, beyond which logprobs are those of another temperature."""
STRANGE_DEVIATIONS, STRANGE_NATS = 5.0, 1e-3
"""A mean is this many standard errors off in one of two million cases."""
MOST_CLIPPED_ITERATIONS = 25
"""That a critic may need to come to its returns, where each lets it go as far as the clip range."""
COMMON_SCORE = 0.95
"""Share of the responses that may have the same score: the others alone teach something."""
SOMEWHAT_LENGTH, LITTLE_ELSE = 0.8, 0.95
"""Rank correlation of score and length from which length explains much, or next to everything."""
LARGE_OBSERVATION = 1000.0
"""Beyond which a network learns badly from observations that are not normalised."""

# ── what there is to learn from ──────────────────────────────────────────────────────────────────────────────────────

SIGNAL_ROWS = 3
"""Iterations after which it shows that there is nothing to learn from."""
SAME_SCORES = 0.01
"""Deviation of the scores within a prompt, in that of all scores, below which the prompt alone decides."""
FLAT_SCORES = 1e-6
"""Deviation of scores, or of advantages, below which they are all the same."""
FLAT_SHARE, CLIPPED_SHARE = 0.02, 0.5
SAME_RESPONSES = 0.05
"""Share of different responses to the same prompt below which there is nothing to compare."""
FEW_PROMPTS, EPISODES_OF_FEW_PROMPTS = 3, 16
"""Different prompts in all the data at which a policy learns them by heart. Healthy: 4 and more, in tiny runs."""
EXCHANGES = 8
"""Responses that are given to another prompt before the first update, to see whether the reward reads them."""
TEMPERATURES = (0.3, 2.0)
"""Healthy: 0.7 (Ziegler et al. 2019, Huang et al. 2024) to 1."""

# ── KL to the reference ──────────────────────────────────────────────────────────────────────────────────────────────

# Nats per sequence. Healthy: up to 25. The collapsed seeds of Huang et al. 2024 sit at 50 to 85.
KL_LIMIT, KL_LIMIT_PER_TOKEN = 50.0, 0.5
KL_TIMES_TARGET, LEAST_KL_LIMIT = 4.0, 10.0
KL_CAUTION_TIMES_TARGET = 1.5
KL_PATIENCE = 3
"""Iterations in a row above `ppo.max_ref_kl` before the run stops: a single rollout may be an outlier."""
# Below 0 by chance: 64 sequences at a KL of 0.1 have a mean with deviation 0.06.
NEGATIVE_KL, NEGATIVE_KL_ROWS = -0.1, 3
WEIGHTLESS_KL, LIGHT_KL = 0.01, 0.1
"""What the penalty costs at `KL_LIMIT`, in deviations of the score, below which it holds nothing back, or little."""
USUAL_KL_COEF = 0.05
"""Reward per nat where scores have deviation 1 (Huang et al. 2024)."""

# ── how far an update goes ───────────────────────────────────────────────────────────────────────────────────────────

# Nats per action. Healthy: 0.0005 to 0.07, a single iteration 0.3.
APPROX_KL_LIMIT, APPROX_KL_SPIKE = 0.2, 1.0
USUAL_APPROX_KL = 0.02
# Healthy: up to 0.35; up to 0.55 where the clip range falls to 0.
CLIP_FRACTION_LIMIT, CLIP_FRACTION_LIMIT_FALLING = 0.5, 0.75
USUAL_CLIP_FRACTION = (0.01, 0.2)
GRAD_NORM_FACTOR, GRAD_NORM_OVER_CLIPPING = 30.0, 10.0
# Healthy and slow (Ziegler et al. 2019): approximate KL 0.0005.
STILL_APPROX_KL, STILL_REF_KL, STILL_ROWS = 2e-5, 0.02, 10

# ── the critic ───────────────────────────────────────────────────────────────────────────────────────────────────────

VALUE_LOSS_FACTOR = 5.0
# Healthy: up to 12 iterations until the critic foresees anything; about 0 where all that it can know is the mean.
CRITIC_ROWS, CRITIC_WINDOW, CRITIC_SHARE, LEARNT_VALUE_LOSS = 25, 20, 0.95, 0.05

# ── entropy, length, EOS, variety ────────────────────────────────────────────────────────────────────────────────────

# Healthy: down to 0.014 of the start in a task that is solved, never low without a rise of the score.
DEAD_ENTROPY, LOW_ENTROPY = 0.01, 0.25
HIGH_ENTROPY, UNMOVED_ENTROPY, UNMOVED_SHARE_DONE = 1.5, 0.98, 0.3
# Healthy: from 0.45 to 1.3 of the start.
LENGTH_ROWS, LENGTH_FACTOR, LEAST_GROWTH_TOKENS, SHORT_FACTOR = 2, 2.0, 8.0, 0.25
LENGTH_CAUTION_FACTOR = 1.5
EOS_LOST_FACTOR, HAD_EOS, NO_EOS = 0.5, 0.2, 0.02
MOST_END = 0.5
EOS_CAUTION_DROP = 0.1
"""Points that the EOS rate may fall by. Healthy: responses that are cut now and then, down to 0.7 from 1."""
VARIETY_CAUTION_FACTOR = 0.75
PERPLEXITY_CAUTION_FACTOR = 1.5

# ── the reward ───────────────────────────────────────────────────────────────────────────────────────────────────────

# The first returns are too low: short episodes end first.
FLAT_ROWS, FLAT_RETURN, FLAT_SCORE = 20, 0.25, 0.1
FLAT_SHARE_DONE, HALF_DONE = 0.9, 0.5
"""Share of the training after which a score that has not risen is flat; returns show it at half."""
# In deviations of the score, or in the spread of the returns: a fall below the start, and a rise of which so much is
# left.
FALLEN_SCORE, FALLEN_RETURN, HAD_RISEN, LEFT_OF_RISE = 0.5, 0.2, 0.5, 0.3

# Of evaluations on the way: the judge's score so many standard errors below its best, so many times in a row. Healthy:
# 2 below, once, as the best of several is so by chance too.
FALLEN_ERRORS, FALLEN_EVALUATIONS = 3.0, 2

# ── the stages before, and the evaluation ────────────────────────────────────────────────────────────────────────────

# Of the lowest validation loss. Healthy: up to 1.2, as the held-out rows are few.
OVERFITTING_FACTOR, OVERFITTING_NATS, OVERFITTING_ROWS = 1.3, 0.1, 4
DIVERGED_FACTOR, LEAST_UPDATES = 1.5, 20
FLAT_LOSS = 0.98
# Healthy: a coin for the first third of the updates.
COIN_ACCURACY, COIN_SHARE_DONE = 0.55, 0.9
CHANCE = 0.5
"""Accuracy on pairs, and win rate, of a coin; a claim needs its whole interval on one side of it."""
MANY_CUT = 0.5
"""Share of the demonstrations."""
FEW_COMPARED = 100
"""Held-out prompts below which small differences cannot show."""
FEW_PAIRS = 200
"""Held-out pairs below which even an accuracy of 57 % may be chance."""

GRADIENT_ROUNDING = 1e-5
"""Relative difference of a gradient that the order in which processes are added up explains."""
