"""One architecture through the chain: profile, plan, compress, plain `from_pretrained`, verify, evaluate; and a plan at
full rank, whose model has to be the dense one."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from karipap_core.errors import InputError
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.scoring import Scoring
from karipap_core.networks import NETWORKS
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Entry, Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.story import compress, make_plan
from reliability.architectures.generate import NotBuilt, class_of, inputs_in, make, outputs_of
from reliability.architectures.listing import Architecture

AGREEMENT = 1e-5  # relative, of the outputs in float32
COVERED = 0.95
KEPT = 0.7
LITTLE = CalibrationSettings(tokens=256, window=32, probe_windows=1, check_windows=1)
SCORING = Scoring(window=32, max_tokens=128)


@dataclass
class Row:
    """What came of one architecture.

    `covered` is the share of the parameters outside tables of tokens that a plan can reach, counted in the live model;
    `agreement` ‖a − b‖ / ‖b‖ of the outputs at full rank; `steps` what each step said: "ok", or why not; `faults` the
    steps that ended with a traceback or gave something wrong, where a sentence is what a person may expect.
    """

    name: str
    class_name: str
    kind: str
    covered: float | None = None
    agreement: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if "make" in self.steps and self.steps["make"] != "ok":
            return "not built"
        if self.faults:
            return "wrong"
        return "works" if all(said == "ok" for said in self.steps.values()) else "refused"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(architecture: Architecture, folder: Path, whole: bool = True) -> Row:
    """Runs the chain below `folder`, which holds the tiny checkpoint afterwards; not `whole`: what is covered, and the
    folder at full rank alone."""
    row = Row(architecture.name, architecture.class_name, architecture.kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not _step(row, "make", lambda: make(architecture, folder / "dense")):
            return row
        found: dict[str, Any] = {}
        if _step(row, "profile", lambda: _profile(row, architecture, folder / "dense", found)):
            _step(row, "full rank", lambda: _full_rank(row, architecture, folder, found["study"]))
            if whole:
                _compressed(row, architecture, folder, found["study"])
    return row


def _step(row: Row, name: str, work: Callable[[], Any]) -> bool:
    """Runs a step and notes what came of it; whether it went well."""
    try:
        work()
        row.steps[name] = "ok"
        return True
    except (InputError, NotBuilt) as error:
        row.steps[name] = str(error)
    except AssertionError as error:
        row.steps[name] = row.faults[name] = str(error)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "karipap_core" in frame.filename]
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        row.steps[name] = row.faults[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"
    return False


def _profile(row: Row, architecture: Architecture, dense: Path, found: dict[str, Any]) -> None:
    found["study"] = study = Study(dense, settings=LITTLE, device="cpu")
    study.profile(("weight",))
    live = class_of(architecture).from_pretrained(dense, local_files_only=True).eval()
    whole = outside_tables(live)
    reached = {weight.name: weight.parameters for weight in study.weights}
    row.covered = sum(reached.values()) / whole if whole else 0.0
    assert row.covered <= 1, f"{sum(reached.values()):,} parameters are reached of {whole:,} that there are"
    row.left_out = _left_out(study, reached)


def outside_tables(live: PreTrainedModel) -> int:
    """Parameters of a live model but for its tables of tokens and the heads, of it and of its parts, that give a number
    for each token."""
    tables = {id(module.weight) for module in live.modules() if isinstance(module, nn.Embedding)}
    heads = [part.get_output_embeddings() for part in live.modules() if isinstance(part, PreTrainedModel)]
    tables |= {id(getattr(head, "weight", None)) for head in heads}
    return sum(each.numel() for each in live.parameters() if id(each) not in tables)


def _left_out(study: Study, reached: dict[str, int]) -> dict[str, int]:
    """Why what is not reached is left out, and how many parameters that are."""
    checkpoint, left = study.checkpoint, Counter[str]()
    for entry in checkpoint.skipped:
        left[entry["why"]] += checkpoint.tensors[entry["name"]].items
    for weight in checkpoint.weights:
        if weight.name not in reached:
            left[f"{weight.role}: {'not reached' if weight.compressible else 'not of a block'}"] += weight.parameters
    return dict(left.most_common())


def _full_rank(row: Row, architecture: Architecture, folder: Path, study: Study) -> None:
    """Every weight that a plan can reach as a network without loss."""
    checkpoint = study.checkpoint
    if not study.weights:
        raise InputError("No weight can be reached.")
    entries = {
        weight.name: Entry.made(NETWORKS["lowrank"].for_shape(*weight.shape, min(weight.shape)))
        for weight in study.weights
    }
    plan = Plan(model_entry(checkpoint), "weight", entries)
    made = compress(study, plan, folder / "full", device="cpu")
    row.steps["verify"] = "ok" if made.verified else "refused at full rank"
    dense = class_of(architecture).from_pretrained(folder / "dense", local_files_only=True).eval()
    inputs = inputs_in(folder / "dense")
    theirs = outputs_of(dense, inputs)
    ours = outputs_of(_loaded(architecture, folder / "full"), inputs)
    row.agreement = ((ours - theirs).norm() / theirs.norm()).item()
    assert row.agreement <= AGREEMENT, f"outputs differ by {row.agreement:.1g}"


def _compressed(row: Row, architecture: Architecture, folder: Path, study: Study) -> None:
    found: dict[str, Plan] = {}

    def plan() -> None:
        budget = Budget(kept=KEPT, scope="blocks")
        found["plan"] = made = make_plan(study, budget, rule="uniform", metric="weight", device="cpu")
        kept = made.ledger(study.checkpoint).kept_blocks
        assert kept <= KEPT + 1e-6, f"a budget of {KEPT:.0%} ends at {kept:.0%} kept"

    out, verdict = folder / "compressed", {"checks": [], "ok": False}

    def write() -> None:
        verdict.update(compress(study, found["plan"], out, device="cpu").to_json()["verify"])

    if not (_step(row, "plan", plan) and _step(row, "compress", write)):
        return
    _step(row, "load", lambda: outputs_of(_loaded(architecture, out), inputs_in(folder / "dense")))

    def verified() -> None:
        wrong = [f"{check['name']}: {check['detail']}" for check in verdict["checks"] if check["ok"] is not True]
        assert verdict["ok"], "; ".join(wrong)

    _step(row, "verify", verified)
    _step(row, "evaluate", lambda: evaluate_folder(out, folder / "dense", scoring=SCORING, device="cpu", speed=False))


def _loaded(architecture: Architecture, folder: Path) -> PreTrainedModel:
    """The model of a folder, as anybody loads it: every parameter comes from the file, and every tensor is used."""
    kind = class_of(architecture)
    live, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(str, info[what]))
        assert not keys, f"from_pretrained: {what} {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
    return live.eval()
