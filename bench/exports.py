"""What engines make of exports: bytes, loss and speed of each form in each engine, beside the dense model there.

    python -m bench.exports [MODEL …] [--text FILE] [--tokens 8192] [--to NAME …] [--python TARGET=PYTHON …]

Every model (default: the bundled one) is compressed as int8, int4, qlr (int4 with corrections of rank 8, 16 and 24 in
turn) and low-rank (half of each weight's numbers), each weight alike and in the weight metric: what is compared is not
how good a plan is, but the same folder on two sides. Each export runs in its own engine, and so does the same folder
with every weight dense (`export --plain`), one after the other: a busy machine shows in the speeds. What is measured
is kept in `bench/exports.json` of the workspace. `make engines` makes the environments that --python finds by itself.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.compress import compress
from karipap_core.errors import InputError
from karipap_core.exports import TARGETS
from karipap_core.exports.export import export
from karipap_core.networks import NETWORKS
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.text import read_text, standard_library
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import environment

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("int8", "int4", "qlr", "lowrank")
RANKS = (8, 16, 24)
ENVIRONMENTS = {"vllm": ".venv-vllm"}  # every other engine is in .venv-engines


def plan_of(study: Study, form: str) -> Plan:
    entries = {}
    for number, weight in enumerate(weight for weight in study.weights if weight.compressible):
        rows, columns = weight.shape
        if form == "lowrank":
            rank = max(1, rows * columns // (2 * (rows + columns)))
            spec = NETWORKS["lowrank"].for_shape(rows, columns, rank)
        elif form == "qlr":
            spec = NETWORKS["qlr"].for_shape(rows, columns, RANKS[number % len(RANKS)], bits="int4")
        else:
            spec = Dense.for_shape(rows, columns, quantize=form)
        entries[weight.name] = spec.to_json()
    return Plan(model_entry(study.checkpoint), "weight", entries)


def python_of(target: str, named: dict[str, str]) -> Path | None:
    """The interpreter that has the engine: as named, that of `make engines`, or None for this one."""
    found = Path(named.get(target) or ROOT / ENVIRONMENTS.get(target, ".venv-engines") / "bin" / "python")
    return found if found.exists() else None


def measured(folder: Path, target: str, scratch: Path, text, options) -> list[dict]:
    """The export and, after it, the same folder dense, in one engine."""
    rows = []
    for plain in (False, True):
        out = scratch / f"{target}-{plain}"
        try:
            found = export(
                folder,
                target,
                out,
                plain=plain,
                overwrite=True,
                check=text,
                python=python_of(target, options.python),
                tokens=options.tokens if not plain else 1024,
            )
        except InputError as error:
            return [{"error": str(error)}]
        rows.append({key: found[key] for key in ("bytes", "source_bytes", "dense_bytes", "summary", "measured")})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[ROOT / "assets" / "demo_model"])
    parser.add_argument("--text", type=Path, help="default: the standard library's held-out modules")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--python", nargs="+", default=[], metavar="TARGET=PYTHON")
    options = parser.parse_args()
    options.python = dict(word.split("=", 1) for word in options.python)
    text = read_text(options.text) if options.text else standard_library("heldout")
    kept = []
    print(
        "| model | form | engine | bytes | in Karipap's folder | largest difference of ln p | loss in the engine | "
        "in Karipap | tokens a second | dense there |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for model in options.models:
        study = Study(model)
        for form in options.forms:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / form
                compress(study, plan_of(study, form), folder)
                for target in options.to:
                    rows = measured(folder, target, Path(scratch), text, options)
                    kept.append({"model": open_checkpoint(model).name, "form": form, "to": target, "rows": rows})
                    print(line(kept[-1]), flush=True)
    file = Workspace().root / "bench" / "exports.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"environment": environment(), "rows": kept}, indent=1))
    print(f"\nkept in {file}")
    return 0


def line(found: dict) -> str:
    head = f"| {found['model']} | {found['form']} | {found['to']} |"
    if "error" in found["rows"][0]:
        return f"{head} {found['rows'][0]['error']} | | | | | | |"
    ours, dense = (row["measured"] for row in found["rows"])
    first = found["rows"][0]
    speeds = [each["decode_tokens_per_second"] for each in (ours, dense)]
    cells = [
        f"{first['bytes'] / 1e6:.1f} MB",
        f"{first['source_bytes'] / 1e6:.1f} MB",
        f"{ours['largest']:.4f}",
        f"{ours['loss']:.4f}",
        f"{ours['karipap_loss']:.4f}",
        *("" if speed is None else f"{speed:.0f}" for speed in speeds),
    ]
    return f"{head} {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
