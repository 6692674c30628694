"""What spectra say: trained weights against a fresh twin (arXiv:1810.01075), whitening (arXiv:2403.07378)."""

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.spectra.null import null_deviation, null_entropy
from karipap_core.spectra.spectrum import entropy, singular_values, tail
from karipap_core.studies.claims.experiments.bench import Bench, grid, kept_chi, lines
from karipap_core.studies.claims.experiments.registry import experiment

TWIN_SEED = 0


@experiment("structure")
def structure(study: Study, progress: Progress) -> dict:
    """Excess of the trained weights and of a freshly initialized twin's, and what half the parameters leave out."""
    from karipap_core.models.sites import sites

    bench = Bench(study, progress)
    profile, weights = study.profile(("weight",)), study.measurable
    progress("twin", 0, len(weights), "initializing")
    found = sites(twin(study), study.checkpoint)
    rows = []
    for number, weight in enumerate(weights):
        progress("twin", number, len(weights), weight.name)
        row: dict = {"name": weight.name, "layer": weight.layer, "role": weight.role, "parameters": weight.parameters}
        chi, null = kept_chi(weight.shape, 0.5), null_entropy(*weight.shape)
        row["deviation"] = null_deviation(*weight.shape)
        both = {"trained": profile.sigma(weight.name), "twin": singular_values(found[weight.name].get(), "cpu")}
        for who, sigma in both.items():
            left = tail(sigma)
            row[f"{who}_excess"] = null - entropy(sigma) if left[0] > 0 else None
            row[f"{who}_error"] = float(left[chi] / left[0]) if left[0] > 0 else 0.0
        rows.append(row)
    progress("twin", len(weights), len(weights))
    kept = [row for row in rows if row["trained_excess"] is not None and row["twin_excess"] is not None]
    if not kept:
        raise InputError(f"{study.checkpoint.name} or its fresh twin has only weights that are zero.")
    mean = {
        key: float(np.mean([row[key] for row in kept]))
        for key in ("trained_excess", "twin_excess", "trained_error", "twin_error")
    }
    above = {who: sum(row[f"{who}_excess"] > 3 * row["deviation"] for row in kept) for who in ("trained", "twin")}
    measured = {
        "trained": f"{mean['trained_excess']:z.4f} nats",
        "twin": f"{mean['twin_excess']:+z.4f} nats",
        "above": f"{above['trained']} of {len(kept)} trained, {above['twin']} of {len(kept)} of the twin",
        "error": f"{mean['trained_error']:.1%} / {mean['twin_error']:.1%}",
    }
    seen = above["trained"] > above["twin"] and mean["trained_excess"] > mean["twin_excess"]
    verdict = (
        f"{'Seen here' if seen else 'Not seen here'}: {measured['above']} stand out of the noise. Half the parameters "
        f"leave {mean['trained_error']:.1%} of a trained weight's ‖W‖² out, {mean['twin_error']:.1%} of a fresh one's."
    )
    skipped = len(rows) - len(kept)
    return bench.document(
        verdict,
        measured,
        {"rows": rows, "mean": mean, "above": above, "seed": TWIN_SEED},
        grid(
            ["weight", "excess, trained", "excess, twin", "one sd of noise", "error at half, trained", "twin"],
            [
                [r["name"], r["trained_excess"], r["twin_excess"], r["deviation"], r["trained_error"], r["twin_error"]]
                for r in rows
            ],
        ),
        [
            lines(
                "Excess over noise",
                "Weight, by size of its trained excess",
                "Excess, nats",
                [
                    (
                        who,
                        range(1, len(kept) + 1),
                        [row[f"{key}_excess"] for row in sorted(kept, key=lambda row: -row["trained_excess"])],
                    )
                    for who, key in (("trained", "trained"), ("fresh twin", "twin"))
                ],
                points=True,
            )
        ],
        [f"{skipped} weights are all zeros and were left out."] if skipped else (),
    )


def twin(study: Study):
    """The same architecture freshly initialized by transformers, float32, with a fixed seed."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from karipap_core.models.load import explained, quiet

    checkpoint = study.checkpoint
    folder = checkpoint.path.parent if checkpoint.path.is_file() else checkpoint.path
    auto = AutoModelForCausalLM if checkpoint.kind == "causal" else AutoModel
    with quiet(), explained(checkpoint.name), torch.random.fork_rng():
        torch.manual_seed(TWIN_SEED)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return auto.from_config(config, dtype=torch.float32)


@experiment("whitening")
def whitening(study: Study, progress: Progress) -> dict:
    """Plain and whitened SVD, uniform, at 80, 60 and 40 % of the block parameters."""
    bench, cases = Bench(study, progress), [(m, k) for k in (80, 60, 40) for m in ("plain", "white")]
    rows: dict[str, dict] = {}
    for method, kept in cases:
        progress("plans", len(rows), len(cases), f"{method}, kept {kept} %")
        decompositions = study.decompositions("weight" if method == "plain" else "functional")
        cut = (
            (w.name, decompositions.matrix(w.name, LowRank.for_shape(*w.shape, kept_chi(w.shape, kept / 100))))
            for w in study.measurable
        )
        rows[f"{method}_{kept}"] = {"method": method, "kept": kept / 100} | bench.cut(cut)
    progress("plans", len(cases), len(cases))
    wins = [kept for kept in (80, 60, 40) if rows[f"white_{kept}"]["damage"] < rows[f"plain_{kept}"]["damage"]]
    ratio = rows["plain_80"]["damage"] / max(rows["white_80"]["damage"], 1e-12)
    verdict = (
        f"Whitening does less damage at {len(wins)} of 3 sizes; with 20 % removed the plain SVD does {ratio:.3g} times "
        "the damage."
    )
    series = [
        (name, [1 - rows[f"{m}_{k}"]["kept"] for k in (80, 60, 40)], [rows[f"{m}_{k}"]["damage"] for k in (80, 60, 40)])
        for m, name in (("plain", "plain SVD"), ("white", "whitened"))
    ]
    return bench.document(
        verdict,
        {key: bench.words(row) for key, row in rows.items()},
        {"rows": rows, "wins": wins},
        grid(
            ["method", "kept", bench.unit, "rise in loss"],
            [[r["method"], r["kept"], r["damage"], r["rise"]] for r in rows.values()],
        ),
        [lines("Damage by what is removed", "Removed of the block parameters", bench.unit, series, log=True)],
    )
