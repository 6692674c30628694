"""Work spread over the machines of a Ray cluster: `with joined("auto"):`, and whoever has work in parts asks `crew()`.

What a part gives is what it gives here, bit for bit where the processors are of one kind: the same function is called
with the same values and as many threads. A part whose worker is lost is done again (`RETRIES`). Ray's own protocol
carries pickled Python, so a cluster is to be as trusted as this machine is; no file is read that way.
"""

import logging
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from karipap_core.errors import Cancelled, InputError, StorageError
from karipap_core.progress import Progress, silent
from karipap_core.version import __version__
from karipap_core.workspace import Workspace

RETRIES = 3  # of a part whose worker was lost
AHEAD = 2  # parts for each worker that are handed over before the first is back
ANSWER_SECONDS = 10.0  # for an address to take a connection
STATUS_SECONDS = 30.0  # for `ray status` to be answered there
LOCAL, AUTO = "local", "auto"
NOT_INSTALLED = "--ray needs Ray, which is not installed: pip install 'karipap[ray]'."


class Crew:
    """The workers of a cluster that was joined; see `joined`.

    slots : parts that run at once. gpus : GPUs of all machines. shared : whether all workers
    see this workspace as the folder that it is here. threads : of each part, as many as here.
    """

    def __init__(self, ray: Any) -> None:
        import torch

        self._ray = ray
        self.nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not self.nodes:
            raise InputError("The cluster of --ray has no CPU to work on: add workers, or begin it with --num-cpus.")
        cpus = [int(node["Resources"]["CPU"]) for node in self.nodes]
        self.threads = torch.get_num_threads()
        self.cpus = min(self.threads, max(cpus))  # that a part asks for
        self.gpus = int(sum(node["Resources"].get("GPU", 0) for node in self.nodes))
        self.slots = max(1, sum(each // self.cpus for each in cpus))
        self.shared = False
        self.facts: dict[str, bool] = {}  # what was found out about the workers, by whoever asked

    def each(
        self, function: Callable, parts: Iterable[Sequence[Any]], common: Sequence[Any] = (), device: str = "cpu"
    ) -> Iterator[Any]:
        """function(*common, *part) of every part, in the parts' order; `common` goes to each machine once.

        device : where a part computes: one on "cuda" gets a GPU of its own. What the function raises is raised here.
        Where the caller stops, or is stopped, parts under way are cancelled. Raises InputError where the cluster has no
        GPU for a part that computes on one, StorageError where a part's workers are lost again and again.
        """
        if device == "cuda" and not self.gpus:
            raise InputError("The cluster of --ray has no GPU, and this machine has: give --device cpu.")
        wanted = {"num_gpus": 1} if device == "cuda" else {"num_cpus": self.cpus}
        remote = self._ray.remote(_called).options(max_retries=RETRIES, **wanted)
        kept = [self._ray.put(each) for each in common]
        going: deque[Any] = deque()
        try:
            for part in parts:
                going.append(remote.remote(function, self.threads, *kept, *part))
                if len(going) >= AHEAD * self.slots:
                    yield self._found(going.popleft())
            while going:
                yield self._found(going.popleft())
        finally:
            for each in going:
                with suppress(Exception):  # of whatever class: it is over
                    self._ray.cancel(each, force=True)

    def everywhere(self, function: Callable, *given: Any) -> list[Any]:
        """function(*given) of every machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = []
        for node in self.nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = self._ray.remote(function).options(num_cpus=0, scheduling_strategy=there, max_retries=RETRIES)
            asked.append(remote.remote(*given))
        return [self._found(each) for each in asked]

    def _found(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.TaskCancelledError:
            raise Cancelled from None
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            why = str(error).strip().splitlines()[0]
            said = f"Workers of the cluster were lost {RETRIES + 1} times at one part of the work: {why}"
            raise StorageError(said) from error


def device_there(own: str) -> str:
    """The device of a part by that of this process: a worker sees the GPU that is its own as the only one."""
    return "cuda" if own.startswith("cuda") else own


def _called(function: Callable, threads: int, *given: Any) -> Any:
    import torch

    torch.set_num_threads(threads)
    return function(*given)


_joined: list[Crew] = []  # at most one


def crew() -> Crew | None:
    """The workers of the cluster that this process has joined, None where it works alone."""
    return _joined[-1] if _joined else None


@contextmanager
def joined(address: str | None, progress: Progress = silent) -> Iterator[None]:
    """Within, work in parts is spread over a Ray cluster; nothing happens for the address None.

    address : host:port of its head, "auto" for the one that this machine belongs to, "local" for a cluster of this
    machine alone, begun and ended here. Parts compute on GPUs where this process does. Raises InputError where Ray
    is not installed, nothing answers, or a worker runs other versions of Python, torch or Karipap.
    """
    if address is None:
        yield
        return
    ray = _begun(address)
    try:
        found = Crew(ray)
        _check_versions(found)
        found.shared = _sees_workspace(found)
        progress("cluster", 1, 1, address, in_words(found))
        _joined.append(found)
        try:
            yield
        finally:
            _joined.pop()
    finally:
        ray.shutdown()


def in_words(found: Crew) -> str:
    """What was joined, and which way data goes."""
    way = f"the shared folder {Workspace().root}" if found.shared else "Ray's object store, since no folder is shared"
    machines = f"{len(found.nodes)} machine{'s' if len(found.nodes) > 1 else ''}"
    return f"{machines}, {found.slots} parts at once, data by {way}"


def _begun(address: str) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(NOT_INSTALLED) from error
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own tells nobody
    if address not in (LOCAL, AUTO):
        _check_answers(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--ray {address}: no cluster could be joined ({why})") from error
    finally:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in the place of the verb's
    return ray


def _check_answers(address: str) -> None:
    """Raises InputError at once where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise InputError(f"--ray {address}: give host:port of the cluster's head (as `ray status` has it), or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray {address}: nothing answers there ({error}).") from None
    # Something else that listens there would have Ray wait for minutes, and then end this process.
    status = "from ray.scripts.scripts import main; main()"
    command = [sys.executable, "-c", status, "status", "--address", address]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=STATUS_SECONDS, stdin=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError) as error:
        if b"InvalidAuthToken" in (getattr(error, "stderr", None) or b""):
            how = "set RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
            raise InputError(f"--ray {address}: this cluster asks for a token: {how}.") from error
        raise InputError(f"--ray {address}: what listens there does not answer `ray status`.") from error


def _versions() -> dict[str, str]:
    import torch

    return {"Python": platform.python_version(), "torch": torch.__version__, "Karipap": __version__}


def _check_versions(found: Crew) -> None:
    def versions() -> dict[str, str] | str:  # pickled whole, since the worker may not have this file
        from importlib import import_module

        try:
            return import_module("karipap_core.cluster")._versions()
        except (ImportError, AttributeError) as error:
            return str(error)

    ours = _versions()
    for node, theirs in zip(found.nodes, found.everywhere(versions), strict=True):
        name = node.get("NodeManagerHostname") or node["NodeID"]
        if isinstance(theirs, str):
            raise InputError(f"Worker {name} of the cluster has no Karipap of this kind ({theirs}): install it there.")
        if wrong := [f"{what} {theirs[what]}, here {ours[what]}" for what in ours if theirs[what] != ours[what]]:
            raise InputError(f"Worker {name} of the cluster runs {'; '.join(wrong)}: install the same versions there.")


def _sees_workspace(found: Crew) -> bool:
    """Whether a file that is written here can be read by every worker, and one that it writes here."""
    word = secrets.token_hex(16)
    folder = Workspace().root / "cluster"
    file = folder / word
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file.write_text(word)
        seen = found.everywhere(_answered, str(file))
        return all(seen) and all((folder / f"{word}-{each}").exists() for each in seen)
    finally:
        for each in folder.glob(f"{word}*"):
            each.unlink(missing_ok=True)


def _answered(file: str) -> str:
    """Writes beside a file what names this worker, where the file holds its own name; "" where it cannot."""
    try:
        if Path(file).read_text() != Path(file).name:
            return ""
        name = f"{socket.gethostname()}-{os.getpid()}"
        Path(f"{file}-{name}").touch()
        return name
    except OSError:
        return ""
