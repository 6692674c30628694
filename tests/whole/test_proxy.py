"""The example of SECURITY.md, run: nginx with a password in front of the dashboard."""

import base64
import getpass
import http.client
import re
import shutil
import socket
import ssl
import subprocess
import time

import pytest

from reliability.dashboard import free_port
from tests.helpers.browser import UPGRADE, dashboard
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.skipif(
    not shutil.which("nginx") or not shutil.which("openssl"), reason="nginx or openssl is not installed here"
)
HOST = "karipap.example"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """The port of nginx with the very configuration of SECURITY.md; only ports and the place of its files are other."""
    folder = tmp_path_factory.mktemp("proxy")
    ours = ["-subj", f"/CN={HOST}", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *ours], check=True, capture_output=True)
    word = subprocess.run(["openssl", "passwd", "-6", "secret"], check=True, capture_output=True, text=True).stdout
    (folder / "users").write_text(f"reader:{word}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KARIPAP_ALLOW_REMOTE", "1")
        with dashboard(REPOSITORY / "app.py", folder, flags=("--server.allowedHosts", HOST)) as address:
            port = free_port()
            text = (REPOSITORY / "SECURITY.md").read_text("utf-8")
            settings = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)[1]
            settings = settings.replace("127.0.0.1:8501", address.removeprefix("http://"))
            settings = settings.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/karipap", str(folder))
            (folder / "nginx.conf").write_text(settings)
            command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log", "-p", folder]
            command += ["-g", f"daemon off; pid {folder / 'pid'}; user {getpass.getuser()};"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as nginx:
                for _ in range(100):
                    try:
                        socket.create_connection(("127.0.0.1", port), 1).close()
                        break
                    except OSError:
                        assert nginx.poll() is None, (folder / "error.log").read_text()
                        time.sleep(0.1)
                yield port
                nginx.terminate()


def ask(port: int, path: str, word: str | None = None, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=ssl._create_unverified_context())
    if word:
        headers["Authorization"] = "Basic " + base64.b64encode(f"reader:{word}".encode()).decode()
    connection.request("GET", path, headers={"Host": f"{HOST}:{port}"} | headers)
    return connection.getresponse()


@pytest.mark.parametrize("path", ["/", "/plan", "/_stcore/health", "/_stcore/stream"])
@pytest.mark.parametrize("word", [None, "wrong"])
def test_nobody_comes_in_without_the_password(proxy, path, word):
    assert ask(proxy, path, word).status == 401


def test_who_knows_it_sees_the_dashboard_which_may_still_not_be_framed(proxy):
    answer = ask(proxy, "/", "secret")
    assert answer.status == 200 and b"<title>Streamlit</title>" in answer.read()
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://{host}", 101), ("https://evil.example", 403), ("https://evil.{host}", 403), ("null", 403)],
)
def test_the_websocket_is_for_our_own_pages(proxy, origin, status):
    own = {"Origin": origin.format(host=f"{HOST}:{proxy}")}
    assert ask(proxy, "/_stcore/stream", "secret", **UPGRADE, **own).status == status


def test_another_name_is_refused(proxy):
    assert ask(proxy, "/", "secret", Host="evil.example").status == 403
