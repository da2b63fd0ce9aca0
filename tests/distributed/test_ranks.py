"""What ranks tell each other."""

import pytest
import torch

from rlhfkit.distributed.joining import ranks_asked_for
from rlhfkit.distributed.ranks import ALONE, Ranks, alone, on_first, ranks
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.metrics import Metrics
from tests.distributed.together import together


def test_a_process_is_alone_unless_it_is_asked_for_more():
    assert ranks() is ALONE
    assert ranks_asked_for({}) is ALONE
    assert ranks_asked_for({"WORLD_SIZE": "1", "RANK": "0"}) is ALONE


def test_torchruns_variables_say_which_rank_it_is():
    asked = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    asked |= {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert ranks_asked_for(asked) == Ranks(3, 4, 1, 2)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_them_is_refused(missing):
    asked = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    del asked[missing]
    with pytest.raises(ConfigError, match=f"{missing}.*--processes"):
        ranks_asked_for(asked)


@pytest.mark.parametrize("num", [0, 1, 2, 3, 7])
def test_shares_make_up_the_whole(num, tmp_path):
    def work():
        own = [f"row {row}" for row in ranks().share(num)]
        return ranks().put_together(own, num)

    assert together(3, work, tmp_path) == [[f"row {row}" for row in range(num)]] * 3


def test_tensors_are_added_up_on_all_alike(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhfkit.distributed.ranks.BUCKET_ELEMENTS", 4)  # so that there are several buckets

    def work():
        me = ranks().rank + 1
        tensors = [torch.full((2, 3), float(me)), torch.tensor(me), torch.full((3,), 10.0 * me), torch.zeros(0)]
        ranks().add_up(tensors)
        return [tensor.tolist() for tensor in tensors]

    assert together(2, work, tmp_path) == [[[[3.0] * 3] * 2, 3, [30.0] * 3, []]] * 2


def test_gradients_are_added_up_where_some_rank_has_one(tmp_path):
    def work():
        parameters = [torch.zeros(2, requires_grad=True) for _ in range(3)]
        if ranks().rank == 1:
            parameters[0].grad = torch.tensor([1.0, 2.0])
        for parameter in parameters[1:2]:
            parameter.grad = torch.ones(2)
        ranks().add_up_gradients(parameters)
        return [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]

    assert together(2, work, tmp_path) == [[[1.0, 2.0], [2.0, 2.0], None]] * 2


def test_metrics_are_means_over_all_ranks(tmp_path):
    def work():
        metrics = Metrics()
        if ranks().rank != 1:
            metrics.add("loss", torch.tensor(3.0 * (ranks().rank + 1)), 2)
        return ranks().merged(metrics).means()

    assert together(3, work, tmp_path) == [{"loss": 3.0}] * 3


def test_the_first_alone_does_what_is_done_once(tmp_path):
    def work():
        done = []

        def once():
            done.append(ranks())
            return "result"

        return on_first(once), done

    assert together(2, work, tmp_path) == [("result", [ALONE]), ("result", [])]


def test_what_fails_on_purpose_where_it_is_done_once_fails_alike_on_all(tmp_path):
    def work():
        def once():
            raise RewardError("the endpoint answers 500")

        on_first(once)

    found = together(2, work, tmp_path)
    assert [(type(each), str(each)) for each in found] == [(RewardError, "the endpoint answers 500")] * 2


def test_signals_of_any_rank_count_and_the_clock_of_the_first(tmp_path):
    def work():
        return ranks().merged_signals(ranks().rank == 1, ranks().rank == 1)

    assert together(2, work, tmp_path) == [(True, False)] * 2


def test_alone_ends_with_its_block():
    with alone():
        assert ranks() is ALONE
