"""A judge in this process: an endpoint that answers chat completions as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, str]


def said(content: str, **more: Any) -> str:
    """The body of an answer in which the judge says `content`."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": more.pop("finish_reason", "stop")}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"choices": [choice], "usage": usage, **more})


def judged(score: object, reason: str = "so") -> str:
    """The same with a judgement."""
    return said(json.dumps({"reason": reason, "score": score}))


class ChatServer:
    """`answer` maps the body of a request to a body, with another status than 200 where a pair is given."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: judged(5)
        self.under_way, self.most_under_way, self._lock = 0, 0, threading.Lock()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with chat._lock:
                    chat.requests.append(body)
                    chat.paths.append(self.path)
                    chat.headers.append({name.lower(): value for name, value in self.headers.items()})
                    chat.under_way += 1
                    chat.most_under_way = max(chat.most_under_way, chat.under_way)
                found = chat.answer(body)
                with chat._lock:
                    chat.under_way -= 1
                status, text = (200, found) if isinstance(found, str) else found
                self.send_response(status)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        class QuietServer(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that left after its timeout

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server that runs for the block."""
    chat = ChatServer()
    thread = threading.Thread(target=chat.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        chat.server.shutdown()
        thread.join(timeout=5)
        chat.server.server_close()
