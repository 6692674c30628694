"""A dashboard of its own on a free port, and the way to one of its pages: for tests, measurements and load."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app import PAGES
from karipap_core import jobs
from karipap_core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(
    folder: Path, script: Path | str = "app.py", roots: str = "", flags: tuple[str, ...] = (), checkout: Path = ROOT
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serves a Streamlit script of a checkout with a workspace and a log in `folder`; yields its address and process.

    It has a session of its own, so that what stops a test does not stop it before it has been cleaned up.
    """
    port = free_port()
    settings = {"KARIPAP_WORKSPACE": str(folder / "workspace"), "KARIPAP_MODEL_ROOTS": roots, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}", "--server.headless=true"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *flags], cwd=checkout, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
        )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                    break
                except urllib.error.HTTPError:  # it is up, and refuses this name (--server.allowedHosts)
                    break
                except OSError:
                    assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
                    time.sleep(0.25)
            yield address, server
        finally:
            for job in jobs.list_jobs(Workspace(folder / "workspace")):  # they outlive a server, and a test that failed
                job.cancel()
            server.terminate()
            server.wait(30)


def to_page(page, title: str) -> None:
    """Clicks on a page's name: in the bar at the top, or in the menu of its section."""
    link = page.get_by_test_id("stTopNavLink").filter(has_text=title)
    if not link.count():
        section = next(name for name, pages in PAGES.items() if title in [shown for _, shown, _ in pages])
        page.get_by_test_id("stTopNavSection").filter(has_text=section).click()
        link = page.get_by_test_id("stTopNavDropdownLink").filter(has_text=title)
    link.click()
