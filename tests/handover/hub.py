"""A stand-in for the HTTP interface of the Hugging Face hub, as far as an upload needs it, on this machine alone."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LFS = (".safetensors", ".gguf")


class Hub:
    """What the stand-in holds, and how it behaves."""

    def __init__(self):
        self.repos = {}  # name → whether it is private
        self.files = {}  # name → path → content, of the last commit
        self.objects = {}  # SHA-256 → content that was uploaded
        self.commits = []
        self.asked = []
        self.token = "hf_right"
        self.may_write = True
        self.breaks_off = False  # in the middle of a large file
        self.chunk_bytes = None  # large files in parts of so many bytes
        self.parts = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, code, content=None, **headers):
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refused(self, *, to_write):
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
        elif to_write and not self.hub.may_write:
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        else:
            return False
        return True

    def handle_any(self):
        path, body, hub = urlsplit(self.path).path, b"" if self.command == "PUT" else self.body(), self.hub
        hub.asked.append((self.command, path))
        if self.command == "PUT":
            return self.put(path)
        if path.startswith("/done/"):  # of a file in parts
            oid = path.removeprefix("/done/")
            return self.keep(
                oid, b"".join(hub.parts[oid, number] for number in sorted(n for o, n in hub.parts if o == oid))
            )
        if self.refused(to_write=self.command == "POST"):
            return None
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            if name in hub.repos:
                return self.answer(409, {"error": "exists", "url": f"http://{self.headers['Host']}/{name}"})
            hub.repos[name] = given.get("private") or given.get("visibility") == "private"
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(
                200, {"transfer": "basic", "objects": [self.action(each) for each in json.loads(body)["objects"]]}
            )
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in path:
            return self.commit(path.split("/api/models/")[1].split("/commit/")[0], body)
        name = path.removeprefix("/api/models/").split("/revision/")[0]
        if name not in hub.repos:
            return self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        return self.answer(200, {"id": name, "private": hub.repos[name], "sha": "0" * 40, "siblings": []})

    do_GET = do_POST = do_PUT = handle_any

    def action(self, file):
        oid, size, hub = file["oid"], file["size"], self.hub
        if oid in hub.objects:
            return {"oid": oid, "size": size}
        address = f"http://{self.headers['Host']}"
        if hub.chunk_bytes is None:
            return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{address}/put/{oid}"}}}
        count = -(-size // hub.chunk_bytes)
        parts = {f"{number:05}": f"{address}/part/{oid}/{number}" for number in range(1, count + 1)}
        header = {"chunk_size": str(hub.chunk_bytes), **parts}
        return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{address}/done/{oid}", "header": header}}}

    def put(self, path):
        length = int(self.headers["Content-Length"])
        if self.hub.breaks_off:
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.close()
        content = self.rfile.read(length)
        if path.startswith("/part/"):
            oid, number = path.removeprefix("/part/").split("/")
            self.hub.parts[oid, int(number)] = content
            return self.answer(200, ETag=f"part-{number}")
        return self.keep(path.removeprefix("/put/"), content)

    def keep(self, oid, content):
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        return self.answer(200, {})

    def commit(self, name, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = self.hub.files.setdefault(name, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                self.hub.commits.append(value["summary"])
        address = f"http://{self.headers['Host']}/{name}/commit/1"
        return self.answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": address})


@contextmanager
def hub():
    """A hub that runs, and its address."""
    held = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": held}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
