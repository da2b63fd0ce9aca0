import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.errors import StoreError
from rlhfkit.feedback.votes import Choice, Side, Vote
from rlhfkit.rundir.find import find_run
from rlhfkit.rundir.tail import MOST_POINTS, Mark, new_curves, new_samples, samples_at, thinned
from rlhfkit.web import app as app_module
from rlhfkit.web.dashboard import dashboard_link, dashboard_router
from rlhfkit.web.site import LANGUAGES
from tests.feedback.labelling import Visitor, open_store
from tests.feedback.run_directories import STAGES, append, make_run, ppo_row, sample_row
from tests.report.studies import make_study, study

STATIC = Path(app_module.__file__).parent / "static"
PATHS = ("runs", "labels", "metrics?run=demo", "samples?run=demo", "trust?run=demo", "cluster?run=demo")
HOSTILE = "<script>alert(1)</script>"


def looker(runs: Path, store: Any = None, *, name: str | None = None, owners: Any = (), **options: Any) -> Visitor:
    """Somebody with a browser, at this machine unless `client` says otherwise."""
    return Visitor(
        store,
        name,
        routers=[dashboard_router(runs, store=store, owners=owners)],
        links=[dashboard_link(owners=owners)],
        **options,
    )


def got(visitor: Visitor, what: str, **values: Any) -> Any:
    return visitor.http.get(f"/api/dashboard/{what}", params=values).raise_for_status().json()


def cast(store: Any, name: str, pair_id: str, choice: Choice, *, left: Side = "a") -> None:
    store.vote(Vote(str(uuid.uuid4()), pair_id, name, choice, left, active_seconds=9.0, wall_seconds=12.0))


# ── no way out of the directory ──────────────────────────────────────────────────────────────────────────────────────


def test_id_leads_nowhere_outside_the_directory_of_runs(tmp_path):
    outside = make_run(tmp_path / "outside")
    append(outside.metrics, ppo_row(0))
    runs = tmp_path / "runs"
    make_run(runs / "demo")
    (runs / "link").symlink_to(outside.path)
    (runs / "alias").symlink_to(runs / "demo")
    (runs / "group").mkdir()
    (runs / "group" / "up").symlink_to(tmp_path)
    bad = [
        *(
            "../outside",
            "demo/../../outside",
            "..",
            "/",
            str(outside.path),
            f"/{outside.path}",
            "link",
            "alias",
            "demo/",
            "./demo",
        ),
        *("group/up/outside", "demo\0", "demo/\0", "..\\outside", "//demo", "none", "demo/config.json", "x" * 900),
    ]
    visitor = looker(runs)
    for id in bad:
        assert find_run(runs, id) is None, id
        for what in ("metrics", "samples", "trust"):
            reply = visitor.http.get(f"/api/dashboard/{what}", params={"run": id})
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "run_gone"), (what, id)
    assert [run["id"] for run in got(visitor, "runs")["runs"]] == ["demo"]
    assert visitor.http.get("/api/dashboard/metrics", params={"run": "demo"}).status_code == 200


@pytest.mark.parametrize("make", ["link", "pipe", "directory"])
def test_file_that_is_none_of_the_run_is_not_opened(tmp_path, make):
    secret = tmp_path / "secret.jsonl"
    append(secret, ppo_row(0), sample_row(0, "secret"))
    run = make_run(tmp_path / "runs" / "demo")
    for path in (run.metrics, run.samples, run.trust, run.cluster):
        if make == "link":
            path.symlink_to(secret)
        elif make == "pipe":
            os.mkfifo(path)  # to open one is to wait for a writer
        else:
            path.mkdir()
    visitor = looker(tmp_path / "runs")
    for what in ("metrics", "samples", "trust", "cluster"):
        reply = visitor.http.get(f"/api/dashboard/{what}", params={"run": "demo"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "run_damaged")
        assert "secret" not in reply.text
    assert [run["state"] for run in got(visitor, "runs")["runs"]] == ["stopped"]


# ── curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_new_lines_are_sent_and_a_half_written_one_waits(tmp_path):
    run = make_run(tmp_path / "demo")
    append(run.metrics, ppo_row(0), ppo_row(1))
    whole = json.dumps(ppo_row(2)) + "\n"
    with run.metrics.open("a") as file:
        file.write(whole[:20])
    first = new_curves(run, Mark())
    assert first.curves["ppo"][""]["score/mean"] == [(0, 0.0), (1, 0.1)]
    assert (first.is_new, first.has_more, first.num_damaged) == (True, False, 0)
    second = new_curves(run, first.mark)
    assert (second.curves, second.is_new, second.mark) == ({}, False, first.mark)
    with run.metrics.open("a") as file:
        file.write(whole[20:])
    third = new_curves(run, second.mark)
    assert third.curves["ppo"][""]["score/mean"] == [(2, 0.2)]
    assert not third.is_new
    assert third.mark.offset == run.metrics.stat().st_size


def test_file_that_was_cut_written_anew_or_removed_is_read_from_its_beginning(tmp_path):
    run = make_run(tmp_path / "demo")
    append(run.metrics, *(ppo_row(number) for number in range(6)))
    mark = new_curves(run, Mark()).mark
    run.metrics.write_text("")
    append(run.metrics, *(ppo_row(number, kl_coef=0.5) for number in range(9)))  # a new attempt, longer than before
    again = new_curves(run, mark)
    assert again.is_new
    assert again.curves["ppo"][""]["kl_coef"] == [(number, 0.5) for number in range(9)]
    run.metrics.write_text(json.dumps(ppo_row(0)) + "\n")  # shorter
    assert new_curves(run, again.mark).is_new
    run.metrics.unlink()
    gone = new_curves(run, again.mark)
    assert (gone.is_new, gone.mark, gone.curves) == (True, Mark(0, ""), {})


def test_control_curves_go_by_steps_and_are_apart_for_each_seed(tmp_path):
    run = make_run(tmp_path / "pole", stages=["control"])
    for seed in (3, 4):
        rows = [
            {"stage": "control", "iteration": 0, "seed": seed, "env_steps": 96.0, "episode_return/mean": 20.0 + seed}
        ]
        append(run.metrics, *rows)
    assert new_curves(run, Mark()).curves["control"] == {
        "3": {"env_steps": [(96.0, 96.0)], "episode_return/mean": [(96.0, 23.0)]},
        "4": {"env_steps": [(96.0, 96.0)], "episode_return/mean": [(96.0, 24.0)]},
    }


def test_thinning_keeps_highs_lows_and_both_ends():
    points = [(float(number), 0.0) for number in range(10_000)]
    points[1234] = (1234.0, 99.0)
    points[7777] = (7777.0, -99.0)
    few = thinned(points, 100)
    assert len(few) <= 100
    assert {points[0], points[1234], points[7777], points[-1]} <= set(few)
    assert few == sorted(few)
    assert thinned(points[:100], 100) == points[:100]


@pytest.mark.thorough
def test_long_file_comes_in_parts_thinned_and_quickly(tmp_path):
    run = make_run(tmp_path / "demo")
    line = json.dumps(ppo_row(0, **{f"other/{number}": 0.123456 for number in range(20)}))[
        len('{"stage": "ppo", "iteration": 0') :
    ]
    with run.metrics.open("w") as file:
        file.writelines(f'{{"stage": "ppo", "iteration": {number}{line}\n' for number in range(100_000))
    mark, xs, num_parts, begin = Mark(), [], 0, time.perf_counter()
    has_more = True
    while has_more:
        part = new_curves(run, mark, only=["score/mean"])
        assert part.is_new == (num_parts == 0)
        xs += [x for x, _ in part.curves["ppo"][""]["score/mean"]]
        mark, has_more, num_parts = part.mark, part.has_more, num_parts + 1
    assert time.perf_counter() - begin < 15
    assert num_parts > 5
    assert (xs[0], xs[-1]) == (0, 99_999)
    assert xs == sorted(xs)
    assert MOST_POINTS / 2 < len(xs) < MOST_POINTS * 1.2
    begin = time.perf_counter()
    append(run.metrics, ppo_row(100_000))
    assert new_curves(run, mark).curves["ppo"][""]["score/mean"] == [(100_000, 0.0 + 10_000.0)]
    assert time.perf_counter() - begin < 0.1


def test_damaged_lines_are_counted_and_the_others_are_shown(tmp_path):
    make_run(tmp_path / "demo").metrics.write_text("{broken\n" + json.dumps(ppo_row(1)) + '\n"text"\n\n')
    reply = got(looker(tmp_path), "metrics", run="demo")
    assert reply["num_damaged"] == 2
    assert reply["curves"]["ppo"][""]["score/mean"] == [[1, 0.1]]


def test_line_without_an_end_is_passed_over_once_it_is_longer_than_any_of_ours(tmp_path):
    run = make_run(tmp_path / "demo")
    run.metrics.write_bytes(b"x" * 5_000_000 + b"\n")
    append(run.metrics, ppo_row(1))
    first = new_curves(run, Mark())
    assert (first.num_damaged, first.has_more) == (1, True)
    second = new_curves(run, first.mark)
    assert second.curves["ppo"][""]["score/mean"] == [(1, 0.1)]
    assert not second.has_more


def test_all_metrics_come_only_when_asked_for(tmp_path):
    append(make_run(tmp_path / "demo").metrics, ppo_row(0, **{"own/metric": 4.0, "note": "text", "flag": True}))
    visitor = looker(tmp_path)
    assert got(visitor, "metrics", run="demo")["curves"]["ppo"][""].keys() == {"score/mean", "kl_coef"}
    everything = got(visitor, "metrics", run="demo", all=True)["curves"]["ppo"][""]
    assert everything.keys() == {"score/mean", "kl_coef", "own/metric"}


def test_nothing_is_written_or_locked_in_the_run(tmp_path):
    run = make_run(tmp_path / "demo")
    append(run.metrics, ppo_row(0))
    append(run.samples, sample_row(0))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    visitor = looker(tmp_path)
    for path in PATHS:
        visitor.http.get(f"/api/dashboard/{path}").raise_for_status()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before
    assert not run.lock.exists()


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_samples_are_found_by_iteration_also_as_more_come(tmp_path):
    run = make_run(tmp_path / "demo")
    append(run.samples, sample_row(0, "one"), sample_row(0, "two"), sample_row(1, HOSTILE))
    index = new_samples(run, Mark())
    assert [(stage, iteration) for stage, iteration, _ in index.iterations] == [("ppo", 0), ("ppo", 1)]
    texts = [
        [sample["response"] for sample in samples_at(run, offset, stage=stage, iteration=iteration)]
        for stage, iteration, offset in index.iterations
    ]
    assert texts == [["one", "two"], [HOSTILE]]
    append(run.samples, sample_row(2, "later"))
    more = new_samples(run, index.mark)
    assert [each[:2] for each in more.iterations] == [("ppo", 2)]
    assert samples_at(run, more.iterations[0][2], stage="ppo", iteration=2)[0]["response"] == "later"


def test_samples_that_are_no_longer_there_are_none(tmp_path):
    run = make_run(tmp_path / "demo")
    assert samples_at(run, 0, stage="ppo", iteration=0) == []
    append(run.samples, sample_row(0), sample_row(1))
    offset = new_samples(run, Mark()).iterations[1][2]
    assert samples_at(run, offset + 1, stage="ppo", iteration=1) == []
    assert samples_at(run, offset, stage="ppo", iteration=5) == []
    assert samples_at(run, 10**9, stage="ppo", iteration=1) == []


def test_strange_samples_become_text_and_finite_numbers(tmp_path):
    run = make_run(tmp_path / "demo")
    odd = sample_row(
        0, "half \ud800", prompt=[{"role": "user"}], score=float("nan"), ref_kl=float("inf"), more={"a": 1}
    )
    append(run.samples, odd)
    run.samples.write_bytes(b"\n" + run.samples.read_bytes())
    visitor = looker(tmp_path)
    (stage, iteration, offset), *_ = got(visitor, "samples", run="demo")["iterations"]
    (sample,) = got(visitor, "sample", run="demo", offset=offset, stage=stage, iteration=iteration)["samples"]
    expected = {"stage": "ppo", "iteration": 0, "prompt": '[{"role": "user"}]', "response": "half \ud800"}
    assert sample == {**expected, "finish_reason": "eos"}


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_queue_and_agreement_are_shown_and_figures_say_why_they_are_undefined(tmp_path):
    with open_store(tmp_path, 4, overlap=2) as store:
        for name in ("Ada", "Grace"):
            cast(store, name, "pair-1", Choice("preference", 2))
        cast(store, "Ada", "pair-2", Choice("tie"))
        labels = got(looker(tmp_path, store), "labels")
    assert labels["queue"] == {
        "num_pairs": 4,
        "num_finished": 1,
        "num_leased": 0,
        "num_waiting": 3,
        "rounds": [{"round": 1, "num_pairs": 4, "num_finished": 1}],
    }
    report = labels["report"]
    assert (report["num_votes"], report["agreement"]["value"], report["agreement"]["n"]) == (3, 1.0, 1)
    assert report["alpha"]["value"] is None
    assert report["alpha"]["reason"]


def test_without_a_store_there_are_no_labels_but_what_the_run_kept(tmp_path):
    run = make_run(tmp_path / "demo")
    visitor = looker(tmp_path)
    assert got(visitor, "labels") == {"has_store": False}
    assert got(visitor, "trust", run="demo") == {"report": None, "is_withheld": False}
    run.trust.write_text('{"num_votes": 0}')
    assert got(visitor, "trust", run="demo")["report"] == {"num_votes": 0}
    run.trust.write_text("{")
    reply = visitor.http.get("/api/dashboard/trust", params={"run": "demo"})
    assert reply.status_code == 422
    assert "trust.json is damaged" in reply.json()["error"]["message"]


def test_store_that_fails_is_shown_as_a_problem(tmp_path):
    class Broken:
        settings = None

        def queue(self) -> Any:
            raise StoreError("the disk is gone")

    visitor = Visitor(None, routers=[dashboard_router(tmp_path, store=Broken())], links=[dashboard_link()])  # type: ignore[arg-type]
    assert got(visitor, "labels") == {"has_store": True, "problem": "the disk is gone"}


def test_agreement_is_computed_once_in_a_while(tmp_path):
    with open_store(tmp_path, 2) as store:
        visitor = looker(tmp_path, store)
        assert got(visitor, "labels")["report"]["num_votes"] == 0
        cast(store, "Ada", "pair-1", Choice("tie"))
        labels = got(visitor, "labels")
        assert (labels["queue"]["num_finished"], labels["report"]["num_votes"]) == (1, 0)


# ── who may look ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_people_elsewhere_see_nothing_with_or_without_a_token(tmp_path):
    make_run(tmp_path / "demo")
    with open_store(tmp_path) as store:
        for name in (None, "Ada"):
            visitor = looker(tmp_path, store, name=name, client="192.168.1.7", address="http://10.0.0.1:8571")
            for path in ("/dashboard", *(f"/api/dashboard/{path}" for path in PATHS)):
                reply = visitor.http.get(path)
                assert reply.status_code == 403, path
                assert "for the owner" in reply.text
            assert "/dashboard" not in visitor.http.get("/").text, "the navigation does not name it either"


def test_request_that_came_through_a_proxy_is_not_local(tmp_path):
    visitor = looker(tmp_path)
    assert visitor.http.get("/dashboard").status_code == 200
    assert visitor.http.get("/dashboard", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403


def test_broken_store_leaves_the_error_page_to_those_elsewhere(tmp_path):
    class Broken:
        def annotator_of(self, token: str) -> str | None:
            raise StoreError("the disk is gone")

    visitor = looker(tmp_path, Broken(), client="192.168.1.7", address="http://10.0.0.1:8571", owners=["Olga"])
    visitor.http.cookies.set("rlhfkit_token_8571", "any")
    assert visitor.http.get("/dashboard").status_code == 503


def test_owner_may_look_from_elsewhere_with_their_token_only(tmp_path):
    with open_store(tmp_path) as store:
        elsewhere = {"client": "192.168.1.7", "address": "http://10.0.0.1:8571", "owners": ["Olga"]}
        owner = looker(tmp_path, store, name="Olga", **elsewhere)
        assert owner.http.get("/dashboard").status_code == 200
        assert 'href="/dashboard"' in owner.http.get("/").text
        assert looker(tmp_path, store, name="Ada", **elsewhere).http.get("/dashboard").status_code == 403
        assert looker(tmp_path, store, **elsewhere).http.get("/dashboard").status_code == 403


def test_who_still_labels_learns_nothing_of_others_votes_until_through(tmp_path):
    run = make_run(tmp_path / "demo")
    run.trust.write_text('{"num_votes": 1}')
    with open_store(tmp_path, 2, overlap=2) as store:
        cast(store, "Grace", "pair-1", Choice("preference", 4))
        ada = looker(tmp_path, store, name="Ada")
        for what in ("labels", "trust"):
            reply = got(ada, what, **({"run": "demo"} if what == "trust" else {}))
            assert (reply["report"], reply["is_withheld"]) == (None, True)
        assert "Grace" not in ada.http.get("/api/dashboard/labels").text
        for _ in range(2):
            task = ada.task()
            assert task is not None
            ada.vote(task["pair_id"])
        assert got(ada, "labels")["report"]["num_votes"] == 3
        assert not got(ada, "trust", run="demo")["is_withheld"]


def test_who_labels_alone_sees_their_own_figures_at_any_time(tmp_path):
    with open_store(tmp_path, 2) as store:
        ada = looker(tmp_path, store, name="Ada")
        assert got(ada, "labels")["is_withheld"] is False


def test_answers_carry_the_headers_of_the_other_pages_and_hold_no_single_vote(tmp_path):
    make_run(tmp_path / "demo", name=HOSTILE)
    with open_store(tmp_path, 2) as store:
        cast(store, "Ada", "pair-1", Choice("preference", 3))
        visitor = looker(tmp_path, store)
        for path in ("/dashboard", *(f"/api/dashboard/{path}" for path in PATHS), "/api/dashboard/metrics?run=.."):
            reply = visitor.http.get(path)
            assert "default-src 'none'" in reply.headers["content-security-policy"], path
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-store"
        assert HOSTILE not in visitor.http.get("/dashboard").text
        assert "pair-1" not in visitor.http.get("/api/dashboard/labels").text


@pytest.mark.parametrize(
    "path", ["metrics", "metrics?run=demo&offset=-1", "metrics?run=demo&offset=x", "sample?run=demo"]
)
def test_request_that_makes_no_sense_is_refused(tmp_path, path):
    make_run(tmp_path / "demo")
    reply = looker(tmp_path).http.get(f"/api/dashboard/{path}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid")


def test_application_without_a_store_leads_to_the_dashboard_and_labels_nothing(tmp_path):
    visitor = looker(tmp_path)
    assert visitor.http.get("/").headers["location"] == "/dashboard"
    assert visitor.http.get("/dashboard").status_code == 200
    assert visitor.http.get("/api/session").status_code == 404
    assert visitor.post("/api/task").status_code == 404
    visitor.http.cookies.set("rlhfkit_token_8571", "nonsense")
    assert visitor.http.get("/dashboard").status_code == 200


# ── studies of settings ──────────────────────────────────────────────────────────────────────────────────────────────


def test_study_is_listed_with_its_best_and_its_runs_are_not(tmp_path):
    make_study(tmp_path / "group" / "tune-demo", study())
    make_run(tmp_path / "plain")
    (tmp_path / "plain" / "settings.json").write_text("{}")
    found = got(looker(tmp_path), "runs")
    assert [run["id"] for run in found["runs"]] == ["plain"]
    (shown,) = found["studies"]
    best = study().trials[12].best
    assert best is not None
    assert (shown["id"], shown["name"], shown["phase"], shown["state"]) == (
        "group/tune-demo",
        "demo",
        "done",
        "finished",
    )
    assert (shown["num_done"], shown["num_planned"], shown["is_gain"]) == (25, 27, True)
    assert shown["best"] == {"number": 12, "score": best.score, "kl": best.kl}


def test_page_of_a_study_is_drawn_from_its_numbers_with_a_policy_that_allows_no_script(tmp_path):
    directory = make_study(tmp_path / "tune", study(num_done=0))
    directory.page.write_text(HOSTILE)
    visitor = looker(tmp_path)
    for _ in range(2):
        reply = visitor.http.get("/dashboard/study", params={"id": "tune"})
        assert reply.status_code == 200
        assert "Preparing: no trial has begun" in reply.text
        assert HOSTILE not in reply.text
        policies = reply.headers.get_list("content-security-policy")
        assert len(policies) == 1
        assert policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert policies[0].endswith("sandbox")
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-frame-options"] == "DENY"
    directory.results.write_text(study(num_done=0, name="other").model_dump_json())
    assert "<h1>other</h1>" in visitor.http.get("/dashboard/study", params={"id": "tune"}).text


def test_study_that_is_not_there_or_damaged_is_refused_in_words(tmp_path):
    directory = make_study(tmp_path / "runs" / "tune", None)
    make_study(tmp_path / "outside", study(num_done=0))
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    visitor = looker(tmp_path / "runs")
    for id in ("tune", "gone", "..", "../outside", "link", "tune/base"):
        reply = visitor.http.get("/dashboard/study", params={"id": id})
        assert (reply.status_code, "This study is not there" in reply.text) == (404, True), id
    (shown,) = got(visitor, "runs")["studies"]
    assert (shown["phase"], shown["num_planned"], shown["best"]) == ("preparing", 0, None)
    for content in ("{", '{"kl": NaN}', "[]", '{"a":' * 100_000):
        directory.results.write_text(content)
        assert visitor.http.get("/dashboard/study", params={"id": "tune"}).status_code == 422
        (shown,) = got(visitor, "runs")["studies"]
        assert shown["state"] == "damaged"
        assert "study.json is damaged" in shown["problem"]


def test_page_of_a_study_is_for_the_owner(tmp_path):
    make_study(tmp_path / "tune", study(num_done=0))
    visitor = looker(tmp_path, client="192.168.1.7", address="http://10.0.0.1:8571")
    assert visitor.http.get("/dashboard/study", params={"id": "tune"}).status_code == 403


# ── languages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_word_is_there_in_every_language_with_the_same_gaps():
    words = json.loads((STATIC / "dashboard_texts.json").read_text(encoding="utf-8"))
    assert words.keys() == LANGUAGES.keys()
    for own in words.values():
        assert own.keys() == words["en"].keys()
        for key, text in own.items():
            gaps, expected = ({part.split("}")[0] for part in each.split("{")[1:]} for each in (text, words["en"][key]))
            assert text.strip()
            assert gaps == expected, key


def test_every_word_that_page_and_scripts_name_exists():
    words = json.loads((STATIC / "dashboard_texts.json").read_text(encoding="utf-8"))["en"]
    page = (STATIC.parent / "templates" / "dashboard.html.jinja").read_text(encoding="utf-8")
    named = set(re.findall(r"words\.(\w+)", page))
    for script in ("dashboard.js", "trust.js"):
        named |= set(re.findall(r"\bword\(\"(\w+)\"", (STATIC / script).read_text(encoding="utf-8")))
    assert len(named) > 40
    assert named - words.keys() == set()
    assert {f"stage_{stage}" for stage in (*STAGES, "judge", "control")} <= words.keys()


def test_page_speaks_the_language_that_was_chosen(tmp_path):
    visitor = looker(tmp_path)
    assert '<h1 id="list-heading" tabindex="-1">Runs</h1>' in visitor.http.get("/dashboard").text
    chosen = visitor.http.get("/dashboard", headers={"Accept-Language": "zh-CN"}).text
    assert '<h1 id="list-heading" tabindex="-1">运行</h1>' in chosen


def test_a_sample_of_a_conversation_keeps_its_turns_beside_the_text_of_the_template(tmp_path):
    run = make_run(tmp_path / "chat")
    turns = [{"role": "user", "content": "Hi <b>"}]
    row = {"stage": "ppo", "iteration": 0, "prompt": "<|im_start|>user Hi", "turns": turns, "response": "x"}
    run.samples.write_text(json.dumps(row) + "\n")
    (sample,) = samples_at(run, 0, stage="ppo", iteration=0)
    assert json.loads(sample["turns"]) == turns


# ── who works on a run on a cluster ──────────────────────────────────────────────────────────────────────────────────


def test_table_of_a_cluster_is_read_and_a_run_on_one_machine_has_none(tmp_path):
    run = make_run(tmp_path / "demo")
    visitor = looker(tmp_path)
    assert got(visitor, "cluster", run="demo") == {"table": None}
    row = {"name": "sampler-0", "state": "slow", "host": HOSTILE, "pid": 7, "per_second": 81.5}
    event = {"time": 5.0, "what": "lost", "who": "sampler-0", "why": "gone", "lost_seconds": 1.5}
    table = {"time": time.time(), "iteration": 3, "sampler": {"workers": [row]}, "events": [event]}
    run.cluster.write_text(json.dumps(table), encoding="utf-8")
    table = got(visitor, "cluster", run="demo")["table"]
    assert (table["state"], table["iteration"]) == ("running", 3)
    assert (table["samplers"]["rows"][0]["host"], table["samplers"]["rows"][0]["chunks"]) == (HOSTILE, None)
    assert table["events"] == [event]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a":' * 100_000, "x" * 5_000_000], ids=["half", "list", "deep", "huge"]
)
def test_damaged_table_of_a_cluster_is_an_error_in_words(tmp_path, content):
    make_run(tmp_path / "demo").cluster.write_text(content, encoding="utf-8")
    visitor = looker(tmp_path)
    reply = visitor.http.get("/api/dashboard/cluster", params={"run": "demo"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "run_damaged")
    assert len(reply.json()["error"]["message"]) < 1000


def test_wrong_values_in_the_table_of_a_cluster_become_nothing(tmp_path):
    """NaN and half a character have no place in what a browser is sent."""
    content = '{"time": NaN, "sampler": {"workers": [{"host": "\\ud800", "per_second": Infinity}, 3]}, "events": [NaN]}'
    make_run(tmp_path / "demo").cluster.write_text(content, encoding="utf-8")
    visitor = looker(tmp_path)
    table = got(visitor, "cluster", run="demo")["table"]
    assert [row["per_second"] for row in table["samplers"]["rows"]] == [None, None]
    assert table["events"] == []
