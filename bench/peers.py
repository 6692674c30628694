"""What the packages that people would otherwise use lose on a model, measured here beside our own baselines.

    make peers    or    python -m bench.peers [--model FOLDER] [--text FILE] [--calibration FILE] [--packages HQQ …]
                                              [--bits 4 3 2] [--max-tokens 16384] [--all]
                                              [--python .venv-peers/bin/python]

llm-compressor, GPTQModel, auto-round, HQQ, torchao and optimum-quanto quantize the model's blocks at settings near 4,
3 and 2 bits a weight (bench/packages/), in an environment of their own (requirements-peers.txt), on the windows of text
that ours is calibrated on, from weights in 16 bits. They hand over what they read back from what they store, and our
own evaluation measures it (karipap_core/tradeoffs/handover.py): each is a point among the workspace's runs, by package,
version and method. The same command goes on where it stopped. A package that is not installed, or fails, is said so and
is no failure of the others. Bytes count codes at their number of bits, scales, zero points and whatever else is stored,
over 16 bits a number of the blocks; a note says where a package keeps its codes in more.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.packages import PACKAGES, package
from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.study import Study
from karipap_core.terminal import grid
from karipap_core.tradeoffs.baselines import integers
from karipap_core.tradeoffs.handover import DOCUMENT, handed_over
from karipap_core.tradeoffs.point import Point
from karipap_core.tradeoffs.points import Points
from karipap_core.tradeoffs.sweep import MAX_TOKENS, study_and_text
from karipap_core.workspace.files import settings_key, write_json

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "demo_model"
OURS = ((4, 64), (3, 64), (2, 32))  # (bits, group) of our own baselines
Job = tuple[dict, Path]  # a setting of a package, and the folder of what it hands over


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", help="what is measured on (default: the standard library's held-out modules)")
    parser.add_argument("--calibration", help="what is calibrated on (default: as `karipap sweep` chooses it)")
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--bits", nargs="+", type=int, help="these numbers of bits alone")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="tokens to score at most")
    parser.add_argument("--all", action="store_true", help="also what the parts of a package's method do by themselves")
    python = os.environ.get("PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python"))
    parser.add_argument("--python", default=python, help="the interpreter of the packages' environment")
    asked = parser.parse_args(arguments)
    study, text = study_and_text(asked.model, asked.text, asked.calibration)
    points = Points(study, text, study.workspace.root, Scoring(max_tokens=asked.max_tokens))
    print(f"{study.checkpoint.name}, measured on {text.name}, calibrated on {study.text.name}", flush=True)
    rows = list(compared(points, asked.packages, os.path.abspath(asked.python), asked.bits, asked.all))
    print(table(rows))


def compared(
    points: Points, packages: Sequence[str], python: str, bits: Sequence[int] | None = None, more: bool = False
) -> Iterator[Point | tuple[str, str]]:
    """Our own baselines, then what each package comes to: a point, or (what was tried, why there is none)."""
    study = points.study
    for width, group in OURS:
        if not bits or width in bits:
            yield from (points.of_baseline(integers(study, method, width, group)) for method in ("rtn", "gptq"))
    installed = versions(python)
    for name in packages:
        if name not in installed:
            yield name, "not installed in the packages' environment: `make peers` makes it"
            continue
        settings = package(name).SETTINGS + (getattr(package(name), "MORE", []) if more else [])
        settings = [setting for setting in settings if not bits or setting["bits"] in bits]
        for setting, folder in quantized(points, name, installed[name], python, settings):
            group = f" g{setting['group']}" if setting["group"] else ""
            words = f"{name} {installed[name]} {setting['method']} int{setting['bits']}{group}"
            try:
                yield points.of_baseline(handed_over(folder, study.checkpoint))
            except InputError as error:
                yield words, failure(folder) or str(error)


def versions(python: str) -> dict[str, str]:
    """{package: version} of what is installed in the environment of an interpreter; {} where there is none."""
    if not Path(python).exists():
        return {}
    found = subprocess.run([python, "-m", "bench.packages", "versions"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"error: {python} cannot list its packages: {found.stderr.strip().splitlines()[-1]}")
    return json.loads(found.stdout.splitlines()[-1])


def quantized(points: Points, name: str, version: str, python: str, settings: Sequence[dict]) -> list[Job]:
    """Each of these settings of a package with the folder of what it hands over; those that are not there yet are made,
    in one process of the package's environment, whose words go to a log beside the folders."""
    study = points.study
    home = study.workspace.root.absolute() / "peers" / f"{study.checkpoint.key}-{study.key}"
    jobs = []
    for setting in settings:
        key = settings_key({"package": name, "version": version, **setting})
        jobs.append((setting, home / f"{name}-{key}"))
    left = [job for job in jobs if not (job[1] / DOCUMENT).exists()]
    if left:
        for _, folder in left:
            (folder / "error.json").unlink(missing_ok=True)
        file = home / f"{name}.json"
        write_json(file, request(points, home, left))
        print(f"{name} {version}: {len(left)} settings …", file=sys.stderr, flush=True)
        with (home / f"{name}.log").open("w", encoding="utf-8") as log:
            command = [python, "-m", "bench.packages", name, str(file)]
            # Beside what it hands over: packages leave logs where they run.
            ended = subprocess.run(command, cwd=home, stdout=log, stderr=subprocess.STDOUT, env=quiet()).returncode
        for _, folder in left:
            if ended and not (folder / DOCUMENT).exists() and failure(folder) is None:
                write_json(folder / "error.json", {"error": f"ended with {ended}; see {log.name}"})
    return jobs


def request(points: Points, home: Path, jobs: Iterable[Job]) -> dict:
    """What a package is asked for. Writes what it needs beside: the dense model in 16 bits, the windows that our own
    moments are taken from, and which module of the model holds which weight."""
    import torch

    from karipap_core.models.load import load_model, load_tokenizer
    from karipap_core.profiles.activations import calibration_windows
    from karipap_core.workspace.kept import keep_tensors

    study: Study = points.study
    checkpoint, folder, file = study.checkpoint, home / "model", home / "windows.safetensors"
    if not (folder / "config.json").exists():
        half = torch.float16 if any(weight.dtype == "float16" for weight in checkpoint.weights) else torch.bfloat16
        model, tokenizer = load_model(checkpoint, half, run=False)
        unfinished = folder.with_suffix(".unfinished")
        for part in filter(None, (model, tokenizer)):
            part.save_pretrained(unfinished)
        unfinished.rename(folder)
    tokenizer = load_tokenizer(checkpoint.home)
    windows = calibration_windows(tokenizer, study.text, study.settings, checkpoint.vocabulary or 0)
    keep_tensors(file, {"input_ids": windows.moments.contiguous()})
    sites = {points.bench.sites[weight.name].path: weight.name for weight in study.weights}
    return {
        "model": checkpoint.identity,
        "folder": str(folder),
        "windows": str(file),
        "weights": sites,
        "jobs": [{"setting": setting, "folder": str(place)} for setting, place in jobs],
    }


def failure(folder: Path) -> str | None:
    """The words of a package that failed; None where it did not."""
    try:
        return json.loads((folder / "error.json").read_text("utf-8"))["error"]
    except FileNotFoundError:
        return None


def quiet() -> dict[str, str]:
    """The environment of a package's process: no network, one thread unless asked otherwise."""
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""} | os.environ
    return settings | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def table(rows: Iterable[Point | tuple[str, str]]) -> str:
    """What there is to print of points and of what failed."""
    cells: list[list] = []
    said: dict[str, None] = {}
    for row in rows:
        if isinstance(row, tuple):
            cells.append([row[0], None, None, None, None, None])
            said[f"{row[0]}: {row[1]}"] = None
            continue
        figures = row.figures
        loss = [figures.get("rise", figures.get("relative_error")), figures.get("kl")]
        span = f"{figures['rise_low']:.4f} to {figures['rise_high']:.4f}" if "rise_low" in figures else None
        size, seconds = f"{figures['bytes_kept_blocks']:.3f}", round(row.seconds.get("plan", 0)) or None
        cells.append([row.label, size, *[each if each is None else f"{each:.4f}" for each in loss], span, seconds])
        said |= dict.fromkeys(f"{row.label}: {note}" for note in figures.get("notes", ()))
    head = ["", "bytes of blocks", "rise", "KL", "95 % of the rise", "seconds to make"]
    return "\n".join([grid(head, cells), "", *said])


if __name__ == "__main__":
    main()
