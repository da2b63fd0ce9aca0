"""What models write, recite and refuse, on tiny models whose answers are known."""

from dataclasses import replace

import pytest

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import ShapeError
from rlhfkit.probes.catalogue import own_probes, own_scorers
from rlhfkit.probes.compare import compared
from rlhfkit.probes.completions import NUM_WORDS, CompletionRow, measure_completions
from rlhfkit.probes.leakage import Spans, longest_copied, measure_leakage
from rlhfkit.probes.probe import Subject, selected
from rlhfkit.probes.refusals import InstructionRow, RefusalRow, measure_refusals
from rlhfkit.probes.samples import ContinuationRow, measure_continuations, sampled
from rlhfkit.probes.scorers import by_words
from tests.probes.planted import unigram
from tests.tiny import load, save_family

SHORT = RolloutConfig(max_response_tokens=6)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return load(save_family("gpt2", tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="module")
def always_a(tmp_path_factory):
    """Writes nothing but the letter a."""
    return unigram(load(save_family("gpt2", tmp_path_factory.mktemp("always_a"))), {"a": 50.0, " ": 5.0})


def test_the_same_seeds_give_the_same_samples_and_prompts_that_are_alike_share_them(random_model):
    subject = Subject(model=random_model, rollout=SHORT, seed=3)
    first = sampled(subject, ["ab", "cd"], num_samples=2, use="x")
    assert first == sampled(subject, ["ab", "cd"], num_samples=2, use="x")
    assert first != sampled(replace(subject, seed=4), ["ab", "cd"], num_samples=2, use="x")
    one, other = sampled(subject, ["ab", "ab"], num_samples=2, use="x", alike=2)
    assert one == other == first[0] and one[0] != one[1]


def test_samples_of_one_prompt_are_one_cluster_and_the_worst_is_shown_too(always_a):
    rows = [ContinuationRow("ab", "plain"), ContinuationRow("cd", "plain")]
    subject = Subject(model=always_a, rollout=SHORT, num_samples=3)
    scorer = by_words(["aaaaaa"], name="vowels", said="has it")
    share, worst = measure_continuations(subject, rows, name="x", scorers=[scorer])
    assert (len(share.values), set(share.clusters), share.value) == (6, {"0", "1"}, 1.0)
    assert (worst.name, worst.values) == ("vowels_any", (1.0, 1.0))
    assert not share.gate.holds  # one word again and again is no text


def test_hurtful_completions_are_counted_among_k_words(always_a):
    rows = [CompletionRow("the man is", "men"), CompletionRow("the woman is", "women")]
    (found,) = measure_completions(Subject(model=always_a), rows, name="x", lexicon=["zz"])
    assert found.value == 0.0 and found.gate.share <= 1 / NUM_WORDS  # of bytes only a space begins a word
    (found,) = measure_completions(Subject(model=always_a), rows, name="x", lexicon=["AAA"])
    assert found.answers == ("aaa", "aaa") and found.value == 1 / NUM_WORDS


def test_the_longest_copied_span_is_found():
    spans = Spans(["the cat sat on the mat", "a dog ran"])
    assert longest_copied("yes The cat sat on a dog ran", spans) == 4
    assert (longest_copied("nothing", spans), longest_copied("", spans)) == (0, 0)


def test_reciting_is_measured_in_words(always_a):
    (found,) = measure_leakage(Subject(model=always_a, rollout=SHORT), ["x aaaaaa"], name="x", training=["x aaaaaa"])
    assert (found.items, found.answers, found.value) == (("x",), ("aaaaaa",), 1.0)


def test_compliance_of_a_model_that_follows_no_instruction_says_nothing(always_a):
    rows = [RefusalRow("kill a process", "safe"), RefusalRow("harm", "unsafe")]
    panel = [InstructionRow("2+2", ("4",))]
    over, compliance = measure_refusals(Subject(model=always_a), rows, name="x", instructions=panel)
    assert (over.name, over.value, compliance.name, compliance.value) == ("over_refusal", 0.0, "compliance", 1.0)
    found = compared([over, compliance], [over, compliance], primary="", seed=0)
    assert {measure.reading for measure in found} == {"too weak"}


def test_every_probe_of_a_model_runs_and_pairs_with_itself(random_model):
    probes = [each for each in own_probes(max_rows=3, training=["a b c d"]) if each.of == "model"]
    subject = Subject(model=random_model, rollout=SHORT, num_samples=2)
    found = [measurement for probe in probes for measurement in probe.measure(subject)]
    assert {measurement.probe for measurement in found} == {probe.name for probe in probes}
    assert all(measure.p_value == 1.0 for measure in compared(found, found, primary="swaps", seed=0))


def test_a_probe_of_a_reward_says_nothing_of_a_model(random_model):
    (probe,) = selected(own_probes(max_rows=3), ["reward_edits"])
    assert probe.measure(Subject(model=random_model)) == []


def test_models_that_were_measured_on_other_items_are_not_compared(always_a):
    subject = Subject(model=always_a, rollout=SHORT, num_samples=1)
    scorers = own_scorers()[:1]
    (one,) = measure_continuations(subject, [ContinuationRow("ab")], name="x", scorers=scorers)
    (other,) = measure_continuations(subject, [ContinuationRow("cd")], name="x", scorers=scorers)
    with pytest.raises(ShapeError, match="measure both models with the same rows and samples"):
        compared([one], [other], primary="x", seed=0)
