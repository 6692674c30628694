"""What the server lets in: asked with real requests over a real socket, as a browser or an attacker would."""

import http.client
import io
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from streamlit import config

from karipap_core.workspace import Workspace
from karipap_core.workspace.names import Names
from pages.parts import pictures, server
from tests.helpers.browser import UPGRADE, dashboard
from tests.helpers.paths import REPOSITORY


def python_of_all() -> str:
    """A Python that every account of this machine may run."""
    return next(path for path in ("/usr/bin/python3", shutil.which("python3")) if path and Path(path).exists())


@pytest.fixture(scope="module")
def place_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def place(place_folder):
    with dashboard(REPOSITORY / "app.py", place_folder) as address:
        yield address.removeprefix("http://")


def ask(place: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(place, timeout=20)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


@pytest.mark.parametrize("path", ["/", "/plan", "/_stcore/health", "/static/nothing.js", "/media/nothing"])
def test_no_answer_may_be_framed(place, path):
    answer = ask(place, path, {})
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_library_of_saved_pages_is_given_out_whole(place):
    answer = ask(place, "/karipap/plotly.min.js", {})
    assert answer.headers["Content-Type"].startswith("text/javascript")
    library = answer.read()
    assert library == pictures.LIBRARY.read_bytes() and b"</script" not in library
    assert ask(place, "/karipap/plotly.min.js", {"Host": "evil.example"}).status == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://127.0.0.1:1", "http://localhost:3000", "null", "file://", "http://[", "{own}.evil"],
)
def test_a_websocket_from_another_origin_is_refused(place, origin):
    """Pages of other ports of this machine too: on a shared one they are other people's."""
    foreign = {"Origin": origin.replace("{own}", f"http://{place}")}
    assert ask(place, "/_stcore/stream", UPGRADE | foreign).status == 403
    answer = ask(place, "/_stcore/health", foreign)
    assert (answer.status, answer.read()) == (403, b"Another site's page may not use this dashboard.")


def test_a_websocket_of_our_own_pages_is_let_in(place):
    port = place.rpartition(":")[2]
    for name in (place, f"localhost:{port}"):
        own = {"Origin": f"http://{name}", "Host": name}
        assert ask(place, "/_stcore/stream", UPGRADE | own).status == 101


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[", "user@localhost"])
def test_a_name_that_is_not_ours_is_refused(place, host):
    """A name that somebody else's name server points here would make their page one of our origin."""
    answer = ask(place, "/", {"Host": host})
    assert answer.status in (400, 403)
    assert ask(place, "/_stcore/stream", UPGRADE | {"Host": host, "Origin": f"http://{host}"}).status in (400, 403)


def test_who_comes_through_a_proxy_is_refused_until_something_in_front_is_said_to_check(place, monkeypatch):
    answer = ask(place, "/", {"X-Forwarded-For": "203.0.113.7"})
    assert answer.status == 403
    assert answer.read().decode() == (
        "This dashboard has no authentication and answers this machine alone (see SECURITY.md)."
    )
    assert ask(place, "/", {"X-Forwarded-For": "127.0.0.1"}).status == 403  # anybody can write that
    scope = {"type": "http", "client": ("203.0.113.7", 1), "headers": [(b"host", b"localhost")]}
    assert server.why_refused(scope) is not None
    monkeypatch.setitem(os.environ, "KARIPAP_ALLOW_REMOTE", "1")
    assert server.why_refused(scope) is None


@pytest.mark.skipif(
    not Path("/proc/net/tcp").is_file() or os.getuid() != 0, reason="needs Linux, and root to be others"
)
def test_another_account_of_this_machine_is_refused(place):
    code = (
        "import http.client, json, sys; c = http.client.HTTPConnection(sys.argv[1], timeout=20); "
        "c.request('GET', '/', headers=json.loads(sys.argv[2])); "
        "a = c.getresponse(); print(a.status, a.read().decode()[:100])"
    )

    def answered(user: int, headers: dict) -> str:
        command = [python_of_all(), "-c", code, place, json.dumps(headers)]
        return subprocess.run(command, user=user, capture_output=True, text=True, cwd="/").stdout

    said = "403 This dashboard belongs to another account of this machine (see SECURITY.md)."
    assert answered(65534, {}).strip() == said
    assert answered(65534, {"X-Forwarded-For": "127.0.0.1"}).startswith("403 This dashboard has no authentication")
    assert answered(0, {}).startswith("200")


def test_an_end_of_a_connection_has_the_account_that_opened_it(monkeypatch):
    def row(mine: str, other: str, state: str, account: int) -> list[str]:
        return ["0:", mine, other, state, "0:0", "0:0", "0", str(account), "0"]

    ours, theirs = os.getuid(), os.getuid() + 1
    table = [row("0100007F:1388", "0100007F:2135", "01", ours), row("0200007F:1388", "0100007F:2135", "01", theirs)]
    table += [row("0100007F:1389", "0100007F:2135", "05", 0), row("0100007F:2135", "0100007F:138A", "01", ours)]
    monkeypatch.setattr(server, "connections", lambda name: table if name == "/proc/net/tcp" else [])

    def passes(host: str, port: int) -> bool:
        return server.of_owner((host, port), ("127.0.0.1", 8501))

    assert passes("127.0.0.1", 5000) and not passes("127.0.0.2", 5000)  # the same ports, another address
    assert not passes("127.0.0.1", 5001)  # on its way down: the kernel says root
    assert not passes("127.0.0.1", 5002)  # the server's own end of a connection is not the client's
    table.clear()
    assert passes("127.0.0.1", 5000)  # no list: not known


@pytest.mark.parametrize(
    ("client", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("", True)]
    + [("10.0.0.2", False), ("0.0.0.0", False), ("::ffff:10.0.0.2", False), ("fe80::1", False), ("unknown", False)],
)
def test_who_is_local(client, here):
    assert server.local((client, 1)) is here


def test_an_origin_that_the_configuration_names_is_let_in(monkeypatch):
    known = {"server.allowedHosts": ["*.example", "localhost"], "server.corsAllowedOrigins": ["https://front.example"]}
    monkeypatch.setattr("streamlit.get_option", lambda name: known.get(name, config.get_option(name)))

    def refused(host: str, origin: str) -> bool:
        headers = [(b"host", host.encode()), (b"origin", origin.encode())]
        return server.why_refused({"type": "websocket", "client": ("127.0.0.1", 1), "headers": headers}) is not None

    assert not refused("a.example", "https://front.example") and refused("a.example", "https://other.example")
    assert not refused("a.example:8501", "http://a.example:8501") and refused("example", "http://example")


@pytest.mark.parametrize("path, leads_to", [("/profile", "/"), ("/profile/?metric=loss", "/?metric=loss")])
def test_the_first_page_opens_by_its_name_too(place, path, leads_to):
    answer = ask(place, path, {})
    assert answer.status == 307 and answer.headers["Location"] == leads_to
    assert ask(place, leads_to, {}).status == 200


@pytest.fixture
def kept(place_folder):
    folder = place_folder / "workspace" / "runs" / "run-one" / "model"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        config = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "karipap"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(bytes(3_000_000))
        (folder.parent / "run.json").write_text("{}")
        Names(Workspace(place_folder / "workspace")).give("run-one", "mine")
    return folder


def test_a_folder_is_taken_home_as_a_zip_file_of_the_size_that_was_said(place, kept):
    answer = ask(place, "/take-home/run-one/model.zip", {"Accept-Encoding": "gzip", "Sec-Fetch-Site": "same-origin"})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="mine.zip"'
    data = answer.read()
    assert answer.status == 200 and len(data) == int(answer.headers["Content-Length"])
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert set(found.namelist()) == {"mine/config.json", "mine/model.safetensors", "mine/HOW-TO-LOAD.txt"}
        assert b"import karipap_core" in found.read("mine/HOW-TO-LOAD.txt")


def test_an_export_is_taken_home_with_its_card_and_its_adapter(place, kept):
    folder = kept.with_name("export-transformers")
    (folder / "adapter").mkdir(parents=True)
    files = ("README.md", "karipap-export.json", "model.gguf", "adapter/adapter_config.json", "adapter/a.safetensors")
    for name in files:  # no config.json: not every engine wants one
        (folder / name).write_bytes(b"{}" if name.endswith("json") else b"x")
    answer = ask(place, "/take-home/run-one/export-transformers.zip", {})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="mine-transformers.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.read())) as found:
        assert set(found.namelist()) == {f"mine-transformers/{name}" for name in files}
    assert ask(place, "/take-home/run-one/export-nothing.zip", {}).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "run-one/dense",
        "run-one/run",
        "nosuch/model",
        "../model",
        "..%2f..%2fetc/model",
        "run-one/..%2f..%2f",
        ".x/model",
    ]
    + ["run-one%00/model", "%2Fetc/model", "x" * 3000 + "/model"],
)
def test_nothing_else_is_taken_home(place, kept, path):
    answer = ask(place, f"/take-home/{path}.zip", {})
    assert answer.status in (400, 404) or answer.headers["Content-Type"].startswith("text/html")  # Streamlit's own page
    assert b"PK" not in answer.read()[:2]


def test_another_sites_page_starts_no_download(place, kept):
    for site in ("cross-site", "same-site"):
        assert ask(place, "/take-home/run-one/model.zip", {"Sec-Fetch-Site": site}).status == 403
    assert ask(place, "/take-home/run-one/model.zip", {"Host": "evil.example"}).status == 403
