import json
import re
import socket
from pathlib import Path

import httpx
import pytest

from rlhfkit.errors import StoreError
from rlhfkit.feedback.votes import Pair
from rlhfkit.web import app as app_module
from rlhfkit.web import label_page
from rlhfkit.web.app import create_app
from rlhfkit.web.guard import LARGEST_BODY_BYTES
from rlhfkit.web.server import serving
from tests.feedback.labelling import Visitor, open_store, vote_body

STATIC = Path(app_module.__file__).parent / "static"
POSTS = ("session", "sign-out", "task", "vote", "undo", "heartbeat", "release")


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path) as opened:
        yield opened


# ── who is let in ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_given_to_somebody_without_a_name(store):
    visitor = Visitor(store)
    for path in ("/api/task", "/api/vote", "/api/undo", "/api/heartbeat", "/api/release"):
        body = {"/api/vote": vote_body("pair-1"), "/api/undo": {"id": "undo-0001"}}.get(path, {"pair_id": "pair-1"})
        reply = visitor.post(path, {} if path == "/api/task" else body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "sign_in"), path
    for path in ("/api/progress", "/api/guidelines"):
        assert visitor.http.get(path).status_code == 401
    assert store.events() == []


def test_link_with_a_token_sets_a_cookie_out_of_scripts_reach_and_cleans_the_address(store):
    visitor = Visitor(store)
    reply = visitor.http.get("/", params={"token": store.add_annotator("Ada")})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert cookie.startswith("rlhfkit_token_8571=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert visitor.http.get("/api/session").json()["name"] == "Ada"


def test_cookie_of_a_page_over_https_stays_there(store):
    visitor = Visitor(store, address="https://labels.example.org", hosts=["labels.example.org"])
    reply = visitor.http.get("/", params={"token": store.add_annotator("Ada")})
    assert "Secure" in reply.headers["set-cookie"]


def test_wrong_token_opens_nothing(store):
    visitor = Visitor(store)
    for token in ("", "nonsense", "' OR 1=1 --", "x" * 10_000):
        reply = visitor.http.get("/", params={"token": token})
        assert reply.status_code == 401
        assert "set-cookie" not in reply.headers
        assert "This link is not valid" in reply.text
    visitor.http.cookies.set("rlhfkit_token_8571", "nonsense")
    assert visitor.http.get("/api/session").json()["name"] is None


def test_name_is_enough_at_this_machine_only_where_the_server_allows_it(store):
    visitor = Visitor(store)
    assert visitor.http.get("/api/session").json()["may_give_name"] is True
    assert visitor.post("/api/session", {"name": "  Ada \n Lovelace "}).json() == {"name": "Ada Lovelace"}
    assert visitor.http.get("/api/session").json()["name"] == "Ada Lovelace"
    closed = Visitor(store, allow_names=False)
    assert closed.http.get("/api/session").json()["may_give_name"] is False
    reply = closed.post("/api/session", {"name": "Ada"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "names_closed")


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"client": "192.168.1.7"},
        {"client": "192.168.1.7", "address": "http://192.168.1.2:8571"},
        {"address": "http://192.168.1.2:8571"},
        {"address": "http://labels.example.org", "hosts": ["labels.example.org"]},
        {"client": "testclient"},
    ],
)
def test_name_is_not_enough_from_anywhere_else(store, elsewhere):
    visitor = Visitor(store, **elsewhere)
    assert visitor.http.get("/api/session").json()["may_give_name"] is False
    assert visitor.post("/api/session", {"name": "Ada"}).status_code == 403
    assert store.annotators() == []


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_who_comes_through_a_proxy_is_not_at_this_machine(store, header):
    visitor = Visitor(store)
    assert visitor.post("/api/session", {"name": "Ada"}, **{header: "127.0.0.1"}).status_code == 403


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "a\x07b", "\u202eevil"])
def test_names_that_cannot_be_read_are_refused(store, name):
    reply = Visitor(store).post("/api/session", {"name": name})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "bad_name")


def test_signing_out_forgets_the_person(store):
    visitor = Visitor(store, "Ada")
    visitor.post("/api/sign-out")
    assert visitor.http.get("/api/session").json()["name"] is None


def test_nobody_sees_what_others_answered(tmp_path):
    with open_store(tmp_path, 1, overlap=2) as store:
        ada, bob = Visitor(store, "Ada"), Visitor(store, "Bob")
        ada.task(), bob.task()
        ada.vote("pair-1", comment="only Ada knows this", flags_left=["unsafe"])
        seen = [bob.post("/api/task"), bob.http.get("/api/progress"), bob.post("/api/undo", {"id": "undo-0001"})]
        seen.append(bob.vote("pair-1"))
        for reply in seen:
            assert "only Ada" not in reply.text
            assert "unsafe" not in reply.text
            assert "Ada" not in reply.text


# ── where requests come from ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", "evil.example:8571"]
)
def test_other_host_names_are_refused_against_dns_rebinding(store, host):
    visitor = Visitor(store, "Ada")
    for reply in (visitor.http.get("/", headers={"Host": host}), visitor.post("/api/task", **{"Host": host})):
        assert reply.status_code == 421
        assert "pair-1" not in reply.text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8571", "127.0.0.1:8571", "[::1]:8571", "192.168.1.2", "Labels.example.org"]
)
def test_addresses_and_allowed_host_names_are_answered(store, host):
    visitor = Visitor(store, hosts=["labels.EXAMPLE.org"])
    assert visitor.http.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Rlhfkit": "2"},
        {"X-Rlhfkit": "1", "Origin": "http://evil.example"},
        {"X-Rlhfkit": "1", "Origin": "null"},
        {"X-Rlhfkit": "1", "Origin": "http://localhost:9999"},
        {"X-Rlhfkit": "1", "Sec-Fetch-Site": "cross-site"},
        {"X-Rlhfkit": "1", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_of_other_pages_change_nothing(store, headers):
    visitor = Visitor(store, "Ada")
    visitor.task()
    for path in POSTS:
        reply = visitor.http.post(f"/api/{path}", json=vote_body("pair-1"), headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site"), path
    assert store.events() == []


def test_requests_of_our_page_pass(store):
    visitor = Visitor(store, "Ada")
    reply = visitor.post("/api/task", **{"Origin": "http://localhost:8571", "Sec-Fetch-Site": "same-origin"})
    assert reply.status_code == 200


def test_nothing_is_changed_by_get(store):
    visitor = Visitor(store, "Ada")
    for path in POSTS[1:]:
        assert visitor.http.get(f"/api/{path}").status_code == 405
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
        assert visitor.http.request(method, "/api/vote", headers={"X-Rlhfkit": "1"}).status_code == 405


def test_no_permission_is_ever_given_to_other_origins(store):
    visitor = Visitor(store, "Ada")
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for reply in (visitor.http.options("/api/vote", headers=preflight), visitor.http.get("/", headers=preflight)):
        assert not [name for name in reply.headers if name.startswith("access-control")]


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/", "/api/session", "/api/progress", "/static/label.js", "/static/none", "/none"])
def test_every_answer_has_the_headers(store, path):
    headers = Visitor(store).http.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_refusals_and_failures_have_the_headers_too(store, monkeypatch):
    visitor = Visitor(store, "Ada")
    monkeypatch.setattr(store, "lease", lambda annotator: 1 / 0)
    replies = [
        visitor.http.post("/api/task"),
        visitor.http.get("/", headers={"Host": "evil.example"}),
        visitor.post("/api/task"),
    ]
    assert [reply.status_code for reply in replies] == [403, 421, 500]
    for reply in replies:
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["cache-control"] == "no-store"


def test_page_has_no_script_or_style_of_its_own_and_loads_nothing_from_elsewhere(store):
    page = Visitor(store).http.get("/").text
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="/static/label.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    sources = [page, *(path.read_text(encoding="utf-8") for path in STATIC.iterdir())]
    for source in sources:
        for address in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", source):
            assert address == "http://www.w3.org", address


def test_scripts_never_make_markup_of_text():
    for path in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", path.read_text()
        )


def test_failure_is_reported_without_its_trace(store, monkeypatch, caplog):
    visitor = Visitor(store, "Ada")

    def fail(annotator):
        raise ZeroDivisionError("the inside of the server")

    monkeypatch.setattr(store, "lease", fail)
    reply = visitor.post("/api/task")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert "inside" not in reply.text
    assert "Traceback" not in reply.text
    assert "the inside of the server" in caplog.text


def test_no_description_of_the_api_is_served(store):
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert Visitor(store).http.get(path).status_code == 404


# ── what comes in ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A store for all requests that are refused; at the end nothing is in it."""
    with open_store(tmp_path_factory.mktemp("untouched")) as opened:
        yield opened
        assert opened.events() == []


@pytest.fixture(scope="module")
def ada(untouched):
    return Visitor(untouched, "Ada")


@pytest.fixture(scope="module")
def port(untouched):
    with serving(create_app(untouched), port=0) as served:
        yield served.address.port


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/..\\app.py",
        "/static/%00",
        "/../../etc/passwd",
        "/static/",
    ],
)
def test_files_come_from_one_directory_only(port, path):
    with socket.create_connection(("127.0.0.1", port)) as wire:
        # A raw request, because clients tidy the path up before they send it.
        wire.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = b"".join(iter(lambda: wire.recv(65536), b""))
    assert reply.split(b" ", 2)[1] in (b"404", b"400")
    assert b"create_app" not in reply
    assert b"root:" not in reply


def test_static_directory_holds_only_what_the_page_needs():
    assert {path.suffix for path in STATIC.iterdir()} == {".js", ".css", ".json", ".svg"}


def test_large_requests_are_refused_before_they_are_read(store):
    visitor = Visitor(store, "Ada")
    reply = visitor.http.post("/api/vote", content=b"x" * (LARGEST_BODY_BYTES + 1), headers={"X-Rlhfkit": "1"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_large_requests_in_pieces_are_refused_too(store):
    pieces = (b"x" * 1024 for _ in range(LARGEST_BODY_BYTES // 1024 + 1))
    reply = Visitor(store, "Ada").http.post("/api/vote", content=pieces, headers={"X-Rlhfkit": "1"})
    assert reply.status_code == 413


NO_OBJECTS = (
    b'{"\\ud83d": 1}',
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"7",
    b"\xff\xfe",
    b"[" * 20_000,
    b"1" * 5000,
    b'{"id": "\xc3\x28"}',
)
NOT_JSON = "an object in JSON, sent with the content type application/json"


def sent(visitor, path, content, kind="application/json"):
    """The code and the words that a request is refused with, and its status."""
    headers = {"X-Rlhfkit": "1"} | ({"Content-Type": kind} if kind else {})
    reply = visitor.http.post(f"/api/{path}", content=content, headers=headers)
    error = reply.json()["error"]
    assert not re.search(r"\{[a-z]+\}", error["message"]), "a gap was not filled"
    return reply.status_code, error["code"], error["message"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("content", NO_OBJECTS)
def test_a_body_that_is_no_object_of_json_is_refused_in_words(ada, path, content):
    status, code, message = sent(ada, path, content)
    assert (status, code) == (422, "not_json")
    assert NOT_JSON in message


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "content",
    [
        {"pair_id": 1, "id": 1, "name": 1},
        {"pair_id": None, "id": None, "name": None},
        {"pair_id": ["x"], "id": {"x": []}, "name": [[]]},
        {"pair_id": "\ud83d", "id": "\ud83d", "name": "\ud83d"},
        {"pair_id": "x" * 501, "id": "x" * 501, "name": "x" * 1001},
        {"what is this": True},
    ],
)
def test_values_of_a_wrong_type_are_refused_by_name(ada, path, content):
    status, code, message = sent(ada, path, json.dumps(content))
    assert (status, code) == (422, "invalid")
    assert any(name in message for name in (*content, "pair_id", "id", "name"))


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", ""])
def test_forms_of_other_pages_are_not_read_as_json(ada, path, kind):
    status, code, message = sent(ada, path, b'{"pair_id": "pair-1"}', kind)
    assert (status, code) == (415, "not_json")
    assert NOT_JSON in message


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_too_large_is_refused_wherever_it_goes(ada, path):
    status, code, message = sent(ada, path, b" " * (LARGEST_BODY_BYTES + 1))
    assert (status, code) == (413, "too_large")
    assert "at most 64 KB" in message


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"; DROP TABLE votes; --"


def test_hostile_text_is_only_text(tmp_path):
    with open_store(tmp_path, [Pair(HOSTILE, HOSTILE, HOSTILE, f"{HOSTILE}!")]) as store:
        visitor = Visitor(store, "Robert'); DROP TABLE votes;--")
        reply = visitor.post("/api/task")
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["task"]["prompt"] == HOSTILE
        assert visitor.vote(HOSTILE, comment=HOSTILE).json()["outcome"] == "recorded"
        (vote,) = store.votes()
        assert (vote.pair_id, vote.comment, vote.annotator) == (HOSTILE, HOSTILE, "Robert'); DROP TABLE votes;--")


def test_title_of_the_project_is_only_text(store):
    app = create_app(store, title=HOSTILE)
    visitor = Visitor(store)
    visitor.http = type(visitor.http)(app, base_url="http://localhost")
    page = visitor.http.get("/").text
    assert "<script>" not in page
    assert "onerror=alert(2)&gt;" in page


def test_refused_host_is_only_text(store):
    reply = Visitor(store).http.get("/none", headers={"Host": "<script>alert(1)</script>.example"})
    assert reply.status_code == 421
    assert "<script>" not in reply.text


def test_server_listens_only_at_this_machine_unless_told_otherwise(store):
    with serving(create_app(store), port=0) as served:
        assert served.address.host == "127.0.0.1"
        reply = httpx.get(served.address.url)
        assert reply.status_code == 200
        assert "server" not in reply.headers
        outside = socket.gethostbyname(socket.gethostname())
        if not outside.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((outside, served.address.port), timeout=1):
                pass


def test_websockets_are_closed(store):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), Visitor(store).http.websocket_connect("/api/task"):
        pass


@pytest.mark.thorough
def test_who_leaves_thousands_of_pairs_makes_nobody_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(label_page, "GRACE_SECONDS", 0.0)
    with open_store(tmp_path) as store:
        mallory, ada = Visitor(store, "Mallory"), Visitor(store, "Ada")
        ada.app.state.site = mallory.app.state.site
        for number in range(300):
            mallory.post("/api/release", {"pair_id": f"pair that nobody has {number}"})
        released = []
        monkeypatch.setattr(store, "release", lambda person, pair_id: released.append(pair_id))
        assert ada.task() is not None
        assert len(released) <= 1


def test_a_vote_is_kept_although_the_store_was_away_when_it_first_came(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        visitor = Visitor(store, "Ada")
        body = vote_body(visitor.task()["pair_id"])
        with monkeypatch.context() as away:

            def gone(*arguments):
                raise StoreError("the server is away")

            away.setattr(store, "vote_and_lease", gone)
            away.setattr(store, "shown_left", gone)
            assert visitor.post("/api/vote", body).status_code == 503
        assert visitor.post("/api/vote", body).json()["outcome"] == "recorded"
