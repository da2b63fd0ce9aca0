"""Pairs and votes for the tests of the exchange: short constructors, hostile content, hypothesis strategies."""

import json

from hypothesis import strategies as st

from rlhfkit.feedback.votes import FLAGS, SKIP_REASONS, Choice, Pair, Vote
from rlhfkit.records import Message

HOSTILE = "<script>alert(1)</script>\r\n'; DROP TABLE pairs; --\0 \u202eابجد 🎉\u2028\\n {{7*7}} "

CHOICES = [
    *(Choice("preference", strength) for strength in (-4, -3, -2, -1, 1, 2, 3, 4)),
    Choice("tie"),
    Choice("both_bad"),
    *(Choice("skip", skip_reason=reason) for reason in SKIP_REASONS),
]


def pair(id="p", prompt="Why?", response_a="Because.", response_b="No idea.", **more):
    return Pair(id, prompt, response_a, response_b, **more)


def vote(pair_id="p", annotator="ann", choice=CHOICES[6], *, id=None, shown_left="a", seconds=1.5, **more):
    name = id or f"vote of {annotator} on {pair_id}"
    return Vote(name, pair_id, annotator, choice, shown_left, seconds, seconds + 1.0, **more)


def chosen(*strengths, pair_id="p"):
    """Votes of different people: a strength, or a kind that is no preference."""
    kinds = {"tie": CHOICES[8], "both_bad": CHOICES[9], "skip": CHOICES[10]}
    return [
        vote(pair_id, f"person {number}", kinds[said] if said in kinds else Choice("preference", said))
        for number, said in enumerate(strengths)
    ]


def write(path, value):
    """Write bytes as they are, text as UTF-8, a list or an object as JSON."""
    if not isinstance(value, bytes):
        value = (value if isinstance(value, str) else json.dumps(value)).encode()
    path.write_bytes(value)
    return path


texts = st.text(max_size=12)
turns = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
conversations = st.lists(turns, min_size=1, max_size=3).map(tuple)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
settings = st.dictionaries(
    st.sampled_from(["temperature", "seed", "weights", "note"]), plain | st.lists(plain, max_size=2), max_size=2
)


@st.composite
def labels(draw):
    """Pairs, and votes of which each person has at most one on each pair."""
    ids = draw(st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=1, max_size=4))
    contents = st.tuples(texts | conversations, texts, texts) | st.tuples(st.just(""), conversations, conversations)
    pairs = []
    for id in ids:
        prompt, one, other = draw(contents)
        pairs.append(
            Pair(
                id,
                prompt,
                one,
                other,
                model_a=draw(texts),
                model_b=draw(texts),
                settings=draw(settings),
                round=draw(st.integers(1, 3)),
                reason=draw(st.sampled_from(["random", "active", "given"])),
                probability=draw(st.none() | st.floats(0, 1)),
                part=draw(st.sampled_from(["train", "test"])),
                is_calibration=draw(st.booleans()),
                origin=draw(texts),
            )
        )
    people = ["ann", "12", "5f1c0000-0000-4000-8000-000000000001", "李"]
    voters = st.tuples(st.sampled_from(ids), st.sampled_from(people))
    seconds = st.floats(0, 1e6)
    flags = st.lists(st.sampled_from(FLAGS), max_size=2).map(tuple)
    votes = [
        Vote(
            f"v{number}",
            pair_id,
            annotator,
            draw(st.sampled_from(CHOICES)),
            draw(st.sampled_from(["a", "b"])),
            draw(seconds),
            draw(seconds),
            flags_a=draw(flags),
            flags_b=draw(flags),
            comment=draw(texts),
            guidelines_version=draw(st.integers(0, 9)),
            language=draw(st.sampled_from(["en", "zh"])),
            created_at=draw(st.floats(0, 4e9)),
            is_surplus=draw(st.booleans()),
        )
        for number, (pair_id, annotator) in enumerate(draw(st.lists(voters, unique=True, max_size=8)))
    ]
    return pairs, votes
