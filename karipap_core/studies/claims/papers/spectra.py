"""Claims on what the weights are like: spectra, entropies, errors and what samples see of them."""

from karipap_core.studies.claims.claim import Claim, Published

SPECTRA = (
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
    Claim(
        "density",
        "Larger models hold less entanglement for their size",
        "TensorLM: tree tensor networks on LLaMA-2 (a post, no tables, no code)",
        "clawrxiv.io/posts/11",
        "Larger models have a lower entanglement density, so they compress better.",
        "The sentence, known here second-hand. What the entropy is divided by, which models were compared and the "
        "figures are not public. Entropy over its largest value, ln of the rank, can be measured on any model; whether "
        "it falls with size only on several sizes of one family.",
        "S / ln rank of every weight across out | in, averaged over a model's compressible weights by their numbers, "
        "for this model and those given beside it. Noise of the same shapes stands beside it, since ln rank alone "
        "makes the density of larger matrices of noise larger. Models of one architecture (model_type) count as a "
        "family; fewer than five sizes of one can be in order by chance in more than 5 % of cases.",
        (
            Published("here", "Mean density of this model, and of noise of its shapes", "", ""),
            Published(
                "size",
                "Size against density, within the largest family",
                "falls, so ρ < 0; no figure",
                "TensorLM, clawrxiv.io/posts/11, second-hand",
            ),
            Published("excess", "Size against what training took off the noise's density", "", ""),
            Published("depth", "Depth against density, by layer of this model", "", ""),
            Published("needed", "Models of one family before anything can be said", "", ""),
        ),
        link="https://www.clawrxiv.io/posts/11",
        beside=True,
    ),
    Claim(
        "sums",
        "Errors of single layers do not add up",
        "Quantum-Inspired, Not Quantum: tensor networks behind production compression (Bal 2026, an article)",
        "dev.to (Bal 2026)",
        "Functional errors of layers compressed one by one do not add up to that of the whole model: compress in "
        "batches and measure the whole after each.",
        "The advice, as a procedure. By how much sums miss the whole, and where errors strengthen or cancel each "
        "other, is not given.",
        "Every weight alone, every layer alone and the whole model are cut by the whitened SVD, at 70 and at 40 % of "
        "their parameters. Sums of the damages of parts stand beside the damage of the whole. Then the change that "
        "each layer's cut makes where the head reads: squared lengths against the squared length of their sum say "
        "how far errors point the same way or cancel, and the whole model's own change says what is not linear.",
        (
            Published(
                "whole",
                "Damage of the whole over the sum over single weights, kept 70 % / 40 %",
                "not 1; no figure",
                "the article named above",
            ),
            Published(
                "rises", "Rise in loss of the whole against the sum over single weights, kept 70 % / 40 %", "", ""
            ),
            Published("layers", "Damage of the whole over the sum over single layers, kept 70 % / 40 %", "", ""),
            Published("within", "Layers that lose less than the sum of their own weights, kept 70 % / 40 %", "", ""),
            Published("aligned", "Squared length of the sum of layers' changes over the sum of squares", "", ""),
            Published("cancel", "The two layers whose changes cancel most", "", ""),
        ),
        link="https://dev.to/mohamed_bal/quantum-inspired-not-quantum-the-physics-of-tensor-networks-behind-production-"
        "llm-compression-14fh",
    ),
    Claim(
        "sampling",
        "Sampling rows replaces the quantum computer",
        "Dequantized low rank (Tang 2018; Chia et al. 2020)",
        "arXiv:1910.06151",
        "From samples of rows and columns, drawn by their squared lengths, comes a low-rank approximation in a time "
        "that does not depend on the matrix's size.",
        "The algorithm in full (Frieze, Kannan and Vempala 1998 had it first). The bounds hide large powers of rank "
        "and accuracy, and suppose that the lengths of all rows are known and can be sampled from.",
        "Every weight of the layer in the middle, at the χ that keeps 30 % of it: rows (the longer side) and then "
        "columns are drawn by their squared lengths, twice as many each time, until the squared error is within a "
        "tenth of the truncated SVD's. Randomized SVD (torch.svd_lowrank) and the exact decomposition are timed beside "
        "it, on the same weights. It is a floor and a curiosity here: nothing in this tool compresses by it.",
        (
            Published(
                "samples",
                "Rows drawn, over the rows there are, to come within a tenth of the SVD's error",
                "a number that does not depend on the matrix's size",
                "arXiv:1910.06151, abstract",
            ),
            Published("error", "Squared error from as many rows as χ, over the SVD's", "", ""),
            Published(
                "time",
                "Time of the sampled decomposition within a tenth, over the exact one's",
                "poly(rank) · log(size) against polynomial in the size",
                "Tang, arXiv:1807.04271, abstract",
            ),
            Published("randomized", "Time and error of randomized SVD, over the exact one's", "", ""),
            Published(
                "when",
                "Where it pays",
                "low rank, low condition number and very large dimension, all at once",
                "Arrazola et al., arXiv:1905.10415, abstract",
            ),
        ),
    ),
)
