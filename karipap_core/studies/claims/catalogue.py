"""The claims: headline, published figures with their source, and what is run here."""

from dataclasses import dataclass

from karipap_core.errors import InputError


@dataclass(frozen=True)
class Published:
    """One figure of a paper: `key` (the measured one has the same), what it is of, as printed there, and where.

    Where nothing was published the value is ""; `what` says what is measured here.
    """

    key: str
    what: str
    value: str
    source: str


@dataclass(frozen=True)
class Claim:
    """headline: in the paper's words or nearly; allows: what its public text allows to reproduce; check: what is run
    here, and how that differs from the paper's own experiment; origin: where the paper can be found."""

    name: str
    title: str
    paper: str
    origin: str
    headline: str
    allows: str
    check: str
    published: tuple[Published, ...]


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "depth",
            "Redundancy sits in the deeper layers",
            "KARIPAP: iPEPS and TRG on LLaMA-2 7B (Nazri 2025)",
            "arXiv:2510.21844",
            "Layer-wise entanglement profiling reveals redundancy in deeper layers.",
            "The sentence stands in the abstract. The entropies, the cut they are taken across, D, the unit cell and "
            "the code are not public, so the profile itself cannot be repeated; whether deeper layers of a model are "
            "more redundant can be measured on any model.",
            "The entropy of every weight across out | in is held against that of noise of the same shape (the excess), "
            "and every weight alone is cut to half its parameters (truncated SVD) while the damage is measured. "
            "Spearman's ρ says how depth, excess and damage go together; p is the chance of such a ρ without any link.",
            (
                Published(
                    "layers",
                    "Depth against damage, by layer",
                    "deeper layers redundant, so ρ < 0; no figure",
                    "arXiv:2510.21844, abstract",
                ),
                Published(
                    "excess",
                    "Depth against excess, by layer",
                    "would follow: structure grows, ρ > 0; no figure",
                    "arXiv:2510.21844, abstract",
                ),
                Published(
                    "weights",
                    "Entropy against damage, by weight",
                    "r = 0.87 of entanglement with sensitivity to pruning; layers 12 to 20 of 32 richest",
                    "TensorLM, clawrxiv.io/posts/11 (a post; no tables, no code)",
                ),
                Published("deepest", "Damage of the deeper half of the layers over that of the first half", "", ""),
            ),
        ),
        Claim(
            "headline",
            "70 % of the parameters gone at 2 to 3 % of the accuracy",
            "KARIPAP: iPEPS and TRG on LLaMA-2 7B (Nazri 2025)",
            "arXiv:2510.21844",
            "93 % less memory, 70 % fewer parameters, 50 % faster training, 25 % faster inference, 2 to 3 % of the "
            "accuracy lost.",
            "Nothing beyond these five figures, which are the same five as CompactifAI's. An infinite, translation-"
            "invariant state has no finite legs, and TRG turns a network without open legs into a number, so the words "
            "do not fix an algorithm. Not reproducible as published.",
            "The attention of one layer in the middle is cut to 30 % of its parameters and not retrained: by a 2×2 "
            "PEPS (the finite network that the words can mean), by the MPO that CompactifAI describes and by a plain "
            "SVD, all fitted to the weights. CompactifAI heals afterwards; here nothing is healed.",
            (
                Published(
                    "accuracy",
                    "Kept 30 %, 2×2 PEPS",
                    "2 to 3 % of the accuracy lost (LLaMA-2 7B; layers, tasks and healing not stated)",
                    "arXiv:2510.21844, abstract",
                ),
                Published(
                    "mpo", "Kept 30 %, MPO", "MMLU 46.41 → 45.32, GSM8K 23.05 → 22.58 (healed)", "arXiv:2401.14109"
                ),
                Published("svd", "Kept 30 %, SVD", "", ""),
                Published("whitened", "Kept 30 %, whitened SVD (fitted to the layer's outputs)", "", ""),
            ),
        ),
        Claim(
            "sensitivity",
            "Early layers and down are sensitive",
            "CompactifAI: quantum-inspired tensor networks (Tomut et al. 2024)",
            "arXiv:2401.14109",
            "Early layers cannot be compressed below 50 %, the last down to 10 %; the last matrix of each MLP (down) "
            "is left out because it is too sensitive.",
            "The procedure: cut one layer at a time by sequential SVDs, leave the others dense, record the damage. "
            "χ, the legs of LLaMA's matrices and the curves as numbers are not given.",
            "Each layer alone, and each role in all layers, becomes an MPO of three balanced sites by sequential SVDs. "
            "Then the rule itself: the whole model at 70 % of the block parameters, once evenly, once with down left "
            "dense and the others cut deeper.",
            (
                Published(
                    "early",
                    "First third of the layers, each alone at 50 %",
                    "the least that is tolerated",
                    "arXiv:2401.14109",
                ),
                Published("late", "Last third of the layers, each alone at 50 %", "tolerated", "arXiv:2401.14109"),
                Published("late_10", "Last third of the layers, each alone at 10 %", "tolerated", "arXiv:2401.14109"),
                Published(
                    "down",
                    "Place of down among the roles, by damage for each parameter removed",
                    "the most sensitive of the MLP",
                    "arXiv:2401.14109",
                ),
                Published(
                    "excluded",
                    "Whole model at 70 %: down left out against all alike",
                    "leaving it out pays",
                    "arXiv:2401.14109",
                ),
            ),
        ),
        Claim(
            "bytes",
            "An MPO compresses with little loss",
            "CompactifAI: quantum-inspired tensor networks (Tomut et al. 2024)",
            "arXiv:2401.14109",
            "LLaMA-2 7B from 27.1 GB to 2.1 GB (93 %) with 2 to 3 % of the accuracy lost.",
            "Sizes and task scores in a table, the sequential SVDs, the healing corpora. The 93 % are against fp32 and "
            "include 4 bits on what is not tensorized; no quantized model of the same size stands beside them (plain "
            "int4 would take about 3.4 GB).",
            "Without healing, at equal bytes of the block weights (16 bits = 100 %; scales and zero points counted): "
            "the MPO of three sites by sequential SVDs, also with 8-bit cores, an SVD fitted to the layers' outputs, "
            "and the same weights in 8, 4 and 3 bits.",
            (
                Published("mpo_half", "MPO, as many bytes as 8 bits", "", ""),
                Published(
                    "mpo_int8_quarter",
                    "MPO with 8-bit cores, as many bytes as 4 bits",
                    "MMLU 46.41 → 44.16, GSM8K 23.05 → 17.74 at 2.1 GB (healed)",
                    "arXiv:2401.14109",
                ),
                Published(
                    "svd_half",
                    "Whitened SVD, as many bytes as 8 bits",
                    "perplexity 5.68 → 23.97 at half the parameters (LLaMA-1 7B)",
                    "SVD-LLM, arXiv:2403.07378, as quoted by others",
                ),
                Published("int8", "8 bits, rounded", "", ""),
                Published(
                    "int4",
                    "4 bits, calibrated (GPTQ)",
                    "perplexity 5.68 → 6.16 (LLaMA-1 7B, groups of 64)",
                    "GPTQ-for-LLaMa",
                ),
                Published(
                    "int3",
                    "3 bits, calibrated (GPTQ)",
                    "perplexity 5.68 → 12.24 (LLaMA-1 7B, groups of 64, early code)",
                    "GPTQ-for-LLaMa",
                ),
            ),
        ),
        Claim(
            "embedding",
            "A token embedding as a product of small vectors",
            "TensorGPT (Xu, Xu and Mandic 2023)",
            "arXiv:2307.00526",
            "GPT-2's embedding layer 38.40 times smaller without training, and 3.31 times smaller with performance "
            "even better than the original.",
            "The method in full: each token's vector is reshaped and split by TT-SVD on its own. 38.40 = 768 / 20 is a "
            "product of small vectors for each token, rank 1 on every bond. The legs behind 3.31 are not needed to run "
            "it.",
            "Every token's vector of this model becomes such a product (and trains of larger rank), fitted on from the "
            "published TT-SVD, only in the look-up: a head tied to the table stays dense. Beside it, at equal bytes, "
            "a truncated SVD of the table, "
            "and the table in 4 and 8 bits.",
            (
                Published(
                    "rank1_factor", "Rank 1: times smaller", "38.40 (GPT-2, 768 numbers a token)", "arXiv:2307.00526"
                ),
                Published("rank1", "Rank 1: damage", "", ""),
                Published("rank1_svd", "SVD of the table in the bytes of rank 1", "", ""),
                Published(
                    "three", "Largest rank at least 3.31 times smaller", "even better than GPT-2", "arXiv:2307.00526"
                ),
                Published("three_svd", "SVD of the table in the same bytes", "", ""),
                Published("int4", "Table in 4 bits (groups of 64), 3.7 times smaller", "", ""),
            ),
        ),
        Claim(
            "disentanglers",
            "Circuits leave an MPO of 36 numbers",
            "Disentanglers for MPOs (Aizpurua, Jahromi, Singh and Orús 2024)",
            "arXiv:2410.17397",
            "A 576×192 weight of SmolLM2 in 36 parameters (χ′ = 1) after disentangling circuits: perplexity + 0.26 %, "
            "against + 9.7 % for the same truncation without them.",
            "The arithmetic in full and the accuracy. The circuits act on the whole registers (10 and 8 qubits), which "
            "makes them arbitrary orthogonal matrices: their 556,416 angles are more than the weight's 110,592 "
            "numbers. On a quantum computer they would not be stored.",
            "The count, repeated from the sizes. Then one attention weight in the middle of this model: padded to "
            "powers of two, its singular vectors as the two circuits (no circuit on the register does better), the "
            "best product of one-qubit operators between them; and the MPO at χ = 1 without circuits. Last, gates "
            "small enough "
            "to be stored.",
            (
                Published(
                    "chi1",
                    "MPO parameters of the 576×192 weight at χ′ = 1, 2, 5, 10, 50, 256",
                    "36, 132, 696, 2,356, 36,948, 401,956",
                    "arXiv:2410.17397v2",
                ),
                Published("circuits", "Angles of its two circuits", "556,416", "arXiv:2410.17397v2"),
                Published(
                    "total",
                    "All parameters at χ′ = 1 over the weight's own",
                    "36 / 110,592 (circuits left out)",
                    "arXiv:2410.17397v2",
                ),
                Published(
                    "with", "χ′ = 1 with circuits, one weight replaced", "+ 0.26 % perplexity", "arXiv:2410.17397v2"
                ),
                Published(
                    "without", "χ = 1 without circuits, the same weight", "+ 9.7 % perplexity", "arXiv:2410.17397v2"
                ),
                Published("here", "Parameters for this model's weight", "", ""),
                Published("svd", "SVD with as many parameters as the circuits", "", ""),
                Published("local", "Half the parameters, gates counted: local gates and MPO / MPO alone / SVD", "", ""),
            ),
        ),
        Claim(
            "structure",
            "Trained weights carry structure, random ones do not",
            "The premise of every tensor network here; measured since Martin and Mahoney 2018",
            "arXiv:1810.01075",
            "The spectra of trained weights leave the Marchenko–Pastur law of random matrices: training puts "
            "correlations into them, and these can be compressed.",
            "All of it: spectra of public weights against a formula.",
            "The excess (entropy of noise of the same shape minus the weight's own) of every compressible weight, and "
            "of a twin: the same architecture freshly initialized with a fixed seed. Beside it the error of a "
            "truncated SVD at half the parameters.",
            (
                Published("trained", "Mean excess of the trained weights", "above 0", "arXiv:1810.01075"),
                Published("twin", "Mean excess of the fresh twin", "0", "Marchenko and Pastur 1967"),
                Published(
                    "above", "Weights whose excess is over 3 standard deviations of noise", "most", "arXiv:1810.01075"
                ),
                Published("error", "Squared error left at half the parameters, trained / twin", "", ""),
            ),
        ),
        Claim(
            "whitening",
            "Whitening beats the plain SVD",
            "SVD-LLM (Wang et al. 2024)",
            "arXiv:2403.07378",
            "Truncation-aware whitening maps singular values onto the loss of truncating them: LLaMA-1 7B without a "
            "fifth of its parameters at perplexity 7.94, where the plain SVD gives 20,061.",
            "All of it: method, code and tables are public.",
            "Every compressible weight keeps the same share of its parameters, once by the SVD of the weight, once by "
            "the SVD whitened with the inputs' second moments on calibration text. Windows that were not calibrated "
            "on are measured.",
            tuple(
                Published(
                    f"{method}_{kept}",
                    f"{words}, {100 - kept} % of the block parameters removed",
                    f"perplexity 5.68 → {value} (LLaMA-1 7B)",
                    "arXiv:2403.07378, as quoted by others",
                )
                for kept, plain, white in ((80, "20,061", "7.94"), (60, "52,489", "13.11"), (40, "105,474", "42.30"))
                for method, words, value in (("plain", "Plain SVD", plain), ("white", "Whitened", white))
            ),
        ),
    )
}


def named(name: str) -> Claim:
    """The claim of that name. Raises InputError where there is none."""
    if name not in CLAIMS:
        raise InputError(f"Claim {name!r} is not one of {', '.join(CLAIMS)}.")
    return CLAIMS[name]
