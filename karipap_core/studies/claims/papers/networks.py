"""Claims on what tensor networks make of a model: size, speed, memory and accuracy."""

from karipap_core.studies.claims.claim import Claim, Published

NETWORKS = (
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
            Published("mpo", "Kept 30 %, MPO", "MMLU 46.41 → 45.32, GSM8K 23.05 → 22.58 (healed)", "arXiv:2401.14109"),
            Published("svd", "Kept 30 %, SVD", "", ""),
            Published("whitened", "Kept 30 %, whitened SVD (fitted to the layer's outputs)", "", ""),
        ),
    ),
    Claim(
        "speed",
        "Half the training time, a quarter off inference",
        "KARIPAP (Nazri 2025) and CompactifAI (Tomut et al. 2024)",
        "arXiv:2510.21844",
        "50 % faster training and 25 % faster inference.",
        "The two figures. Hardware, batch, what was trained and how inference was timed are not stated for KARIPAP; "
        "CompactifAI healed on eight A10g. Whether it holds depends on the machine and on the sizes of the matrices: "
        "it can be tried anywhere.",
        "All weights of the blocks at 30 % of their parameters, as an MPO of three sites, a 2×2 PEPS and low rank, "
        "beside the dense model on this machine, taking turns. One training step is forward, backward and AdamW over "
        "the weights of the blocks alone, 2,048 tokens of the text at most; reading is a prompt at once, writing one "
        "token after the other. The cores hold random numbers: no step takes longer for other numbers.",
        (
            Published(
                "train_peps",
                "Training steps a second, 2×2 PEPS over dense",
                "50 % faster training",
                "arXiv:2510.21844, abstract",
            ),
            Published(
                "train_mpo",
                "Training steps a second, MPO over dense",
                "training accelerated by 50 %",
                "arXiv:2401.14109, abstract",
            ),
            Published("train_lowrank", "Training steps a second, low rank over dense", "", ""),
            Published(
                "write_peps",
                "Tokens written a second, 2×2 PEPS over dense",
                "25 % faster inference",
                "arXiv:2510.21844, abstract",
            ),
            Published(
                "write_mpo",
                "Tokens written a second, MPO over dense",
                "inference accelerated by 25 %",
                "arXiv:2401.14109, abstract",
            ),
            Published("write_lowrank", "Tokens written a second, low rank over dense", "", ""),
            Published("read_peps", "Tokens read a second, 2×2 PEPS over dense", "", ""),
            Published("read_mpo", "Tokens read a second, MPO over dense", "", ""),
            Published("read_lowrank", "Tokens read a second, low rank over dense", "", ""),
        ),
    ),
    Claim(
        "memory",
        "93 % less memory",
        "KARIPAP (Nazri 2025) and CompactifAI (Tomut et al. 2024)",
        "arXiv:2510.21844",
        "93 % less memory at 70 % fewer parameters.",
        "CompactifAI's table: LLaMA-2 7B from 27.1 GB in 32 bits to 2.1 billion parameters in 2.1 GB. So the 93 % are "
        "held against 32 bits, which nobody serves, and most of them are fewer bits, not fewer parameters. KARIPAP "
        "gives the figure alone.",
        "This model is written to disk in each form, and each folder is loaded and run in a process of its own. "
        "Stored: the size of the weights' files. Running: what resident memory grows by when a second copy is loaded "
        "and run, so that libraries do not count. The MPO has three sites by sequential SVDs at 30 % of every block "
        "weight, low rank is the truncated SVD, 4 bits are rounded in groups of 64; nothing is healed. The PEPS holds "
        "random numbers, which take as much room.",
        (
            Published(
                "peps",
                "2×2 PEPS at 30 %, all else as it is",
                "93 % less memory",
                "arXiv:2510.21844, abstract",
            ),
            Published(
                "mpo_rest4",
                "MPO at 30 % in 16 bits, tables of tokens in 4",
                "27.1 → 4.1 GB, there called 88 %",
                "arXiv:2401.14109, table",
            ),
            Published(
                "mpo8_rest4",
                "MPO at 30 % in 8 bits, tables of tokens in 4",
                "27.1 → 2.1 GB, 93 %",
                "arXiv:2401.14109, table",
            ),
            Published("lowrank", "Low rank at 30 %, all else as it is", "", ""),
            Published("int4", "No network: everything in 4 bits", "", ""),
            Published("dense16", "No network: 16 bits instead of 32", "", ""),
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
            Published("with", "χ′ = 1 with circuits, one weight replaced", "+ 0.26 % perplexity", "arXiv:2410.17397v2"),
            Published("without", "χ = 1 without circuits, the same weight", "+ 9.7 % perplexity", "arXiv:2410.17397v2"),
            Published("here", "Parameters for this model's weight", "", ""),
            Published("svd", "SVD with as many parameters as the circuits", "", ""),
            Published("local", "Half the parameters, gates counted: local gates and MPO / MPO alone / SVD", "", ""),
        ),
    ),
    Claim(
        "tree",
        "18 times smaller by a tree over the layers",
        "TensorLM: tree tensor networks on LLaMA-2 (a post, no tables, no code)",
        "clawrxiv.io/posts/11",
        "18 times compression of LLaMA-2 7B with less than 2.1 % degradation, because a tree sees correlations across "
        "layers that methods for one matrix miss.",
        "The words: a binary tree over the layers, χ at most 256, five to eight sweeps. The stated 389 million "
        "parameters follow from no stated formula, and there is no code: not reproducible as published.",
        "The blocks at 1/18 of their parameters in 16 bits: a tree that shares the residual stream's basis over the "
        "layers, a low-rank matrix for each weight and an MPO; then low rank and the tree with 4-bit cores in the "
        "same bytes, shared out as without rounding. All are fitted in the loss metric, which also says how much each "
        "weight keeps. "
        "Integers of 2 bits cannot be that small and stand at the least they take. Judged by the loss on text that "
        "was not calibrated on; nothing is healed.",
        (
            Published(
                "tree",
                "Tree over layers, 1/18 of the parameters",
                "less than 2.1 % of the accuracy lost (LLaMA-2 7B)",
                "TensorLM, clawrxiv.io/posts/11, abstract",
            ),
            Published("lowrank", "Low rank, 1/18 of the parameters", "", ""),
            Published("mpo", "MPO of two sites, 1/18 of the parameters", "", ""),
            Published("tree4", "Tree with 4-bit cores, in the same bytes", "", ""),
            Published("lowrank4", "Low rank with 4-bit cores, in the same bytes", "", ""),
            Published("int2", "2 bits, calibrated, the least they take", "", ""),
            Published("qlr", "2 bits and a low-rank repair, the least they take", "", ""),
        ),
        link="https://www.clawrxiv.io/posts/11",
    ),
)
