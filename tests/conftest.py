"""What every test shares. Nothing here imports torch: many tests do not need it."""

import os

# Before anything imports torch: two BLAS pools on two cores can be 30 times slower than one.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never download

import gc
import json
import shutil
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

from tests.helpers.paths import REPOSITORY, SHARED
from tests.helpers.schedule import Pieces, place

# A shell that starts us in the background has SIGINT ignored, and every child would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long examples take to make says how busy the machine is, nothing of the code.
hypothesis.settings.register_profile("karipap", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("karipap")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


TIERS = ("unit", "pages", "bad_input", "browser", "whole")


def pytest_collection_modifyitems(items):
    """The tier of a test is the folder that it lies in; files that take long come first (tests.helpers.schedule)."""
    for item in items:
        tier = item.path.relative_to(REPOSITORY).parts[1]
        if tier in TIERS:
            item.add_marker(tier)
    items.sort(key=lambda item: place(item.nodeid))


def pytest_collection_finish():
    """What the imports of all tests have left is there to the end: `gc.collect`, which the product calls before it
    measures memory, need not look through 700,000 objects each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Pieces(config, log)


@pytest.fixture(autouse=True)
def workspace_folder(tmp_path_factory, monkeypatch) -> Path:
    """A workspace of its own for each test; no test writes into the user's."""
    folder = tmp_path_factory.mktemp("workspace")
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def through_app(request, monkeypatch):
    """Pages run through app.py, as on any server that has drawn a page; the jobs that they start only wait."""
    if request.node.get_closest_marker("pages"):
        from tests.helpers import app_page

        app_page.through_app(monkeypatch)
        request.getfixturevalue("started")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium for Playwright's `executable_path`."""
    names = (os.environ.get("KARIPAP_CHROMIUM"), *BROWSERS, MAC_CHROME)
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium here (apt-get install chromium, or name one in KARIPAP_CHROMIUM)")
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    """Chromium under Playwright. A file has its own: Playwright keeps an event loop in the main thread for as long as
    it is there, which other tests must not meet."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The trained model that ships with the project."""
    folder = REPOSITORY / "assets" / "demo_model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("assets/demo_model has no weights (run its train.py)")
    return folder


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real trained 260,032-parameter Llama, where the developers' shared folder is at hand."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260K is not here")
    return folder


@pytest.fixture
def quick_fits():
    """Fits that end early, for tests of what is done with cores and not of how good they are."""
    from tests.helpers.quick import quick_fits

    with quick_fits():
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folders of the architectures, each made once; read only."""
    from tests.helpers.architectures import make

    folders = {}

    def of(name: str) -> Path:
        if name not in folders:
            folders[name] = make(name, tmp_path_factory.mktemp("models") / name)
        return folders[name]

    return of


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of a small Llama; what one test of a file has measured, the next ones find."""
    from tests.helpers.studies import study_of

    return study_of("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama_roots(tmp_path_factory) -> Path:
    """A folder with one small model, `tiny`; read only."""
    from tests.helpers.architectures import make

    folder = tmp_path_factory.mktemp("models")
    make("llama", folder / "tiny")
    return folder


@pytest.fixture
def only_llama(llama_roots, monkeypatch):
    """The dashboard finds `llama_roots`, and remembers nothing of earlier tests."""
    from tests.helpers import app_page

    app_page.alone_with(monkeypatch, llama_roots)


@pytest.fixture
def no_models(tmp_path, monkeypatch):
    """The dashboard finds no model but the demo's, if any, and remembers nothing of earlier tests."""
    from tests.helpers import app_page

    app_page.alone_with(monkeypatch, tmp_path)


@pytest.fixture
def tiny_llama(made, tmp_path, monkeypatch) -> Path:
    """A model folder of a test's own, with a tokenizer, that the dashboard finds as the alias `tiny`."""
    from pages.parts import model

    shutil.copytree(made("llama_untied"), tmp_path / "models" / "tiny")
    monkeypatch.setenv("KARIPAP_MODEL_ROOTS", str(tmp_path / "models"))
    model.found.clear()
    return tmp_path / "models" / "tiny"


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A model folder that the dashboard finds under KARIPAP_MODEL_ROOTS, as the alias `tiny`."""
    import numpy as np
    from safetensors.numpy import save_file

    from pages.parts import model
    from tests.helpers import made_up

    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    tensors = {
        f"{row['name']}.weight": rng.standard_normal(row["shape"]).astype(np.float32)
        for row in made_up.profile(2).weights
    }
    tensors["model.norm.weight"] = np.ones(24, np.float32)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("KARIPAP_MODEL_ROOTS", str(tmp_path / "models"))
    model.found.clear()
    return folder


@pytest.fixture
def profiled(tiny):
    """`tiny` with a profile in the workspace."""
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.workspace import Workspace
    from tests.helpers import made_up

    checkpoint = open_checkpoint(tiny)
    profile = made_up.profile(2, metrics=("weight", "loss"), bonds=True, fingerprint=checkpoint.fingerprint)
    profile.save(Workspace().profile_dir(checkpoint.key, "made-up"))
    return profile


class Commands(list):
    """The commands of jobs that pages start. Each job runs `program` in the place of the verb."""

    program = "import time; time.sleep(30)"


@pytest.fixture
def started(monkeypatch) -> Commands:
    """The commands of jobs that pages start; each job just waits, or runs the `program` that a test gives."""
    from karipap_core import jobs

    commands, real = Commands(), jobs.start

    def start(argv, title, **more):
        commands.append(argv)
        return real(argv, title, **({"program": (sys.executable, "-c", commands.program)} | more))

    monkeypatch.setattr(jobs, "start", start)
    yield commands
    for job in jobs.list_jobs():
        job.cancel()
