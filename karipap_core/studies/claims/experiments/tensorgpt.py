"""TensorGPT (arXiv:2307.00526): every token's vector as a product of small ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from karipap_core.errors import InputError
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.tt_embedding import TtEmbedding
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.quantization.rounding import quantize_rtn
from karipap_core.studies.claims.experiments.bench import Bench, fitting, grid, lines
from karipap_core.studies.claims.experiments.registry import experiment


@experiment("embedding")
def embedding(study: Study, progress: Progress) -> dict:
    """The look-up table as one tensor train a token, at rank 1 and more, beside SVD and integers at equal bytes."""
    bench, model = Bench(study, progress), study.model[0]
    table = model.get_input_embeddings().weight.detach().double().cpu()
    rows_, width = table.shape
    legs = prime_factors(width)
    dense = 2 * table.numel()
    trains: list[TtEmbedding] = []
    for chi in range(1, 65):
        spec = TtEmbedding.for_shape(rows_, width, chi, in_=legs, form="token")
        if spec.parameters >= table.numel() or (trains and spec.chi == trains[-1].chi):
            break
        trains.append(spec)
    if not trains:
        raise InputError(f"{study.checkpoint.name} has {width} numbers a token: too few to split into smaller vectors.")
    # Rank 1, the largest rank at least 3.31 times smaller (the paper's other figure), and those between.
    trains = [s for s in trains if s.chi == trains[0].chi or s.parameters * 3.31 <= table.numel()]
    found = []

    def add(method: str, label: str, size: int, made: torch.Tensor, **more) -> None:
        with lookup(model, made):
            harm = bench.measure()
        error = float((table - made.double()).square().sum() / table.square().sum())
        found.append(
            {"method": method, "label": label, "bytes": size, "smaller": dense / size, "error": error} | harm | more
        )

    jobs = 2 * len(trains) + 2
    for spec in trains:
        rank = max(spec.chi)
        progress("tables", len(found), jobs, f"tensor trains of rank {rank}")
        cores = [core.double() for core in spec.decompose(table)]
        add("token", f"a train a token, rank {rank}", spec.bytes(2), spec.dense(cores), rank=rank)
        progress("tables", len(found), jobs, "SVD in the same bytes")
        flat = fitting(LowRank.for_shape(rows_, width, 1), spec.bytes(2), lambda s: s.bytes(2))
        add("svd", f"SVD, χ = {flat.chi[0]}", flat.bytes(2), flat.dense(flat.decompose(table)), rank=rank)
    for bits, group in ((4, 64), (8, None)):
        progress("tables", len(found), jobs, f"{bits} bits")
        quantized = quantize_rtn(table, bits, group)
        add(f"int{bits}", f"{bits} bits", quantized.bytes, quantized.dense())
    progress("tables", jobs, jobs)
    token, svd = ([row for row in found if row["method"] == method] for method in ("token", "svd"))
    int4 = next(row for row in found if row["method"] == "int4")
    several = trains[-1].parameters * 3.31 <= table.numel()
    measured = {
        "rank1_factor": f"{token[0]['smaller']:.2f} ({width} numbers a token as {'·'.join(map(str, legs))})",
        "rank1": bench.words(token[0]),
        "rank1_svd": bench.words(svd[0]),
        "three": f"rank {token[-1]['rank']}, {token[-1]['smaller']:.2f} times: {bench.words(token[-1])}"
        if several
        else "no rank is that small here",
        "three_svd": bench.words(svd[-1]) if several else "–",
        "int4": f"{int4['smaller']:.2f} times: {bench.words(int4)}",
    }
    wins = "less" if token[0]["damage"] < svd[0]["damage"] else "more"
    near = "less" if token[-1]["damage"] < int4["damage"] else "more"
    verdict = (
        f"Rank 1 is {token[0]['smaller']:.1f} times smaller and loses {token[0]['error']:.0%} of the table; it does "
        f"{wins} damage than an SVD of the same size ({token[0]['damage']:.3g} against {svd[0]['damage']:.3g}). At "
        f"{token[-1]['smaller']:.1f} times, {near} damage than 4 bits at {int4['smaller']:.1f} times "
        f"({token[-1]['damage']:.3g} against {int4['damage']:.3g})."
    )
    tied = model.get_output_embeddings() if bench.causal else None
    notes = (
        [
            "The head shares the table here; it was left dense, so that only the look-up is judged, and then the "
            "table must be stored once more for it."
        ]
        if tied is not None and (tied.weight is model.get_input_embeddings().weight)
        else []
    )
    series = [
        (name, [r["smaller"] for r in of], [r["damage"] for r in of])
        for name, of in (
            ("a train a token", token),
            ("SVD of the table", svd),
            ("4 and 8 bits", [r for r in found if r["method"].startswith("int")]),
        )
    ]
    return bench.document(
        verdict,
        measured,
        {"rows": found, "shape": [rows_, width], "legs": list(legs)},
        grid(
            ["table as", "times smaller", "squared error", bench.unit, "rise in loss"],
            [[r["label"], r["smaller"], r["error"], r["damage"], r["rise"]] for r in found],
        ),
        [lines("Damage by size of the table", "Times smaller", bench.unit, series, log=True, points=True)],
        notes,
    )


def prime_factors(n: int) -> tuple[int, ...]:
    """The prime factors of n, descending; at least two (a prime gets a 1): what makes a product state smallest."""
    found, rest, divisor = [], n, 2
    while divisor * divisor <= rest:
        if rest % divisor:
            divisor += 1
        else:
            found.append(divisor)
            rest //= divisor
    found.append(rest)
    found.sort(reverse=True)
    return tuple(found + [1] * (2 - len(found)))


@contextmanager
def lookup(model, table: torch.Tensor) -> Iterator[None]:
    """Within the context tokens are looked up in `table`; a head that is tied to the model's own table keeps that."""
    module = model.get_input_embeddings()
    kept = module.weight
    module.weight = torch.nn.Parameter(table.to(kept), requires_grad=False)
    try:
        yield
    finally:
        module.weight = kept
