"""Measure the demo model and ship the result beside it (`karipap/`), so that nobody waits for the first page.

    python assets/demo_model/measure.py

Profile under the three metrics with every MPO bond, curves of every network that `auto` chooses from, the calibration
under the loss metric, and what each weight and each layer loses when it alone is cut to half by low rank, as
`karipap` would find them: see `Workspace.adopt`. Half an hour on one core. The measured runs in
`karipap/runs` are those of the sweep in README, copied.
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from karipap_core.evaluation.suits import SIDES, suits, text_of  # noqa: E402
from karipap_core.plan.options import WHOLE, kinds_of  # noqa: E402
from karipap_core.plan.study import Study  # noqa: E402
from karipap_core.progress import json_lines  # noqa: E402
from karipap_core.studies.sensitivity.measure import sensitivity  # noqa: E402
from karipap_core.text import standard_library  # noqa: E402
from karipap_core.workspace.files import write_json  # noqa: E402

MEASURED = ("profiles", "curves", "calibration", "sensitivity", "texts")
REACHABLE = ("reachable.json", "tables.json")  # which weights a plan can change: without them transformers is asked
METRICS = ("weight", "functional", "loss")


def main() -> None:
    for kind in MEASURED:
        shutil.rmtree(HERE / "karipap" / kind, ignore_errors=True)  # measured anew, not adopted
    study = Study(HERE, progress=json_lines())
    study.profile()
    study.profile(METRICS, "mpo")
    study.calibration("loss")
    for kind in kinds_of("auto", None):
        if kind != WHOLE:
            study.curves(kind, "loss")
    study.curves("lowrank", "functional")
    for by in ("weight", "layer"):
        sensitivity(study, standard_library("heldout"), by=by, progress=study.progress)
    for side in SIDES:
        suits(study.checkpoint, text_of(None, HERE, side), side=side, progress=study.progress)
    for name, weights in zip(REACHABLE, (study.weights, study.tables), strict=True):
        assert weights, name
        shutil.copyfile(study.folder / name, HERE / "karipap" / name)
    for kind in MEASURED:
        shutil.copytree(study.folder / kind, HERE / "karipap" / kind)
    measured = {"fingerprint": study.checkpoint.fingerprint, "identity": study.checkpoint.identity}
    write_json(HERE / "karipap" / "measured.json", measured)


if __name__ == "__main__":
    main()
