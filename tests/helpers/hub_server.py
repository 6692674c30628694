"""A server on this machine that plays the Hugging Face hub for one model: its description and its files."""

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
CHUNK = 1 << 14


@contextmanager
def hub_with(files: dict[str, bytes], hub_id: str = "someone/small", pause: float = 0.0):
    """Serves a repository; yields its address and the list of paths that files were asked for by. pause: seconds
    between two pieces of a file."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/models/{hub_id}"):
                siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                said = {"id": hub_id, "modelId": hub_id, "sha": COMMIT, "siblings": siblings}
                return self.answer(json.dumps(said).encode(), {"Content-Type": "application/json"}, body)
            name = path.removeprefix(f"/{hub_id}/resolve/").partition("/")[2]
            if not path.startswith(f"/{hub_id}/resolve/") or name not in files:
                return self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, body, 404)
            if body:
                asked.append(name)
            tag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, body)

        def answer(self, data: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                try:
                    for at in range(0, len(data), CHUNK):
                        self.wfile.write(data[at : at + CHUNK])
                        time.sleep(pause)
                except OSError:  # whoever asked has gone
                    self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
