import pytest
import torch

from rlhfkit.errors import ShapeError
from rlhfkit.padding import Sequences, largest_microbatch, length_buckets, microbatches, pack, pack_rows, pad_right

PAD = 9
CPU = torch.device("cpu")


def example() -> Sequences:
    return Sequences.join([[1, 2, 3], [4]], [[5, 6], [7, 8, 0, 1]], pad=PAD)


def test_rows_are_filled_up_on_the_right():
    assert pad_right([[1, 2, 3], [], [4]], pad=PAD).tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]]
    assert pad_right([[1]], pad=PAD).dtype == torch.long
    assert pad_right([], pad=PAD).numel() == 0


# ── sequences ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prompt_and_response_are_contiguous_and_only_responses_count():
    sequences = example()
    assert sequences.ids.tolist() == [[1, 2, 3, 5, 6], [4, 7, 8, 0, 1]]
    assert sequences.prompt_tokens.tolist() == [3, 1]
    assert sequences.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert len(sequences) == 2


def test_a_token_is_predicted_one_place_before_it():
    rows, positions, targets = example().predicting()
    assert rows.tolist() == [0, 0, 1, 1, 1, 1]
    assert positions.tolist() == [2, 3, 0, 1, 2, 3]
    assert targets.tolist() == [5, 6, 7, 8, 0, 1]


def test_tokens_that_the_policy_did_not_sample_are_not_predicted():
    """Such as what a tool answered in the middle of a response."""
    masks = [[True, False], [False, True, False, True]]
    sequences = Sequences.join([[1, 2, 3], [4]], [[5, 6], [7, 8, 0, 1]], pad=PAD, masks=masks)
    rows, positions, targets = sequences.predicting()
    assert list(zip(rows.tolist(), positions.tolist(), targets.tolist(), strict=True)) == [
        (0, 2, 5),
        (1, 1, 8),
        (1, 3, 1),
    ]


def test_length_counts_up_to_the_last_token_that_counts():
    masks = [[True, False], [False, True, False, False]]
    sequences = Sequences.join([[1, 2, 3], [4]], [[5, 6], [7, 8, 0, 1]], pad=PAD, masks=masks)
    assert sequences.lengths().tolist() == [4, 3]
    assert example().lengths().tolist() == [5, 5]
    assert Sequences.join([[1, 2], [3]], [[], [4]], pad=PAD).lengths().tolist() == [2, 2]
    assert Sequences.join([[1, 2], [3]], [[], []], pad=PAD).lengths().tolist() == [2, 1]


def test_rows_are_taken_by_index():
    row = example()[torch.tensor([1])]
    assert row.ids.tolist() == [[4, 7, 8, 0, 1]]
    assert row.prompt_tokens.tolist() == [1]
    assert row.mask.tolist() == [[True] * 4]


def test_trimmed_rows_lose_the_padding_that_none_needs_and_nothing_else():
    sequences = Sequences.join([[1], [2, 3], [4] * 7], [[5], [6], [7] * 5], pad=PAD)
    short = sequences[torch.tensor([0, 1])]
    assert short.ids.shape == (2, 12)
    trimmed = short.trimmed()
    assert trimmed.ids.tolist() == [[1, 5, 9], [2, 3, 6]]
    assert torch.equal(trimmed.mask, short.mask)
    for ours, theirs in zip(trimmed.predicting(), short.predicting(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ShapeError, match="start with BOS"):
        Sequences.join([[1], []], [[2], [3]], pad=PAD)


def test_each_prompt_needs_one_response():
    with pytest.raises(ValueError, match="argument"):
        Sequences.join([[1], [2]], [[3]], pad=PAD)


# ── microbatches ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "groups"),
    [
        ([], 10, []),
        ([3], 10, [[0]]),
        ([2, 5, 3, 5], 10, [[1, 3], [2, 0]]),  # two of 5 are 10; 3 and 2, padded to 3, are 6
        ([2, 5, 3, 5], 9, [[1], [3], [2, 0]]),
        ([4, 4, 4], 12, [[0, 1, 2]]),
        ([4, 4, 4], 11, [[0, 1], [2]]),
        ([99, 1, 1], 10, [[0], [1, 2]]),
    ],
)
def test_groups_are_of_like_length_and_stay_within_the_limit(lengths, max_tokens, groups):
    assert length_buckets(lengths, max_tokens=max_tokens, device=CPU) == groups


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([100, 68, 68], [[0, 1, 2]]),  # 64 tokens of padding are as good as another pass
        ([100, 68, 67], [[0, 1], [2]]),
        ([90] * 9 + [25], [list(range(9)), [9]]),
        ([100, 30, 30, 30], [[0], [1, 2, 3]]),
        ([100, 90, 80, 70, 60], [[0, 1, 2, 3], [4]]),  # 0 + 10 + 20 + 30
    ],
)
def test_no_group_has_more_padding_than_another_pass_costs(lengths, groups):
    assert length_buckets(lengths, max_tokens=10_000, device=CPU) == groups
    assert length_buckets(lengths, max_tokens=10_000, device=torch.device("cuda")) == [list(range(len(lengths)))]


def test_the_largest_microbatch_is_looked_for_in_minibatches_spread_over_all_rows():
    # minibatches 100, 100, 30, 30 and 99, 30, 30, 30: packed in rows of 100 and 99, padded in groups of like length
    lengths, gpu = [100, 99, 100, 30, 30, 30, 30, 30], torch.device("cuda")
    assert largest_microbatch(lengths, rows=4, device=CPU) == 3 * 100
    assert largest_microbatch(lengths[1::2], rows=4, device=CPU) == 2 * 99
    assert largest_microbatch(lengths, rows=4, device=gpu) == 4 * 100
    assert largest_microbatch([7, 7], rows=32, device=CPU) == 14
    assert largest_microbatch([], rows=32, device=CPU) == 0


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "groups"),
    [
        ([], 10, []),
        ([3], 10, [[0]]),
        ([2, 5, 3, 5], 15, [[1, 3, 2, 0]]),  # 5, 5 and 3 + 2
        ([2, 5, 3, 5], 10, [[1, 3], [2, 0]]),
        ([2, 5, 3, 5], 9, [[1], [3], [2, 0]]),
        ([4, 1, 6, 5], 12, [[2, 3], [0, 1]]),  # neither 6 nor 5 leave room for the 4, so it begins anew
        ([99, 1, 1], 10, [[0], [1, 2]]),
    ],
)
def test_microbatches_of_a_cpu_are_packed_and_stay_within_the_limit(lengths, max_tokens, groups):
    assert microbatches(lengths, max_tokens=max_tokens, device=CPU) == groups


def test_long_rows_of_many_lengths_are_padded_since_attention_would_cost_more():
    """Packed, two passes at most save eight; but each token would meet 600 places in place of 340 in the mean."""
    lengths = list(range(80, 601, 20))
    padded = length_buckets(lengths, max_tokens=8192, device=CPU)
    assert microbatches(lengths, max_tokens=8192, device=CPU) == padded
    short = [length // 4 for length in lengths]
    assert (
        len(microbatches(short, max_tokens=8192, device=CPU))
        == 1
        < len(length_buckets(short, max_tokens=8192, device=CPU))
    )


def test_microbatches_of_a_gpu_are_padded():
    lengths = [2, 5, 3, 5]
    device = torch.device("cuda")
    expected = length_buckets(lengths, max_tokens=15, device=device)
    assert microbatches(lengths, max_tokens=15, device=device) == expected == [[1, 3, 2], [0]]


# ── packing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_packed_longest_first_where_they_fit():
    packed = pack([[1, 2], [3, 4, 5], [6], [7, 8, 0, 1]], [1, 2, 0, 1], max_tokens=6, pad=PAD)
    assert packed.ids.tolist() == [[7, 8, 0, 1, 1, 2], [3, 4, 5, 6, PAD, PAD]]
    assert packed.segments.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    # Row 0 is learnt from 1, row 1 from 2, row 3 from 1; the single token of row 2 has nothing before it.
    assert packed.targets.int().tolist() == [[0, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]]


def test_a_row_longer_than_the_limit_has_a_bin_of_its_own():
    packed = pack([[1, 2, 3], [4]], [1, 1], max_tokens=2, pad=PAD)
    assert packed.ids.tolist() == [[1, 2, 3], [4, PAD, PAD]]


def test_nothing_packed_is_nothing():
    assert pack([], [], max_tokens=5, pad=PAD).ids.shape == (0, 0)


def test_a_query_sees_its_own_sequence_up_to_itself():
    allowed = pack([[1, 2], [3, 4, 5]], [1, 1], max_tokens=5, pad=PAD).allowed()
    assert allowed[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


IDS = torch.tensor([[1, 5, 0, 0, 0, 0], [2, 3, 6, 7, 0, 0], [4, 4, 4, 8, 8, 8]])


def test_rows_are_laid_side_by_side_where_there_is_room():
    packed = pack_rows(IDS, torch.tensor([1, 3, 5]))
    assert packed is not None
    assert packed.ids.tolist() == [[4, 4, 4, 8, 8], [2, 3, 6, 1, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert packed.segments.tolist() == [[3] * 5, [2, 2, 2, 1, 0]]
    assert packed.row_of.tolist() == [1, 1, 0]
    assert packed.start_of.tolist() == [3, 0, 0]
    assert packed.allowed()[1].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_what_is_known_of_tokens_goes_with_them():
    packed = pack_rows(IDS, torch.tensor([1, 3, 5]), torch.arange(3 * 6.0).view(3, 6, 1))
    assert packed.stem.squeeze(-1).tolist() == [[12, 13, 14, 15, 16], [6, 7, 8, 0, 0]]


def test_rows_that_would_not_be_fewer_are_not_packed():
    assert pack_rows(IDS, torch.tensor([4, 4, 4])) is None
    assert pack_rows(IDS[:1], torch.tensor([2])) is None
