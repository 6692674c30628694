"""A wheel built from the tree, installed into a fresh environment and used outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest

import karipap_core
from tests.helpers.paths import REPOSITORY

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "karipap_core")
# What is no Python and has to be in the wheel all the same, each beside the module that reads it.
DATA = [
    str(file.relative_to(REPOSITORY))
    for file in (REPOSITORY / "karipap_core").rglob("*")
    if file.suffix in (".json", ".j2", ".css", ".typed")
]


def run(*command: str | Path, folder: Path) -> str:
    """What a program prints, run in `folder` with no checkout in its path."""
    outside = {key: word for key, word in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    outside |= {"PYTHONSAFEPATH": "1"}  # the folder that it runs in counts for nothing
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=outside, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    built = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist", ".")
    run(sys.executable, "-m", "pip", *built, folder=folder)
    return next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """The `bin` of an environment with this wheel; what it depends on is borrowed from the environment of the tests."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", "env", folder=folder)
    programs = folder / "env" / "bin"
    install = ("install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", programs / "python", *install, folder=folder)
    site = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder)
    (Path(site.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_the_wheel_holds_the_package_and_its_data_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    known = ("schemas/plan.schema.json", "deployment/hardware.json", "tradeoffs/published.json", "py.typed")
    assert {f"karipap_core/{name}" for name in known} <= set(DATA) <= set(names)
    assert {name.split("/")[0] for name in names} == {"karipap_core", f"karipap-{karipap_core.__version__}.dist-info"}
    assert not [name for name in names if "test" in Path(name).name]
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_command_line_in_a_fresh_environment(fresh, made, tmp_path):
    model, karipap = made("llama_untied"), fresh / "karipap"
    where = run(fresh / "python", "-c", "import karipap_core; print(karipap_core.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(fresh.parent)
    assert run(karipap, "--version", folder=tmp_path).strip() == f"karipap {karipap_core.__version__}"
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the square of {n} is {n * n}\n" for n in range(60)))
    shown = run(karipap, "profile", model, "--metrics", "weight", folder=tmp_path)
    assert "layers.0.mlp.down_proj" in shown
    how = ("--budget", "0.8", "--rule", "uniform", "--metric", "weight", "--out", "plan.json")
    run(karipap, "plan", model, *how, folder=tmp_path)
    run(karipap, "compress", model, "--plan", "plan.json", "--out", "compressed", folder=tmp_path)
    shown = run(karipap, "evaluate", "compressed", "--text", text, "--max-tokens", "64", folder=tmp_path)
    assert "perplexity" in shown and (tmp_path / "compressed" / "evaluation.json").is_file()


def test_the_lines_of_the_package_s_own_words_run_as_they_stand(fresh, made, tmp_path):
    """Those of `karipap_core`'s docstring, on a small model in the demo model's place."""
    block = karipap_core.__doc__.split("\n\n", 1)[1].split("\n\nThe public names")[0]
    program = textwrap.dedent(block)
    assert "kp.evaluate(made" in program and '"assets/demo_model"' in program
    said = run(fresh / "python", "-c", program.replace("assets/demo_model", str(made("llama_untied"))), folder=tmp_path)
    entropy, planned, kept, perplexity = map(float, said.split())
    assert 0 < entropy < 10 and planned == kept and 0.65 < kept <= 0.7 and 1 < perplexity < 1e6
