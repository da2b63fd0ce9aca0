import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from rlhfkit.errors import ConfigError, StoreError
from rlhfkit.feedback.votes import SKIP_REASONS, Pair
from rlhfkit.records import Message
from rlhfkit.web import app as app_module
from rlhfkit.web import label_page, site
from rlhfkit.web.app import create_app
from rlhfkit.web.server import Address, serve_while, serving
from rlhfkit.web.site import LANGUAGES
from tests.feedback.labelling import Visitor, open_store, vote_body

STATIC = Path(app_module.__file__).parent / "static"


def left_and_right(store, name, pair_id="pair-1"):
    return ("Alpha 1", "Beta 1") if store.shown_left(name, pair_id) == "a" else ("Beta 1", "Alpha 1")


# ── the task ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_task_shows_the_sides_as_the_store_drew_them(tmp_path):
    with open_store(tmp_path, overlap=12) as store:
        sides = set()
        for number in range(12):
            task = Visitor(store, f"person {number}").task()
            assert (task["left"], task["right"]) == left_and_right(store, f"person {number}")
            sides.add(task["left"])
        assert sides == {"Alpha 1", "Beta 1"}


def test_task_says_nothing_of_models_sides_or_origins(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        task = visitor.post("/api/task")
        assert task.json()["task"].keys() == {"pair_id", "prompt", "left", "right", "lease_seconds"}
        answers = [task, visitor.vote("pair-1"), visitor.post("/api/undo", {"id": "undo-0001"}), visitor.http.get("/")]
        for answer in answers:
            everything = answer.text + repr(answer.headers)
            for word in (
                "secretmodel",
                "secretweights",
                "secretfile",
                "0.123456",
                "shown_left",
                "model_a",
                "response_a",
            ):
                assert word not in everything


def test_asking_again_gives_the_same_pair_and_the_same_sides(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        first, again = visitor.task(), visitor.task()
        del first["lease_seconds"], again["lease_seconds"]
        assert first == again


def test_conversations_are_sent_turn_by_turn(tmp_path):
    chat = (Message("user", "Hi"), Message("assistant", "Hello"))
    pair = Pair("talk", "", chat, (*chat, Message("user", "Bye")))
    with open_store(tmp_path, [pair]) as store:
        task = Visitor(store, "Ada").task()
    turns = sorted((task["left"], task["right"]), key=len)
    assert turns[0] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert turns[1][2] == {"role": "user", "content": "Bye"}


def test_half_a_character_does_not_break_the_page(tmp_path):
    with open_store(tmp_path, [Pair("odd", "x", "half \ud83d", "\U0001f600")]) as store:
        task = Visitor(store, "Ada").task()
    assert {task["left"], task["right"]} == {"half \ud83d", "\U0001f600"}


def test_nothing_left_is_no_task(tmp_path):
    with open_store(tmp_path, 0) as store:
        answer = Visitor(store, "Ada").post("/api/task").json()
    assert answer["task"] is None
    assert answer["progress"]["num_left"] == 0


# ── the vote ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("degree", [1, 4])
def test_sides_are_mapped_back_to_the_responses(tmp_path, side, degree):
    with open_store(tmp_path, overlap=12) as store:
        shown = set()
        for number in range(12):
            name = f"person {number}"
            visitor = Visitor(store, name)
            assert visitor.task()["pair_id"] == "pair-1"
            reply = visitor.vote("pair-1", side=side, degree=degree, flags_left=["wrong", "unsafe"], flags_right=[])
            assert reply.json()["outcome"] == "recorded"
            vote = store.votes()[-1]
            is_for_a = (vote.shown_left == "a") == (side == "left")
            assert vote.choice.strength == (degree if is_for_a else -degree)
            assert (vote.flags_a if vote.shown_left == "a" else vote.flags_b) == ("unsafe", "wrong")
            assert (vote.flags_b if vote.shown_left == "a" else vote.flags_a) == ()
            shown.add(vote.shown_left)
        assert shown == {"a", "b"}


def test_vote_keeps_all_that_the_page_says(tmp_path):
    with open_store(tmp_path) as store:
        version = store.set_guidelines("Be fair.")
        visitor = Visitor(store, "Ada")
        visitor.task()
        visitor.vote("pair-1", comment="nice\x00 ✓", guidelines_version=version, language="zh", id="vote-0001")
        (vote,) = store.votes()
    assert (vote.id, vote.pair_id, vote.annotator) == ("vote-0001", "pair-1", "Ada")
    assert (vote.comment, vote.guidelines_version, vote.language) == ("nice ✓", version, "zh")
    assert (vote.active_seconds, vote.wall_seconds) == (2.5, 4.0)


@pytest.mark.parametrize("kind", ["tie", "both_bad"])
def test_tie_and_both_bad_are_no_preferences(tmp_path, kind):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        visitor.vote("pair-1", choice=kind, side=None, degree=None)
        (vote,) = store.votes()
    assert (vote.choice.kind, vote.choice.preferred) == (kind, None)


@pytest.mark.parametrize("reason", SKIP_REASONS)
def test_skip_keeps_its_reason(tmp_path, reason):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        reply = visitor.vote("pair-1", choice="skip", skip_reason=reason, side=None, degree=None).json()
        assert store.votes()[0].choice.skip_reason == reason
    assert (reply["progress"]["num_voted"], reply["progress"]["num_skipped"]) == (0, 1)


def test_vote_sent_twice_is_counted_once_and_the_next_pair_comes_with_either_reply(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        body = vote_body("pair-1")
        first, again = visitor.post("/api/vote", body).json(), visitor.post("/api/vote", body).json()
        assert (first["outcome"], again["outcome"]) == ("recorded", "repeated")
        assert first["task"]["pair_id"] == again["task"]["pair_id"] == "pair-2"
        assert len(store.votes()) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"degree": 5}, "degree"),
        ({"degree": 0}, "degree"),
        ({"degree": True}, "degree"),
        ({"degree": None}, "degree"),
        ({"side": "a"}, "side"),
        ({"side": None}, "side"),
        ({"choice": "tie"}, "side"),
        ({"choice": "skip", "side": None, "degree": None}, "skip_reason"),
        ({"choice": "tie", "side": None, "degree": None, "skip_reason": "other"}, "skip_reason"),
        ({"choice": "draft"}, "choice"),
        ({"id": "'; DROP TABLE votes; --"}, "id"),
        ({"flags_left": ["rude"]}, "flags_left"),
        ({"flags_left": ["wrong"] * 4}, "flags_left"),
        ({"comment": "x" * 4001}, "comment"),
        ({"active_seconds": -1.0}, "active_seconds"),
        ({"language": "xx"}, "language"),
        ({"annotator": "Eve"}, "annotator"),
        ({"shown_left": "a"}, "shown_left"),
        ({"is_surplus": True}, "is_surplus"),
    ],
)
def test_wrong_vote_is_refused_by_name_and_not_kept(tmp_path, changes, field):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        reply = visitor.vote("pair-1", **changes)
        assert reply.status_code == 422
        assert reply.json()["error"]["code"] == "invalid"
        assert field in reply.json()["error"]["message"]
        assert store.events() == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_times_that_are_no_numbers_are_refused(tmp_path, number):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        text = json.dumps(vote_body("pair-1")).replace("2.5", number)
        reply = visitor.http.post(
            "/api/vote", content=text, headers={"X-Rlhfkit": "1", "Content-Type": "application/json"}
        )
        assert reply.status_code == 422
        assert store.events() == []


def test_active_time_is_at_most_the_time_that_passed(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        visitor.vote("pair-1", active_seconds=1e12, wall_seconds=9.0)
        assert store.votes()[0].active_seconds == 9.0


def test_vote_on_a_pair_that_was_never_shown_is_refused(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        visitor.task()
        for pair_id in ("pair-2", "no such pair"):
            reply = visitor.vote(pair_id)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_pair")
        assert store.events() == []


def test_somebody_elses_vote_id_is_refused(tmp_path):
    with open_store(tmp_path, overlap=2) as store:
        ada, bob = Visitor(store, "Ada"), Visitor(store, "Bob")
        ada.task(), bob.task()
        assert ada.vote("pair-1", id="the-same-id").status_code == 200
        reply = bob.vote("pair-1", id="the-same-id")
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
        assert len(store.votes()) == 1


# ── undo, leases, progress ───────────────────────────────────────────────────────────────────────────────────────────


def test_undo_brings_the_pair_back_with_the_answer_in_the_words_of_the_page(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        before = visitor.task()
        visitor.vote("pair-1", side="right", degree=2, flags_left=["wrong"], flags_right=["unsafe"], comment="hm")
        reply = visitor.post("/api/undo", {"id": "undo-0001"}).json()
        assert reply["taken_back"] == {
            "pair_id": "pair-1",
            "choice": "preference",
            "side": "right",
            "degree": 2,
            "skip_reason": None,
            "flags_left": ["wrong"],
            "flags_right": ["unsafe"],
            "comment": "hm",
        }
        assert (reply["task"]["left"], reply["task"]["right"]) == (before["left"], before["right"])
        assert store.votes() == []
        again = visitor.post("/api/undo", {"id": "undo-0001"}).json()
        assert again["taken_back"] == reply["taken_back"]
        assert visitor.post("/api/undo", {"id": "undo-0002"}).json()["taken_back"] is None


def test_nobody_gets_a_pair_that_another_holds_until_they_left_for_good(tmp_path, monkeypatch):
    with open_store(tmp_path, 1) as store:
        ada = Visitor(store, "Ada")
        bob = Visitor(store, "Bob")
        bob.http = type(bob.http)(ada.app, base_url="http://localhost:8571", cookies=bob.http.cookies)
        assert ada.task()["pair_id"] == "pair-1"
        assert bob.task() is None
        ada.post("/api/release", {"pair_id": "pair-1"})
        assert bob.task() is None, "a reload looks like leaving, so the pair waits for a moment"
        monkeypatch.setattr(label_page, "GRACE_SECONDS", -1.0)
        ada.post("/api/release", {"pair_id": "pair-1"})
        assert bob.task()["pair_id"] == "pair-1"
        assert ada.task() is None


def test_coming_back_in_time_keeps_the_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(label_page, "GRACE_SECONDS", -1.0)
    with open_store(tmp_path) as store:
        ada = Visitor(store, "Ada")
        task = ada.task()
        ada.post("/api/release", {"pair_id": "pair-1"})
        again = ada.task()
        assert (again["pair_id"], again["left"]) == (task["pair_id"], task["left"])


def test_heartbeat_says_whether_the_pair_is_still_kept(tmp_path):
    with open_store(tmp_path) as store:
        ada = Visitor(store, "Ada")
        ada.task()
        assert ada.post("/api/heartbeat", {"pair_id": "pair-1"}).json() == {"held": True}
        assert ada.post("/api/heartbeat", {"pair_id": "pair-2"}).json() == {"held": False}


def test_progress_is_only_ones_own(tmp_path):
    with open_store(tmp_path, 3, overlap=2) as store:
        ada, bob = Visitor(store, "Ada"), Visitor(store, "Bob")
        ada.task(), bob.task()
        ada.vote("pair-1", active_seconds=2.5)
        assert bob.http.get("/api/progress").json() == {
            "num_voted": 0,
            "num_skipped": 0,
            "num_left": 3,
            "num_total": 3,
            "active_seconds": 0.0,
        }
        assert ada.http.get("/api/progress").json() == {
            "num_voted": 1,
            "num_skipped": 0,
            "num_left": 2,
            "num_total": 3,
            "active_seconds": 2.5,
        }


def test_guidelines_come_with_their_version(tmp_path):
    with open_store(tmp_path) as store:
        ada = Visitor(store, "Ada")
        assert ada.http.get("/api/guidelines").json() == {"version": 0, "text": ""}
        store.set_guidelines("# Be <b>fair</b>")
        assert ada.http.get("/api/guidelines").json() == {"version": 1, "text": "# Be <b>fair</b>"}
        assert ada.post("/api/task").json()["guidelines_version"] == 1


# ── languages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_text_is_there_in_every_language_with_the_same_gaps():
    texts = json.loads((STATIC / "texts.json").read_text(encoding="utf-8"))
    assert texts.keys() == LANGUAGES.keys()
    english = texts["en"]
    for words in texts.values():
        assert words.keys() == english.keys()
        for key, text in words.items():
            assert text.strip(), key
            gaps = {part.split("}")[0] for part in text.split("{")[1:]}
            assert gaps == {part.split("}")[0] for part in english[key].split("{")[1:]}, key
    assert {f"skip_{reason}" for reason in SKIP_REASONS} <= english.keys()


def test_every_text_that_the_page_names_exists():
    texts = json.loads((STATIC / "texts.json").read_text(encoding="utf-8"))["en"]
    sources = [path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")]
    named = {key for source in sources for key in re.findall(r"\bt\(\"(\w+)\"", source)}
    templates = (STATIC.parent / "templates").glob("*.jinja")
    for template in templates:
        named |= set(re.findall(r"data-t(?:-label)?=\"(\w+)\"", template.read_text(encoding="utf-8")))
    assert len(named) > 40
    assert named - texts.keys() == set()


@pytest.mark.parametrize(
    ("headers", "cookies", "language", "heading"),
    [
        ({}, {}, "en", "Which answer is better?"),
        ({"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.5"}, {}, "zh-Hans", "哪个回答更好？"),
        ({"Accept-Language": "fr,zh;q=0.9"}, {}, "zh-Hans", "哪个回答更好？"),
        ({"Accept-Language": "zh"}, {"rlhfkit_language": "en"}, "en", "Which answer is better?"),
        ({}, {"rlhfkit_language": "zh"}, "zh-Hans", "哪个回答更好？"),
        ({}, {"rlhfkit_language": "../x"}, "en", "Which answer is better?"),
    ],
)
def test_page_comes_in_the_readers_language(tmp_path, headers, cookies, language, heading):
    with open_store(tmp_path) as store:
        visitor = Visitor(store)
        for name, value in cookies.items():
            visitor.http.cookies.set(name, value)
        page = visitor.http.get("/", headers={"Accept-Language": "", **headers}).text
    assert f'<html lang="{language}"' in page
    assert f"<title>{heading} · Test</title>" in page


def test_errors_are_told_in_the_pages_language(tmp_path):
    with open_store(tmp_path) as store:
        visitor = Visitor(store)
        english = visitor.post("/api/task").json()["error"]
        chinese = visitor.post("/api/task", **{"X-Language": "zh"}).json()["error"]
    assert english["code"] == chinese["code"] == "sign_in"
    assert english["message"].startswith("Please sign in first")
    assert chinese["message"].startswith("请先登录")


# ── further pages, the server ────────────────────────────────────────────────────────────────────────────────────────


def test_further_pages_share_the_template_and_the_navigation(tmp_path):
    from fastapi import APIRouter, Request

    router = APIRouter()

    @router.get("/dashboard")
    def dashboard(request: Request):
        return site.render_page(request, "error.html.jinja", status=200, message="A further page")

    with open_store(tmp_path) as store:
        links = (site.Link("/dashboard", "nav_dashboard"),)
        visitor = Visitor(store, routers=[router], links=links)
        page = visitor.http.get("/dashboard").text
        assert "A further page" in page
        assert '<a href="/dashboard" aria-current="page" data-t="nav_dashboard">Dashboard</a>' in page
        assert '<a href="/dashboard" data-t="nav_dashboard">' in visitor.http.get("/").text


def test_server_answers_while_the_condition_holds_and_not_after(tmp_path):
    addresses: list[Address] = []
    answers = []

    def condition():
        answers.append(httpx.get(addresses[0].url).status_code)
        return len(answers) < 3

    with open_store(tmp_path) as store:
        serve_while(create_app(store), condition, port=0, on_ready=addresses.append, seconds_between=0.01)
    assert answers == [200, 200, 200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(addresses[0].url)


def test_server_takes_another_port_where_the_asked_one_is_taken_and_says_so(tmp_path):
    with open_store(tmp_path) as store, serving(create_app(store), port=0) as first:
        taken = first.address.port
        with serving(create_app(store), port=taken) as second:
            assert second.address.port != taken
            assert str(second.address) == f"http://127.0.0.1:{second.address.port}/ (port {taken} is taken)"
            assert httpx.get(second.address.url).status_code == 200
        assert str(first.address) == f"http://127.0.0.1:{taken}/"


def test_server_stops_where_the_block_fails(tmp_path):
    with open_store(tmp_path) as store:
        with pytest.raises(RuntimeError, match="training broke"), serving(create_app(store), port=0) as served:
            raise RuntimeError("training broke")
        assert served.has_stopped.is_set()


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 70_000, "port = 70000; expected 0"),
        ("127.0.0.1", -1, "port = -1; expected 0"),
        ("192.0.2.1", 0, "'192.0.2.1' cannot be listened on"),
        ("no such host", 0, "'no such host' is not known"),
    ],
)
def test_addresses_that_cannot_be_used_are_told(tmp_path, host, port, words):
    with (
        open_store(tmp_path) as store,
        pytest.raises(ConfigError, match=words),
        serving(create_app(store), host=host, port=port),
    ):
        pass


def test_address_of_every_interface_is_opened_on_this_machine():
    assert Address("0.0.0.0", 80, 80).url == "http://127.0.0.1:80/"
    assert Address("::1", 80, 80).url == "http://[::1]:80/"
    assert Address("192.0.2.7", 80, 80).shared_url == "http://192.0.2.7:80/"
    assert "0.0.0.0" not in Address("0.0.0.0", 80, 80).shared_url
    assert [Address(host, 1, 1).is_local for host in ("127.0.0.1", "::1", "0.0.0.0")] == [True, True, False]


def test_ctrl_c_ends_the_server_and_keeps_what_was_acknowledged(tmp_path):
    program = (
        "import sys\n"
        "from rlhfkit.web.app import create_app\n"
        "from rlhfkit.web.server import serve\n"
        "from rlhfkit.feedback.store import Store\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    serve(create_app(store), port=0, on_ready=lambda address: print(address.url, flush=True))\n"
        "print('ended well')\n"
    )
    with open_store(tmp_path) as store:
        token = store.add_annotator("Ada")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "votes.db")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, headers={"X-Rlhfkit": "1"}) as http:
            http.get("/", params={"token": token})
            http.post("/api/task", json={}).raise_for_status()
            http.post("/api/vote", json=vote_body("pair-1")).raise_for_status()
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, errors) == (0, "ended well\n", "")
    with open_store(tmp_path) as store:
        assert len(store.votes()) == 1


def test_packages_that_are_missing_are_named_with_the_line_that_installs_them(tmp_path):
    for package, module in (("fastapi", "app"), ("uvicorn", "server")):
        program = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from rlhfkit.errors import MissingDependencyError\n"
            "try:\n"
            f"    from rlhfkit.web import {module}\n"
            "    with module.serving(None): pass\n".replace("module.", f"{module}.")
            + "except MissingDependencyError as error:\n"
            "    print(error)\n"
        )
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert f"({package})" in out
        assert "pip install 'rlhfkit[web]'" in out


def test_many_people_at_once_get_no_pair_twice(tmp_path):
    with open_store(tmp_path, 40) as store:
        visitors = [Visitor(store, f"person {number}") for number in range(8)]
        seen: list[str] = []

        def label(visitor):
            task = visitor.task()
            while task is not None:
                seen.append(task["pair_id"])
                task = visitor.vote(task["pair_id"]).raise_for_status().json()["task"]

        threads = [threading.Thread(target=label, args=(visitor,)) for visitor in visitors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == sorted(f"pair-{number}" for number in range(1, 41))
        assert len(store.votes()) == 40


def test_a_store_that_fails_is_reported_as_busy_so_that_the_page_tries_again(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")

        def locked(annotator):
            raise StoreError("votes.db: database is locked; close that program")

        monkeypatch.setattr(store, "lease", locked)
        reply = visitor.post("/api/task")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "busy")
    assert "votes.db" not in reply.text


def test_leases_end_by_the_stores_clock(tmp_path):
    with open_store(tmp_path, 1, lease_seconds=0.2) as store:
        ada, bob = Visitor(store, "Ada"), Visitor(store, "Bob")
        assert 0 < ada.task()["lease_seconds"] <= 0.2
        assert bob.task() is None
        time.sleep(0.25)
        assert bob.task()["pair_id"] == "pair-1"
        assert ada.post("/api/heartbeat", {"pair_id": "pair-1"}).json() == {"held": False}
