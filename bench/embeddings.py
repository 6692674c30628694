"""What an embedding table loses at equal bytes: rounded to integers, as an SVD, as a tensor train, token by token.

    python -m bench.embeddings

The tables are those of the demo model and, where the developers' shared folder is at hand, of stories260K. `plain` is
‖W − Ŵ‖² / ‖W‖² after a fit that counts every token alike; `by frequency` weighs each row by how often its token is met:
fitted to the counts of the calibration text, measured with those of other text. Bytes count scales and zero points;
a network's χ is the largest within the bytes of the integers above it.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.evaluation.tokens import encode
from karipap_core.networks import EMBEDDING_NETWORKS, Metric, Spec
from karipap_core.networks.tt_embedding import RowWeighted, frequency_metric
from karipap_core.quantization.formats import Format
from karipap_core.search import largest
from karipap_core.text import Text, divide, read_text, standard_library

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
NETWORKS = [  # name, network, its options
    ("SVD, 16 bits", "lowrank", {}),
    ("SVD, int8 cores", "lowrank", {"quantize": "int8"}),
    ("SVD, int4 cores", "lowrank", {"quantize": "int4"}),
    ("table, 16 bits", "tt_embedding", {}),
    ("table, int8 cores", "tt_embedding", {"quantize": "int8"}),
    ("table, int4 cores", "tt_embedding", {"quantize": "int4"}),
    ("token, 16 bits", "tt_embedding", {"form": "token"}),
    ("token, int8 cores", "tt_embedding", {"form": "token", "quantize": "int8"}),
]


def counts(folder: Path, text: Text, vocabulary: int) -> torch.Tensor:
    """How often each token is met in a text."""
    return torch.bincount(encode(AutoTokenizer.from_pretrained(folder), text, vocabulary), minlength=vocabulary)


def rounded(matrix: torch.Tensor, name: str | None) -> torch.Tensor:
    """What is read back from the format; None is the weight's own 16 bits."""
    if name is None:
        return matrix.bfloat16().double()
    return Format.parse(name).nearest(matrix.float()).dense().double()


def largest_within(kind: type[Spec], shape, budget: int, options: dict) -> Spec | None:
    """The spec of the largest χ that fits into `budget` bytes; None where χ = 1 does not."""
    spec = kind.for_shape(*shape, 1, **options)
    if spec.bytes(2) > budget:
        return None
    return spec.with_chi(largest(lambda chi: spec.with_chi(chi).bytes(2) <= budget, 1, spec.max_chi + 1))


def fitted(spec: Spec, W: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Ŵ as it is read back from disk."""
    cores = spec.fit(W, metric)
    stored = [
        rounded(core.reshape(spec.core_matrix(k)), spec.quantize).reshape(core.shape) for k, core in enumerate(cores)
    ]
    return spec.dense(stored)


def measure(name: str, folder: Path, seen: Text, other: Text) -> None:
    W = open_checkpoint(folder).read_tensor("model.embed_tokens.weight").double()
    plain, weighted = Metric(), frequency_metric(counts(folder, seen, len(W)))
    judge = RowWeighted(G=counts(folder, other, len(W)).double(), damping=0.0)
    print(f"\n{name}: table {W.shape[0]:,} × {W.shape[1]}, {2 * W.numel():,} bytes in 16 bits")
    print(f"{'':24}{'bytes kept':>12}{'plain':>10}{'by frequency':>14}  χ")

    def line(label, size, at_plain, at_weighted, chi=""):
        kept = size / (2 * W.numel())
        print(
            f"{label:24}{kept:12.3f}{plain.error(W, at_plain):10.4f}{judge.error(W, at_weighted):14.4f}  {chi}",
            flush=True,
        )

    for form in ("int8", "int4", "int2"):
        budget = Format.parse(form).bytes(*W.shape)
        line(form, budget, rounded(W, form), rounded(W, form))
        for label, network, options in NETWORKS:
            spec = largest_within(EMBEDDING_NETWORKS[network], W.shape, budget, options)
            if spec:
                line("  " + label, spec.bytes(2), fitted(spec, W, plain), fitted(spec, W, weighted), spec.chi[0])
            else:
                print(f"  {label:22}{'does not fit':>12}")


def main() -> None:
    stories, tales = SHARED / "models" / "stories260K", SHARED / "data" / "tinystories" / "tinystories_val_part.txt"
    if stories.is_dir() and tales.is_file():
        measure("stories260K", stories, *divide(read_text(tales)))
    demo = ROOT / "assets" / "demo_model"
    measure("demo model", demo, standard_library("calibration"), standard_library("heldout"))


if __name__ == "__main__":
    main()
