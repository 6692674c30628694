"""What the server refuses before Streamlit sees it, and what every answer says to the browser.

Streamlit answers every account of this machine, takes a websocket from any page of it, whatever its port, and lets its
pages be framed. On a shared machine all three are ways in: what the dashboard starts runs as its owner.
"""

import ipaddress
import os
import re
import sys
from pathlib import Path

import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from karipap_core.exports import TARGETS
from pages.parts import pictures

HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",  # the same for browsers that do not know the line above
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # addresses name models and drafts
}
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]*?)\.?(?::\d{1,5})?")  # name, or address in brackets; port
FIRST_PAGE = "/profile"
# What can be taken home of a run, and what that adds to its name.
TAKEN = {"model": "", "dense": "-dense"} | {f"export-{name}": f"-{name}" for name in TARGETS}
ESTABLISHED = "01"  # of the kernel's states of a connection
POLICY_VIOLATION = 1008  # RFC 6455; before a handshake is accepted the client sees status 403


def remote_allowed() -> bool:
    """Whether somebody said that something in front of this server checks who comes in."""
    return os.environ.get("KARIPAP_ALLOW_REMOTE") == "1"


def middleware() -> list[Middleware]:
    """For `st.App`: runs before all that Streamlit does with a request."""
    return [Middleware(Guard), Middleware(FirstPage), Middleware(Library)]


def routes() -> list[Route]:
    """For `st.App`: what is too large for a download button of Streamlit's, which holds it in memory."""
    return [Route("/take-home/{run}/{what}.zip", take_home, methods=["GET"])]


def take_home(request: Request) -> Response:
    """The compressed folder of a run of the workspace as a ZIP file, or one that was written from it (`what`: a key of
    `TAKEN`). Ids alone are taken, and a folder lies where its run's id says and nowhere else."""
    from karipap_core.compressed import archive
    from karipap_core.errors import InputError
    from karipap_core.schemas import checked_name
    from karipap_core.workspace import Workspace
    from karipap_core.workspace.names import Names

    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return PlainTextResponse("Another site's page may not use this dashboard.", status_code=403)
    try:
        run, what = checked_name(request.path_params["run"]), request.path_params["what"]
        if what not in TAKEN:
            raise InputError(f"There is {' or '.join(TAKEN)}.")
        name = (Names().of(run) or run) + TAKEN[what]
        folder = Workspace().runs_dir / run / what
        exported = what.startswith("export-")  # its card says how it is loaded
        more = {} if exported else {"HOW-TO-LOAD.txt": archive.how_to_load(folder, name).encode()}
        files = archive.members(folder, name, more)
    except InputError:
        return PlainTextResponse("The workspace has no such folder.", status_code=404)
    headers = {"Content-Length": str(archive.size(files)), "Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(archive.stream(files), media_type="application/zip", headers=headers)


class Guard:
    """ASGI middleware: requests from elsewhere end here with status 403; answers get `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = why_refused(scope) if scope["type"] in ("http", "websocket") else None
        if why is None:
            await self.app(scope, receive, with_headers(send) if scope["type"] == "http" else send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": why})
        else:
            await PlainTextResponse(why, status_code=403)(scope, receive, with_headers(send))


class FirstPage:
    """ASGI middleware: the first page stands at `/` alone, so its name leads there, with what the address asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") == FIRST_PAGE:
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"/?{query}" if query else "/", status_code=307)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Library:
    """ASGI middleware: gives out the library that a saved page draws its figure with (`pictures`)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith(f"/{pictures.ADDRESS}"):
            await FileResponse(pictures.LIBRARY, media_type="text/javascript")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending


def why_refused(scope: Scope) -> str | None:
    """The sentence for a request that is refused, None for one that may pass."""
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if not remote_allowed():
        if "x-forwarded-for" in headers or not local(scope.get("client")):
            return "This dashboard has no authentication and answers this machine alone (see SECURITY.md)."
        if not of_owner(scope.get("client"), scope.get("server")):
            return "This dashboard belongs to another account of this machine (see SECURITY.md)."
    if not host_allowed(host):
        return "This server does not go by that name: see server.allowedHosts in .streamlit/config.toml."
    if origin is not None and not own(origin, host):
        return "Another site's page may not use this dashboard."
    return None


def local(client: tuple[str, int] | None) -> bool:
    """Whether a request comes from this machine."""
    if client is None or not client[0]:  # a Unix socket
        return True
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def of_owner(client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> bool:
    """Whether the account at the other end of a connection within this machine is ours, or root.

    The kernel lists each end of a connection with the account that opened it. Where there is no such list (it is
    Linux's) nothing is known, and everybody on this machine passes. A connection that is on its way down has no account
    any more, and does not pass.
    """
    if client is None or not client[0] or server is None:
        return True
    ends = f"{in_kernel(client[0])}:{client[1]:04X}", f":{server[1]:04X}"
    rows = [row for table in ("/proc/net/tcp", "/proc/net/tcp6") for row in connections(table)]
    accounts = {int(row[7]) for row in rows if row[1] == ends[0] and row[2].endswith(ends[1]) and row[3] == ESTABLISHED}
    return not rows or bool(accounts) and accounts <= {0, os.getuid()}


def connections(table: str) -> list[list[str]]:
    """Rows of the kernel's list: number, this end, other end, state, two of queues, timer, account …"""
    try:
        lines = Path(table).read_text("ascii").splitlines()[1:]
    except OSError:
        return []
    return [row for line in lines if len(row := line.split()) > 7]


def in_kernel(address: str) -> str:
    """An address as the kernel writes it: words of 32 bits, each in the machine's order of bytes."""
    packed = ipaddress.ip_address(address).packed
    words = [packed[at : at + 4][:: -1 if sys.byteorder == "little" else 1] for at in range(0, len(packed), 4)]
    return b"".join(words).hex().upper()


def host_allowed(host: str) -> bool:
    """Whether the request names this server by one of `server.allowedHosts`: a name that somebody else's name server
    points here (DNS rebinding) would make their page one of our own origin."""
    allowed = [pattern.lower().rstrip(".") for pattern in st.get_option("server.allowedHosts")]
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].lower().strip("[]")
    matches = (name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern for pattern in allowed)
    return not allowed or "*" in allowed or any(matches)


def own(origin: str, host: str) -> bool:
    """Whether a page of this origin is one of ours: the host and port that it was asked for, or one that the
    configuration names (`server.corsAllowedOrigins`)."""
    return origin in (f"http://{host}", f"https://{host}") or origin in st.get_option("server.corsAllowedOrigins")
