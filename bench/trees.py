"""What a basis shared over layers buys at equal parameters, on trained weights.

    python -m bench.trees [--metric loss] [--roles q k v o gate up down] [--layers 6] [--kept .1 .3 .6] [--model FOLDER]

For each role, its layers are cut into groups of `layers` and each group into a `tree` of `kept` of its parameters. Its
metric error is divided by that of `lowrank` on each layer at the same parameters, every rank bought at one price over
the group: under 1 the shared basis gains. Moments are of the calibration text, kept in the workspace.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from karipap_core.networks.tree.edges import lowrank_line
from karipap_core.networks.tree.network import group_curve
from karipap_core.plan.study import Study

MODEL = Path(__file__).resolve().parents[1] / "assets" / "demo_model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--metric", default="loss", choices=["weight", "functional", "loss"])
    parser.add_argument("--roles", nargs="+", default=["q", "k", "v", "o", "gate", "up", "down"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    arguments = parser.parse_args()
    study = Study(arguments.model)
    print(f"{arguments.metric}: error of the tree / of lowrank at kept", *arguments.kept)
    for role in arguments.roles:
        names = [weight.name for weight in study.weights if weight.role == role]
        began, of_tree, of_lowrank = time.monotonic(), 0.0, 0.0
        for at in range(0, len(names), arguments.layers):
            members = names[at : at + arguments.layers]
            if len(members) < 2:
                continue
            Ws = [study.checkpoint.read(name) for name in members]
            metrics = [study.moments.metric(name, arguments.metric) for name in members]
            dense = sum(W.numel() for W in Ws)
            curve = group_curve(members, Ws, metrics, levels=[round(kept * dense) for kept in arguments.kept])
            if len(curve.parameters) < len(arguments.kept):
                raise SystemExit(
                    f"{role}: not every size in --kept is large enough for a tree of {len(members)} layers"
                )
            of_tree = of_tree + curve.error.sum(axis=1)
            of_lowrank = of_lowrank + np.interp(curve.parameters, *lowrank_line(Ws, metrics))
        if np.ndim(of_tree) == 0:
            raise SystemExit(f"{role}: the model has no two layers of this role")
        print(f"{role:6}", np.round(of_tree / of_lowrank, 2), f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
