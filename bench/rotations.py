"""Whether rotating the inputs of weights before they are rounded pays: measured on the whole model, in the same bytes.

    python -m bench.rotations [--model assets/demo_model] [--tokens 16384] [--blocks 32 256]

A weight W becomes W R, with R a block-diagonal Hadamard matrix times random signs (QuIP#, arXiv:2402.04396; QuaRot,
arXiv:2404.00456): outliers among a group's numbers are spread over all of them. It is fitted in the loss metric with
the moment Rᵀ C R, and Ŵ = (what that gives) Rᵀ. Nothing is folded into neighbours; signs are one bit an input and not
counted. Printed are the rise in loss and the divergence on held-out text with and without, and the paired 95 % interval
of the difference.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.networks.dense import Dense
from karipap_core.networks.qlr import Qlr
from karipap_core.networks.stored import quantize_cores, values
from karipap_core.plan.study import Study
from karipap_core.spectra.metric import Metric
from karipap_core.statistics.bootstrap import difference
from karipap_core.text import standard_library

ROOT = Path(__file__).resolve().parents[1]
RANK = 8  # of the correction


def hadamard(size: int) -> torch.Tensor:
    """Orthogonal, (size, size), with entries ±1/√size; size a power of two (Sylvester's)."""
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / len(found) ** 0.5


def rotation(width: int, block: int, seed: int) -> torch.Tensor:
    """R (width, width): on blocks of the largest power of two that is at most `block` and divides the width."""
    while width % block:
        block //= 2
    signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    return signs[:, None] * torch.block_diag(*[hadamard(block)] * (width // block))


def matrices(study: Study, made, block: int | None) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, Ŵ) of every weight; made(n_out, n_in): its spec."""
    for number, weight in enumerate(study.measurable):
        W, metric = study.checkpoint.read(weight.name).double(), study.moments.metric(weight.name, "loss")
        spec = made(*W.shape)
        if block is None:
            yield weight.name, stored(spec, W, metric)
            continue
        R = rotation(W.shape[1], block, number)
        turned = Metric("loss", R.T @ metric.C.double() @ R, metric.G, metric.damping)
        yield weight.name, stored(spec, W @ R, turned).double() @ R.T


def stored(spec, W: torch.Tensor, metric: Metric) -> torch.Tensor:
    """What a weight becomes in the spec's formats, (out, in)."""
    return spec.dense(values(spec, quantize_cores(spec, spec.fit(W, metric), W, metric)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "demo_model")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 256])
    options = parser.parse_args()
    study = Study(options.model, standard_library("calibration"), device="cpu")
    model, tokenizer = study.model
    bench = InPlace(model, tokenizer, study.checkpoint, standard_library("heldout"), Scoring(max_tokens=options.tokens))
    ways = {
        "int3 g64": lambda n_out, n_in: Dense.for_shape(n_out, n_in, quantize="int3"),
        "int2 g32": lambda n_out, n_in: Dense.for_shape(n_out, n_in, quantize="int2g32"),
        f"qlr, int3, rank {RANK}": lambda n_out, n_in: Qlr.for_shape(n_out, n_in, RANK, bits="int3"),
        f"qlr, int2, rank {RANK}": lambda n_out, n_in: Qlr.for_shape(n_out, n_in, RANK, bits="int2"),
    }
    print(f"{'':22}{'rotated by':>12}{'rise':>10}{'KL':>10}   difference to plain (95 %)")
    for way, made in ways.items():
        plain = None
        for block in (None, *options.blocks):
            found = bench.measure(matrices(study, made, block)) | bench.settings
            plain = plain or found
            less = difference(plain, found) if block else None
            said = f"{less.mean:+.4f} ({less.low:+.4f} to {less.high:+.4f})" if less else ""
            print(f"{way:22}{block or 'none':>12}{found['rise']:10.4f}{found['kl']:10.5f}   {said}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with torch.no_grad():
        main()
