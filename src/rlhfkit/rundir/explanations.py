"""What `explanation.json` holds, and a panel in `observations.jsonl`: why responses are as they are, token by token."""

from rlhfkit.rundir.results import Results

__all__ = [
    "Attribution",
    "Completeness",
    "DeletionCheck",
    "Divergence",
    "Explained",
    "Explanation",
    "Lens",
    "LensToken",
    "PartEffect",
    "Position",
    "Reasons",
    "Shift",
    "TokenNumbers",
]


class TokenNumbers(Results):
    """What PPO sees of each token of a response; lists of one length, a number a token."""

    text: tuple[str, ...]
    """The tokens as text; a special token by its name."""
    logprob: tuple[float, ...]
    """Log-probability under the policy that sampled it, in nats, at the sampling temperature."""
    ref_logprob: tuple[float, ...]
    """The same under the reference."""
    reward: tuple[float, ...]
    """What the estimator of advantages gets: the KL penalty, and at the last token the score after penalties too."""
    value: tuple[float, ...] | None = None
    """What the critic expected before the token; None without a critic."""
    advantage: tuple[float, ...] | None = None
    """How much better than expected; None where only a whole batch or group could say it."""
    returns: tuple[float, ...] | None = None
    """What the critic learns: advantage before whitening + value."""
    is_whitened: bool = False
    """Whether the advantages are as the loss took them, whitened over a whole rollout."""
    ratio: tuple[float, ...] | None = None
    """Probability in the last epoch of the update / that at rollout; None outside of an update."""
    is_clipped: tuple[bool, ...] | None = None
    """Whether the ratio was out of the clip range there."""

    @property
    def kl(self) -> tuple[float, ...]:
        """Estimate k1 of the KL to the reference at each token, in nats; its sum is the logged KL of the response."""
        return tuple(own - ref for own, ref in zip(self.logprob, self.ref_logprob, strict=True))


class Shift(Results):
    """A token whose probability PPO has changed."""

    text: str
    """The token."""
    before: float
    """Its probability under the reference."""
    after: float
    """Its probability under the policy."""


class Position(Results):
    """What PPO has changed where one token of the response is drawn."""

    kl: float
    """KL(policy || reference) over the whole vocabulary, in nats; exact, not sampled."""
    up: tuple[Shift, ...]
    """The tokens that gained most probability, most first."""
    down: tuple[Shift, ...]
    """Those that lost most."""


class Divergence(Results):
    """Where the likeliest responses of reference and policy part."""

    before: str
    """The reference's response, a likeliest token at each place."""
    after: str
    """The policy's."""
    shared: str = ""
    """What both begin with."""
    index: int | None = None
    """Place of the first token that differs, from 0; None where none does."""
    old: Shift | None = None
    """The reference's token there; None where only one of them goes on."""
    new: Shift | None = None
    """The policy's."""


class DeletionCheck(Results):
    """What the reward says once the tokens that an attribution names are gone, against tokens drawn at random."""

    num_deleted: tuple[int, ...]
    """Tokens that are gone."""
    scores: tuple[float, ...]
    """Score without the tokens with the highest attribution."""
    random_scores: tuple[float, ...]
    """Mean score without as many tokens at random."""
    drop: float
    """Mean of (score of all - score of what is left) over the numbers of tokens: AOPC."""
    random_drop: float
    """The same at random, in the mean."""
    p_value: float
    """Share of the random orders, itself included, that drop at least as far."""
    is_faithful: bool
    """Whether that share is at most 5 %."""


class Completeness(Results):
    """Whether attributions add up to what they share out."""

    total: float
    """Their sum."""
    expected: float
    """Score of the response - score of the baseline."""
    error: float
    """The difference, as a share of what is expected."""
    num_steps: int
    """Points on the way from the baseline."""
    is_complete: bool
    """Whether the error is below 5 %."""


class Attribution(Results):
    """How much of the score one method owes to each token."""

    method: str
    """As "ablation of single tokens"."""
    values: tuple[float, ...]
    """A number a token, in the reward's unit."""
    check: DeletionCheck | None = None
    """None for a response that is too short to leave tokens out."""
    completeness: Completeness | None = None
    """For methods that share out a whole."""

    @property
    def may_be_drawn(self) -> bool:
        """Whether the numbers say of the reward what they claim to say."""
        complete = self.completeness is None or self.completeness.is_complete
        return complete and self.check is not None and self.check.is_faithful


class PartEffect(Results):
    """A part of the response, and what the score loses without it."""

    text: str
    """The part."""
    effect: float
    """Score of the whole - score without the part."""


class Reasons(Results):
    """Why the reward gave a response its score."""

    source: str
    """What scored, as "reward model"."""
    score: float
    """Its score, before PPO's penalties."""
    prefix_scores: tuple[float, ...] | None = None
    """A hint: the score if the response ended with each token; the last one is the score itself."""
    attributions: tuple[Attribution, ...] = ()
    """Shares of the tokens, a method each."""
    spans: tuple[PartEffect, ...] = ()
    """What the score owes to runs of words between punctuation marks."""
    sentences: tuple[PartEffect, ...] = ()
    """What it owes to sentences."""
    notes: tuple[str, ...] = ()
    """What could not be computed, and why."""


class LensToken(Results):
    """The rise of one token through the layers: its probability if the network ended after each."""

    index: int
    """Place in the response."""
    new: str
    """The policy's likeliest token there."""
    old: str
    """The reference's."""
    new_after: tuple[float, ...]
    """Probability of the new token after each layer of the policy."""
    old_after: tuple[float, ...]
    """Of the old token there."""
    new_before: tuple[float, ...]
    """Of the new token after each layer of the reference."""
    overtakes: int | None = None
    """First layer of the policy, from 1, from which on the new token stays above the old one."""


class Lens(Results):
    """Logit lens before and after: the head applied to what each layer leaves behind."""

    kl: tuple[float, ...]
    """Mean over the response of KL(policy || reference) as the lens reads each layer, in nats."""
    agreement: tuple[float, ...]
    """Share of places at which a layer of the policy names the token that its last layer names."""
    tokens: tuple[LensToken, ...] = ()
    """The places where the likeliest token has changed, those with most KL first."""


class Explained(Results):
    """One response, explained."""

    prompt: str
    """As the policy read it."""
    response: str
    """Without special tokens."""
    finish_reason: str
    """eos, stop or length."""
    score: float
    """What the reward said."""
    shaped_score: float
    """The same after clipping and penalties: what PPO maximises."""
    ref_kl: float
    """KL to the reference in nats summed over the response, as logged."""
    kl_coef: float
    """Its price."""
    tokens: TokenNumbers
    """Token by token."""
    positions: tuple[Position, ...] | None = None
    """What PPO has changed at each token."""
    iteration: int | None = None
    """The iteration of PPO that it belongs to; None for the finished policy."""
    is_of_rollout: bool = False
    """Whether PPO learnt from it, rather than its prompt being on the panel."""
    divergence: Divergence | None = None
    """Where the likeliest responses part."""
    reasons: Reasons | None = None
    """Why the reward scored so."""
    lens: Lens | None = None
    """Where inside the change is."""


class Explanation(Results):
    """What `explanation.json` holds."""

    policy: str
    """Where the explained model lies."""
    reference: str
    """Where what it is compared with lies."""
    reward_name: str
    """What scored."""
    temperature: float
    """Of sampling; probabilities are at this temperature."""
    notes: tuple[str, ...] = ()
    """What a reader has to know of all responses."""
    prompts: tuple[Explained, ...] = ()
    """A response to each prompt."""
