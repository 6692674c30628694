"""What engines make of exports: bytes, loss and speed of each form in each engine, beside the dense model there.

    python -m bench.exports [MODEL …] [--wide 1024] [--text FILE] [--tokens 8192] [--to NAME …] [--threads 1] …

Every model (default: the bundled one) is compressed as int8, int4, qlr (int4 with corrections of rank 8, 16 and 24 in
turn) and low-rank (half of each weight's numbers), each weight alike and in the weight metric: what is compared is not
how good a plan is, but the same folder on two sides. Each export runs in its own engine, and so does the same folder
with every weight dense (`export --plain`), one after the other: a busy machine shows in the speeds. Karipap's own side
is computed once for all engines. What is measured is kept in `bench/exports.json` of the workspace. `make engines`
makes the environments that --python finds by itself. --wide adds a Llama of random weights whose matrices are at
least so wide: networks save time from some width on, and what a model has learnt is nothing to that.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.compressed.compress import compress
from karipap_core.errors import InputError
from karipap_core.exports import TARGETS
from karipap_core.exports.check import Asked, answered, figures, ours, questions, speeds
from karipap_core.exports.export import export
from karipap_core.exports.exporter import Wanted, exporter_named
from karipap_core.exports.source import Source
from karipap_core.networks import NETWORKS
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.text import Text, read_text, standard_library
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import environment

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("int8", "int4", "qlr", "lowrank")
RANKS = (8, 16, 24)
ENVIRONMENTS = {"vllm": ".venv-vllm"}  # every other engine is in .venv-engines


@dataclass(frozen=True)
class Seen:
    """What every engine is asked of a folder, and what Karipap answers (windows, tokens)."""

    asked: Asked
    own: "torch.Tensor"


def random_llama(folder: Path, width: int) -> Path:
    """A Llama of random weights, six layers of matrices at least `width` wide, with the bundled model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    demo = ROOT / "assets" / "demo_model"
    vocabulary = json.loads((demo / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    config = LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=6, vocab_size=vocabulary, **heads
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in demo.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


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


def in_engine(
    folder: Path, target: str, out: Path, asked: Asked, python: Path | None, plain: bool = False
) -> tuple[dict, Asked, dict]:
    """(what `export` says, what the engine was asked, what it answers) of an export that is gone behind it."""
    exporter = exporter_named(target)
    written = export(folder, target, out, plain=plain)
    asked = replace(asked, dtype=exporter.dtype(Source(folder, plain), Wanted()))
    answer = answered(exporter, out, asked, python)
    shutil.rmtree(out)
    return written, asked, answer


def measured(folder: Path, target: str, scratch: Path, seen: Seen, python: Path | None) -> dict:
    """The export in its engine, and after it the same folder dense there for its speed."""
    try:
        written, asked, answer = in_engine(folder, target, scratch / target, seen.asked, python)
        bare = replace(seen.asked, windows=[])
        dense, _, timed = in_engine(folder, target, scratch / f"{target}-plain", bare, python, plain=True)
    except InputError as error:
        return {"error": str(error)}
    return {key: written[key] for key in ("bytes", "source_bytes", "dense_bytes", "summary")} | {
        "dtype": asked.dtype,
        "measured": figures(seen.own, answer, asked),
        "dense": {"bytes": dense["bytes"], **speeds(timed, asked)},
    }


def rows(models: list[Path], text: Text, options: argparse.Namespace) -> Iterator[dict]:
    """Each model in each form in each engine."""
    for model in models:
        study = Study(model)
        for form in options.forms:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / form
                compress(study, plan_of(study, form), folder)
                asked = replace(questions(folder, text, options.tokens), threads=options.threads)
                seen = Seen(asked, ours(folder, asked))
                for target in options.to:
                    found = measured(folder, target, Path(scratch), seen, python_of(target, options.python))
                    yield {"model": study.checkpoint.name, "form": form, "to": target} | found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--wide", type=int, help="a random Llama of this width, too")
    parser.add_argument("--threads", type=int, default=1)
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
        "in Karipap | tokens written a second | dense there | tokens read a second | dense there |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as made:
        models = options.models or ([] if options.wide else [ROOT / "assets" / "demo_model"])
        if options.wide:
            models = [*models, random_llama(Path(made) / f"random-{options.wide}", options.wide)]
        for found in rows(models, text, options):
            kept.append(found)
            print(line(found), flush=True)
    file = Workspace().root / "bench" / "exports.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"environment": environment(), "rows": kept}, indent=1))
    print(f"\nkept in {file}")
    return 0


def line(found: dict) -> str:
    head = f"| {found['model']} | {found['form']} | {found['to']} |"
    if "error" in found:
        return f"{head} {found['error']} | | | | | | | |"
    ours, dense = found["measured"], found["dense"]
    cells = [
        f"{found['bytes'] / 1e6:.1f} MB",
        f"{found['source_bytes'] / 1e6:.1f} MB",
        f"{ours['largest']:.4f}",
        f"{ours['loss']:.4f}",
        f"{ours['karipap_loss']:.4f}",
        *(f"{side[f'{key}_tokens_per_second']:.0f}" for key in ("decode", "prefill") for side in (ours, dense)),
    ]
    return f"{head} {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
