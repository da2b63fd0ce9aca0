"""What the data of a recipe are like: lengths, ends, duplicates, and what training and test share."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rlhfkit.config.recipe import Recipe
from rlhfkit.data import Loaded, find_overlap
from rlhfkit.diagnosis.limits import (
    CHANCE,
    ENOUGH_SIDES,
    FEW_ENDS,
    HARDLY_ENDS,
    LEAK_SHARE,
    MANY_CONTRARY,
    MANY_DOUBLES,
    MUCH_LOST,
    SAME_SIDE,
)
from rlhfkit.doctor.findings import Finding, fault, ok, skipped, warning
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.reward_model import reward_ids
from rlhfkit.records import Demonstration, Preference, Prompt, folded
from rlhfkit.rewards.bag_of_words import share_of_pairs_won
from rlhfkit.training.sft import encode_demonstrations, encode_texts
from rlhfkit.wording import counted

__all__ = [
    "examine_ends",
    "examine_leakage",
    "examine_lengths",
    "examine_pairs",
    "examine_table",
    "examine_unread",
    "plain_text",
    "spaced",
]

NUM_MEASURED = 1000
"""Rows of a table whose tokens are counted."""

Row = Prompt | Demonstration | Preference | str


def spaced(rows: Sequence[Any], num: int) -> list[Any]:
    """At most `num` of the rows, evenly spaced, so that every file and class has its part."""
    return [rows[index * len(rows) // num] for index in range(num)] if len(rows) > num else list(rows)


def plain_text(prompt: Prompt) -> str:
    """The prompt, or the last turn of a conversation."""
    return prompt.content if isinstance(prompt.content, str) else f"{prompt.content[-1].content}\n"


# ── one table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine_table(name: str, loaded: Loaded[Any]) -> Iterator[Finding]:
    """How many rows there are, how many had to be left out, and how many come more than once."""
    label, num = f"data.{name}", len(loaded.records)
    words = counted(num, "row")
    if loaded.skipped:
        words += f"; {len(loaded.skipped):,} of what was read left out, the first: {loaded.skipped[0]}"
    doubles = num - len({_key(row) for row in loaded.records})
    share = doubles / num if num else 0.0
    if doubles:
        words += f"; {share:.1%} are repeated"
    num_read = sum(source.num_rows for source in loaded.sources) or num + len(loaded.skipped)
    if 2 * len(loaded.skipped) > num_read:  # of all that was read, of which the table may take a share only
        yield warning(label, words, "fix the rows: most of the table is lost")
    elif name in ("demonstrations", "preferences", "judge_preferences") and share > MANY_DOUBLES:
        yield warning(label, words, "remove the copies: they weigh as often as they come, and validation sees them too")
    else:
        yield ok(label, words)
    for note in loaded.notes:
        what, _, remedy = note.partition("; ")
        yield warning(label, what, remedy)


def examine_unread(note: str | None) -> Iterator[Finding]:
    """Files and splits that no table reads, as a run's own note says."""
    if note is not None:
        yield ok("data.unread", note.removeprefix("data: "))


def _key(row: Row) -> object:
    match row:
        case Prompt():
            return row.content
        case Demonstration():
            return row.prompt.content, row.response
        case Preference():
            return row.prompt.content, row.chosen, row.rejected
        case _:
            return row


def examine_lengths(
    tables: Mapping[str, Loaded[Any]], recipe: Recipe, encoder: Encoder, *, context: int | None
) -> Iterator[Finding]:
    """Tokens of each table's rows against the limit that cuts them."""
    within = []
    for name, loaded in tables.items():
        rows = spaced(loaded.records, NUM_MEASURED)
        limit, setting, lengths = _limit_and_lengths(name, rows, recipe, encoder)
        if context is not None and context < limit:
            limit, setting = context, "the model's context"
        cut = sum(length > limit for length in lengths) / len(lengths)
        words = f"{_plain(name)} {median(lengths):.0f} (at most {max(lengths)}, "
        if median(lengths) > MUCH_LOST * limit:
            yield warning(
                "data.lengths",
                f"median tokens: {words}{cut:.0%} cut), and {setting} = {limit}, so most of a row is lost",
                f"give {setting} more room, or shorten the rows",
            )
        else:
            within.append(f"{words}{f'{cut:.1%} cut' if cut else 'none cut'})")
    if within:
        yield ok("data.lengths", f"median tokens: {', '.join(within)}")


def _limit_and_lengths(name: str, rows: Sequence[Row], recipe: Recipe, encoder: Encoder) -> tuple[int, str, list[int]]:
    first = rows[0] if rows else None
    if isinstance(first, Preference):
        lengths = [
            len(reward_ids(encoder, pair.prompt, text, finished=True, max_tokens=1 << 30))
            for pair in spaced(rows, NUM_MEASURED // 4)
            for text in (pair.chosen, pair.rejected)
        ]
        return recipe.reward_model.max_tokens, "reward_model.max_tokens", lengths
    if isinstance(first, Demonstration):
        texts, *_ = encode_demonstrations(
            rows,  # type: ignore[arg-type]  # a table holds one kind of row
            encoder,
            max_prompt_tokens=recipe.data.prompt_limit,
            max_tokens=1 << 30,
        )
        return recipe.sft.max_tokens, "sft.max_tokens", [len(text.ids) for text in texts]
    if isinstance(first, str):
        encoded, _ = encode_texts(rows, encoder, max_tokens=1 << 30)  # type: ignore[arg-type]
        return recipe.pretrain.max_tokens, "pretrain.max_tokens", [len(text.ids) for text in encoded]
    lengths = [len(encoder.prompt_ids(prompt)) for prompt in rows if isinstance(prompt, Prompt)]
    return recipe.data.prompt_limit, "data.max_prompt_tokens", lengths


# ── what SFT learns of ends ──────────────────────────────────────────────────────────────────────────────────────────


def examine_ends(
    demonstrations: Sequence[Demonstration], recipe: Recipe, encoder: Encoder, *, context: int | None
) -> Iterator[Finding]:
    """How many demonstrations, as SFT reads them, end with EOS: a model that never sees it never ends a response."""
    name = "data.ends"
    rows = spaced(demonstrations, NUM_MEASURED)
    limit = min(recipe.sft.max_tokens, context or recipe.sft.max_tokens)
    texts, *_ = encode_demonstrations(rows, encoder, max_prompt_tokens=recipe.data.prompt_limit, max_tokens=limit)
    whole = sum(text.ids[-1] in encoder.eos_ids for text in texts) / len(rows)
    words = f"{whole:.1%} of the demonstrations end with EOS within {limit} tokens"
    remedy = "raise sft.max_tokens, shorten the responses, or leave the longest out"
    if whole < HARDLY_ENDS:
        yield fault(name, f"{words}, so the model hardly learns to end", remedy)
    elif whole < FEW_ENDS:
        yield warning(name, words, remedy)
    else:
        yield ok(name, words)
    yield from _long_responses(rows, recipe, encoder)
    yield from _spelt_out(rows, encoder)


def _long_responses(rows: Sequence[Demonstration], recipe: Recipe, encoder: Encoder) -> Iterator[Finding]:
    limit = recipe.rollout.max_response_tokens
    if "ppo" not in recipe.stages or recipe.ppo.min_eos_rate == 0:
        return
    lengths = [len(encoder.response_ids(row.prompt, row.response)) for row in rows]
    fitting = sum(length <= limit for length in lengths) / len(lengths)
    if fitting < recipe.ppo.min_eos_rate:
        yield fault(
            "data.response_length",
            f"{fitting:.1%} of the demonstrated responses fit rollout.max_response_tokens = {limit} (half of them have "
            f"more than {median(lengths):g}), and PPO refuses to start below {recipe.ppo.min_eos_rate:.1%} that end",
            "raise rollout.max_response_tokens, or demonstrate shorter responses",
        )


def _spelt_out(rows: Sequence[Demonstration], encoder: Encoder) -> Iterator[Finding]:
    """EOS as letters in a text is no EOS: the model would learn to write the letters."""
    token = str(encoder.tokenizer.eos_token)
    num = sum(token in row.response for row in rows)
    if num:
        yield warning(
            "data.spelt_out_eos",
            f"{num} of {len(rows)} demonstrations hold the letters {token!r}, which are learnt as text",
            "take them out of the data: EOS is added to every response",
        )


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine_pairs(name: str, pairs: Sequence[Preference]) -> Iterator[Finding]:
    """Whether pairs contradict each other, or go by length."""
    known = Counter((pair.prompt.content, pair.chosen, pair.rejected) for pair in pairs)
    contrary = sum(num for (prompt, chosen, rejected), num in known.items() if (prompt, rejected, chosen) in known)
    if contrary / len(pairs) > MANY_CONTRARY:
        yield warning(
            f"data.{name}",
            f"{contrary / len(pairs):.1%} of the pairs are there the other way round too",
            "let the majority decide, one row a pair",
        )
    longer = share_of_pairs_won([len(pair.chosen) for pair in pairs], [len(pair.rejected) for pair in pairs])
    words = f"{_plain(name)}: the longer response is chosen in {longer:.1%}"
    if len(pairs) >= ENOUGH_SIDES and not 1 - SAME_SIDE < longer < SAME_SIDE:
        side = "longer" if longer > CHANCE else "shorter"
        yield warning(
            "data.choice_by_length",
            f"{words} of {len(pairs):,} pairs, so a reward model can learn length and little else",
            f"add pairs in which the {side} one is worse, or set ppo.length_penalty or brevity_penalty",
        )
    else:
        yield ok("data.choice_by_length", f"{words} of {len(pairs):,} pairs")


# ── training against test ────────────────────────────────────────────────────────────────────────────────────────────


def examine_leakage(tables: Mapping[str, Loaded[Any]]) -> Iterator[Finding]:
    """How many test rows are training rows too, blanks and capitals aside."""
    compared, fine = False, []
    for test, train, why in COMPARED:
        if test not in tables or train not in tables:
            continue
        compared = True
        rows = tables[test].records
        yield from _shared_prompts(test, train, tables)
        leaked = _overlap(tables[train].records, rows)
        share = leaked / len(rows)
        words = f"{leaked:,} of {len(rows):,} {_plain(test)} are among the {_plain(train)}"
        if share > LEAK_SHARE:
            yield fault("data.leakage", f"{words}, {why}", "part the data by prompt: prompt_share, or other rows")
        elif leaked:
            fine.append(f"{words} (short ones meet by chance)")
        else:
            fine.append(words)
    if fine:
        yield ok("data.leakage", "; ".join(fine))
    if not compared:
        yield skipped("data.leakage", "no two tables of which one measures what the other trains")


def _shared_prompts(test: str, train: str, tables: Mapping[str, Loaded[Any]]) -> Iterator[Finding]:
    """Pairs that differ, on prompts that train: a reward model knows what is liked in answer to them."""
    pairs = [tables[name].records for name in (train, test)]
    if not all(isinstance(row, Preference) for rows in pairs for row in rows):
        return
    shared = find_overlap(*([pair.prompt for pair in rows] for rows in pairs))
    if shared > LEAK_SHARE * len(pairs[1]):
        yield warning(
            "data.shared_prompts",
            f"{shared:,} of {len(pairs[1]):,} {_plain(test)} are on prompts of the {_plain(train)}",
            "part the data by prompt: prompt_share in place of rows",
        )


COMPARED = (
    ("test_prompts", "prompts", "so the evaluation measures what was trained on"),
    ("test_prompts", "demonstrations", "so the evaluation measures what SFT has read"),
    ("test_preferences", "preferences", "so the reward model's accuracy is too good"),
    ("judge_preferences", "preferences", "so the judge is not independent of the reward model"),
)


def _overlap(train: Sequence[Row], test: Sequence[Row]) -> int:
    if isinstance(test[0], Preference):
        known = {_folded_pair(pair) for pair in train if isinstance(pair, Preference)}
        return sum(_folded_pair(pair) in known for pair in test if isinstance(pair, Preference))
    return find_overlap(_prompts(train), _prompts(test))


def _prompts(rows: Sequence[Row]) -> list[Prompt]:
    prompts = [row.prompt if isinstance(row, Demonstration) else row for row in rows]
    return [prompt for prompt in prompts if isinstance(prompt, Prompt)]


def _folded_pair(pair: Preference) -> tuple[object, frozenset[object]]:
    """The pair whichever is chosen."""
    return folded(pair.prompt.content), frozenset((folded(pair.chosen), folded(pair.rejected)))


def _plain(table: str) -> str:
    return table.replace("_", " ")
