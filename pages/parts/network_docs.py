"""What the docs strip says of every network: text, formulas and figures with their sources. Nothing here draws."""

from dataclasses import dataclass, field

HERE = "measured for this project"
LLAMA = (("4096 × 4096 (attention, LLaMA-2 7B)", 4096, 4096), ("11008 × 4096 (up, LLaMA-2 7B)", 11008, 4096))
TABLES = (("50257 × 768 (GPT-2)", 50257, 768), ("32000 × 4096 (LLaMA-2 7B)", 32000, 4096))


@dataclass(frozen=True)
class Doc:
    """One page of the strip.

    diagrams: (file in assets/diagrams, what it shows in words).  chi, forward: Markdown.  formula: LaTeX.
    pays, not: Markdown, a line an item.  figures: (what, value, source).  papers: (words, address).
    choices: {label: options of `Spec.for_shape`} where the calculator offers a choice, named `choice`.
    """

    title: str
    sentence: str
    diagrams: tuple[tuple[str, str], ...]
    chi: str
    formula: str
    formula_says: str
    pays: tuple[str, ...]
    not_pays: tuple[str, ...]
    forward: str
    figures: tuple[tuple[str, str, str], ...]
    papers: tuple[tuple[str, str], ...]
    choice: str = ""
    choices: dict[str, dict] = field(default_factory=dict)
    shapes: tuple[tuple[str, int, int], ...] = LLAMA


def arxiv(number: str, words: str) -> tuple[str, str]:
    return f"{words}, arXiv:{number}", f"https://arxiv.org/abs/{number}"


DOCS: dict[str, Doc] = {
    "lowrank": Doc(
        "Low rank",
        "Two thin factors: the truncated SVD, taken in the metric that counts. The fair bar for every other network.",
        (("lowrank", "A weight with legs o and i is two cores L and R, joined by one bond χ."),),
        "The number of singular values kept. The bond cuts the weight between its outputs and its inputs, so χ is the "
        "rank of what is left.",
        r"\chi\,(\text{out} + \text{in})",
        "Smaller than dense while χ < out · in / (out + in). A square weight "
        "breaks even at half its size: below it, both memory and time are saved.",
        (
            "The spectrum falls: trained attention weights are far from random.",
            "The error is measured where it matters. Whitened with the inputs' second moments, the singular values "
            "left out *are* the squared error of the layer's outputs; with the gradients' too, of the loss.",
            "The parameters are taken where they hurt least, by measured sensitivity.",
            "Its cores are quantized as well: on an over-wide model that beats integers alone below 3.3 bits a weight.",
        ),
        (
            "The model is saturated: then plain 4 bits win at every size.",
            "Every weight is cut by the same share: most of the damage then comes from a few weights.",
            "Retraining is not possible and more than about half of a good model must go.",
        ),
        "χ (out + in) multiply-adds a token, as many as parameters: what saves memory saves time. In twelve "
        "cases two factors beat the dense layer by four times or more.",
        (
            (
                "Rise in loss at half the block parameters, uniform by SVD-LLM's rule / calibrated",
                "0.057 / 0.025 nats",
                f"{HERE}: 5.3 M Llama of Python source, held-out modules",
            ),
            ("The same at 90 % of a saturated model", "1.36 / 0.117 nats", f"{HERE}: stories260K, TinyStories"),
            (
                "With 4-bit cores, 17.5 % of the bytes, against 3 bits GPTQ at 19.7 %",
                "0.0201 against 0.0182 nats",
                f"{HERE}: 5.3 M Llama, groups of 64 and 128",
            ),
            (
                "With 4-bit cores, 13.5 % of the bytes, against 2 bits GPTQ at 14.3 %",
                "0.0427 against 0.0905 nats",
                f"{HERE}: 5.3 M Llama, groups of 64",
            ),
            (
                "LLaMA-1 7B, a fifth removed: perplexity plain / whitened (dense 5.68)",
                "20,061 / 7.94",
                "published, arXiv:2403.07378",
            ),
        ),
        (arxiv("2403.07378", "Wang et al., SVD-LLM"), arxiv("2312.05821", "Yuan et al., ASVD")),
    ),
    "mpo": Doc(
        "Matrix product operator",
        "The tensor train of a matrix: the digits of rows and columns sit in pairs on a chain of cores.",
        (("mpo", "A weight with four pairs of digits is a chain of four cores with bonds χ₁, χ₂, χ₃."),),
        "One bond for each cut of the chain; χₖ is at most the smaller side of that cut, min(∏ o i left of it, ∏ o i "
        "right of it). In canonical form a bond's singular values are Schmidt values and their entropy is the "
        "entanglement across it.",
        r"\sum_{k=1}^{d} \chi_{k-1}\, o_k\, i_k\, \chi_k, \qquad \chi_0 = \chi_d = 1",
        "The default here has two sites, out × 2 and 1 × in/2: of the factorizations tried it lost least against the "
        "SVD at equal parameters.",
        (
            "Two sites and the functional metric: slightly less error than the SVD on trained weights.",
            "The digits mean something: heads as a leg, pixels, positions. A shuffled index has no such order.",
        ),
        (
            "Balanced digits on three or four sites: trained weights look random to them in natural index order.",
            "Speed is wanted: many sites need far more multiply-adds than the dense layer.",
        ),
        "Contractions of two tensors at a time, in the order that is cheapest for the batch. **Count before hoping**: "
        "four cores with χ = 64 on 1024 × 4096 keep 12.6 % of the parameters and need about 135 M multiply-adds a "
        "token against 4.2 M dense. Two sites need about as many as they have parameters.",
        (
            (
                "Squared error over the SVD's at equal parameters (15 / 30 / 60 % kept), functional metric",
                "0.97 / 0.92 / 0.89",
                f"{HERE}: two sites, eight trained weights",
            ),
            ("The same, loss metric", "1.02 / 1.08 / 1.40", f"{HERE}: two sites, eight trained weights"),
            ("The same, balanced digits, functional metric", "1.42 / 1.56 / 1.82", f"{HERE}: eight trained weights"),
            (
                "Retained energy at 30 %, a trained query of 384 × 384: SVD / three sites",
                "0.580 / 0.387",
                f"{HERE}: Frobenius",
            ),
            ("The same, Gaussian noise", "0.431 / 0.378", f"{HERE}: Frobenius"),
            (
                "LLaMA-2 7B to 2.1 GB, MMLU / GSM8K (dense 46.41 / 23.05; healed; against fp32)",
                "44.16 / 17.74",
                "published, arXiv:2401.14109",
            ),
        ),
        (
            arxiv("2401.14109", "Tomut et al., CompactifAI"),
            arxiv("1509.06569", "Novikov et al., Tensorizing neural networks"),
            (
                "Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33 (2011)",
                "https://doi.org/10.1137/090752286",
            ),
        ),
        "Sites",
        {"2 (default)": {}, "3, balanced": {"sites": 3}, "4, balanced": {"sites": 4}},
    ),
    "tree": Doc(
        "Tree",
        "The weights of one role in several layers as one network: the branch that touches the residual stream is "
        "stored once.",
        (("tree", "Three layers with branches U and C of their own; all meet in one shared basis V with the leg i."),),
        "$\\chi_g$ is the bond on the shared branch, the number of directions of the residual stream that the whole "
        "group "
        "uses; $r_\\ell$ is the bond on layer ℓ's own branch.",
        r"\underbrace{\chi_g\,\text{in}}_{\text{once}} \;+\; \sum_{\ell}\bigl(r_\ell\,\text{out} + r_\ell\,\chi_g"
        r"\bigr)",
        "Where $r_\\ell$ truncates nothing, U and C are one core of out × $\\chi_g$. Sharing the output side "
        "exchanges in and "
        "out.",
        (
            "The shared side touches the residual stream: inputs of q, k, gate and up, outputs of o and down.",
            "Groups are small: two or three neighbouring layers.",
        ),
        (
            "A bond on the layer index itself is hoped for: layers are element by element uncorrelated.",
            "Large groups: what six layers must share is then too little for each.",
            "v and up, where each layer's own SVD is better.",
        ),
        "For one layer: x times the shared basis, then that layer's branch: $\\chi_g$ in + $r_\\ell$ ($\\chi_g$ + out) "
        "multiply-adds. "
        "Layers that see the same x (q, k, v) could share the first product.",
        (
            (
                "Mean cosine between the same weight of different layers",
                "0.001",
                f"{HERE}: attention of a 6-layer encoder",
            ),
            (
                "Retained energy at 30 %, o: each layer alone / three layers share their output basis",
                "0.551 / 0.566",
                f"{HERE}: all-MiniLM-L6, Frobenius",
            ),
            (
                "The same, k: each layer alone / two layers share their input basis",
                "0.599 / 0.600",
                f"{HERE}: all-MiniLM-L6, Frobenius",
            ),
            (
                "The same, v: each layer alone / two layers share their input basis",
                "0.567 / 0.559",
                f"{HERE}: all-MiniLM-L6, Frobenius",
            ),
            (
                "LLaMA-1 7B, a fifth removed: perplexity SVD-LLM / Basis Sharing (dense 5.68)",
                "7.94 / 7.74",
                "published, arXiv:2403.07378 and 2410.03765",
            ),
        ),
        (
            arxiv("2410.03765", "Wang et al., Basis Sharing"),
            (
                "Grasedyck, Hierarchical singular value decomposition of tensors, SIAM J. Matrix Anal. Appl. 31 (2010)",
                "https://doi.org/10.1137/090764189",
            ),
            (
                "De Lathauwer et al., On the best rank-(R1, …, RN) approximation, SIAM J. Matrix Anal. Appl. 21 (2000)",
                "https://doi.org/10.1137/S0895479898346995",
            ),
        ),
        "Layers in the group",
        {
            f"{n}, {side} shared": {"members": tuple(map(str, range(n))), "share": key}
            for side, key in (("inputs", "in"), ("outputs", "out"))
            for n in (2, 3, 6)
        },
    ),
    "peps": Doc(
        "PEPS",
        "KARIPAP's network made definite: a projected entangled pair operator, the digits on a square lattice.",
        (
            (
                "peps",
                "Four pairs of digits on a ring of 2 × 2 sites, and a lattice of 3 × 3; every pair of neighbours "
                "shares a bond D.",
            ),
        ),
        "The bond D between two neighbouring sites. A cut through the lattice crosses several bonds: across a 2 × 2 "
        "ring it can carry D², across 3 × 3 D³. So small bonds go far.",
        r"\sum_{k} o_k\, i_k \prod_{b \,\ni\, k} D_b \qquad \bigl(2\times 2:\; D^2 \textstyle\sum_k o_k i_k\bigr)",
        "By default a 2 × 2 ring has the rows on two sites and the columns on the others, next to an SVD; even digits "
        "on "
        "every site, as drawn, see no structure in natural order. “iPEPS” taken literally has no finite legs; tied "
        "cores "
        "on a torus show what translation invariance costs.",
        (
            "The spectrum is flat: on noise the closed ring fits better than any network here, the SVD among them.",
            "Half or more of the parameters stay: there it draws level with the SVD on some trained weights.",
            "Something gives the lattice a meaning: heads as a leg, a permutation, gates (disentangled).",
        ),
        (
            "Trained attention at strong compression: the SVD sees structure that sites in natural order do not.",
            "A guaranteed optimum is needed: loops leave no canonical form; fits start often and take the best.",
            "Lattices beyond 3 × 3: exact contraction ends, and renormalization (TRG) estimates instead.",
        ),
        "The cores are contracted with x in the cheapest order; loops make that dearer than a chain. Where it costs "
        "more than the dense layer the plan says so, and W can be rebuilt once at load.",
        (
            (
                "Retained energy at 30 %, Gaussian noise of 384 × 384, even digits: SVD / three-site MPO / ring",
                "0.431 / 0.378 / 0.503",
                f"{HERE}: Frobenius, 15 sweeps",
            ),
            ("The same, a trained query", "0.580 / 0.387 / 0.504", f"{HERE}: Frobenius, 15 sweeps"),
            ("At 50 %, a trained value: SVD / ring", "0.740 / 0.744", f"{HERE}: Frobenius, 15 sweeps"),
            (
                "Demo model, one attention at 30 %, squared error: default PEPS / MPO of three even sites / SVD",
                "21.9 % / 55.3 % / 21.2 %",
                f"{HERE}: claims assets/demo_model --claim headline",
            ),
            (
                "KARIPAP on LLaMA-2 7B",
                "93 % memory, 70 % parameters, 2 to 3 % accuracy: no D, no lattice, no code public",
                "published, arXiv:2510.21844: not reproducible as published",
            ),
        ),
        (
            arxiv("2510.21844", "Nazri, KARIPAP"),
            arxiv(
                "cond-mat/0407066",
                "Verstraete and Cirac, Renormalization "
                "algorithms for quantum many-body systems in two and higher dimensions",
            ),
            arxiv("1405.3259", "Lubasch, Cirac and Bañuls, Algorithms for finite PEPS"),
        ),
        "Lattice",
        {"2 × 2": {}, "2 × 3": {"grid": (2, 3)}, "3 × 3": {"grid": (3, 3)}},
    ),
    "disentangled": Doc(
        "Disentangled MPO",
        "Circuits of orthogonal gates on the digits take entanglement out, and an MPO with small bonds stays.",
        (("disentangled", "An MPO with bonds χ′ between two brickwork circuits of gates on neighbouring digits."),),
        "χ′ is the bond of the MPO that is left between the circuits. Without layers of gates it is `mpo` exactly.",
        r"\sum_k \chi'_{k-1} o_k i_k \chi'_k \;+\; \sum_{\text{gates}} \frac{ab\,(ab-1)}{2}",
        "A gate on digits a and b is a rotation of ab dimensions, stored as its angles. All of them count.",
        (
            "A few small gates suffice: digits of 4 to 16, one or two layers, on weights with local structure.",
            "The circuits run on a quantum computer, where nobody stores their angles.",
        ),
        (
            "Gates span whole registers: their angles alone are as many as the weight's numbers.",
            "MPO and gates together are larger than the SVD at the same error. Before any run this is counted, and "
            "where it cannot pay nothing is run.",
        ),
        "The gates act on x and y pair by pair, a·b multiply-adds for each number they turn, and the MPO between them; "
        "forming each gate from its angles is counted too.",
        (
            (
                "576 × 192 weight of SmolLM2: MPO parameters at χ′ = 1 / 10 / 256",
                "36 / 2,356 / 401,956",
                "published, arXiv:2410.17397v2; counts repeated here to the digit",
            ),
            (
                "Angles of its two circuits (the weight has 110,592 numbers)",
                "556,416",
                "published, arXiv:2410.17397v2; repeated here",
            ),
            (
                "Demo model, a query at half its parameters, gates counted: local gates and MPO / MPO / SVD",
                "23.8 % / 18.6 % / 11.9 % of ‖W‖² lost",
                f"{HERE}: claims assets/demo_model --claim disentanglers",
            ),
            (
                "Perplexity with one weight at χ′ = 1, with / without circuits",
                "+ 0.26 % / + 9.7 %",
                "published, arXiv:2410.17397v2",
            ),
        ),
        (
            arxiv("2410.17397", "Aizpurua, Jahromi, Singh and Orús"),
            arxiv("0707.1454", "Evenbly and Vidal, Algorithms for entanglement renormalization"),
        ),
        "Layers of gates",
        {"2 (default)": {}, "1": {"layers": 1}, "4": {"layers": 4}, "0 (mpo)": {"layers": 0}},
    ),
    "qlr": Doc(
        "Quantized plus low rank",
        "Integers for the bulk of the weight, two thin factors for what rounding hurts most.",
        (("qlr", "A weight is a matrix of codes of 2 to 4 bits plus two cores joined by a bond χ."),),
        "The rank of the repair L R: how many directions of the rounding error are put right, in the metric.",
        r"\begin{aligned}&\text{out}\cdot\text{in}\cdot\Bigl(\tfrac{b}{8} + \tfrac{2 + b/8}{g}\Bigr) \\ "
        r"&+\; 2\,\chi\,(\text{out}+\text{in}) \quad\text{bytes}\end{aligned}",
        "Codes of b bits with a scale and a zero point for each group of g; L and R in 16 bits. It has more numbers "
        "than the dense weight in fewer bytes, so only "
        "bytes say anything.",
        (
            "Just above 3 bits: a little rank buys more than the next bit would.",
            "A few directions of the inputs carry most of the error (outlier channels).",
        ),
        (
            "2 bits: the rank needed for the repair costs more than the third bit.",
            "4 bits: there is little left to repair.",
        ),
        "The dense product with the dequantized codes, plus χ (out + in): more multiply-adds than dense. Fewer bytes "
        "are read, but codes are made numbers again in every pass, which on a CPU can take longer than it saves: the "
        "time of decoding is measured, beside the multiply-adds.",
        (
            (
                "Rise in loss, 3 bits and 5 % rank at 23.3 % of the bytes / 3 bits alone at 21.9 %",
                "0.0099 / 0.0133 nats",
                f"{HERE}: 5.3 M Llama; symmetric GPTQ, L and R in 4 bits",
            ),
            ("The same on a saturated model", "0.739 / 0.903 nats", f"{HERE}: stories260K"),
            (
                "LLaMA-2 7B, perplexity at 4.04 / 3.04 / 2.02 bits by AQLM (dense 5.12, context 4096)",
                "5.21 / 5.46 / 6.6",
                "published; the bar in bytes",
            ),
        ),
        (arxiv("2410.06040", "Zhang et al., QERA"), arxiv("2405.18886", "Saha et al., CALDERA")),
        "Codes",
        {"3 bits": {"bits": "int3"}, "4 bits": {"bits": "int4"}, "2 bits": {"bits": "int2"}},
    ),
    "tt_embedding": Doc(
        "Tensor-train embedding",
        "A table of token vectors as tensor trains: rows are looked up without ever forming the table.",
        (
            (
                "tt_embedding",
                "Left: one train for the whole table, the token's number picks a slice of every core. Right: "
                "a train for every token.",
            ),
        ),
        "In the table form χₖ joins digits of the token's number and of the vector's index. In the token form rₖ is "
        "the bond inside one token's own train; rank 1 is a product of small vectors.",
        r"\begin{aligned}\text{table: }& \sum_k \chi_{k-1}\, v_k\, d_k\, \chi_k \\ "
        r"\text{token: }& V \sum_k r_{k-1}\, d_k\, r_k\end{aligned}",
        "V is padded to a product of digits; the rows past it are never stored. Rank 1 of a 768-dimensional vector is "
        "768 → 20 numbers: the published 38.4 times.",
        (
            "The embedding is a large part of the model: small models with large vocabularies.",
            "The vocabulary grows: a new token brings its own train (token form).",
            "The table was trained as a tensor train from the start.",
        ),
        (
            "A trained table is split afterwards: at equal bytes the SVD of the table and plain integers are better.",
            "The head is tied to it: logits need the whole table, which must then be stored or rebuilt.",
        ),
        "One look-up multiplies one slice of each core, tens to thousands of multiply-adds, against none for a plain "
        "table. A head in this form costs what an MPO costs.",
        (
            (
                "Rank 1 for each token, demo model: 16.0 times smaller, KL divergence train / SVD of the same size",
                "4.38 / 3.45 nats",
                f"{HERE}: claims assets/demo_model --claim embedding",
            ),
            (
                "Rank 2, 4.6 times smaller / the table in 4 bits, 3.7 times smaller",
                "2.91 / 0.002 nats",
                f"{HERE}: the same command",
            ),
            ("GPT-2's embedding", "38.40 times smaller; 3.31 times “even better”", "published, arXiv:2307.00526"),
        ),
        (
            arxiv("2307.00526", "Xu, Xu and Mandic, TensorGPT"),
            arxiv("1901.10787", "Khrulkov et al., Tensorized embedding layers"),
            arxiv("1509.06569", "Novikov et al., Tensorizing neural networks"),
        ),
        "Form",
        {"table": {"form": "table"}, "token": {"form": "token"}},
        TABLES,
    ),
    "trg": Doc(
        "TRG and HOTRG",
        "The engine, not a network for weights: renormalization turns a lattice without open legs into a number.",
        (
            ("trg", "One step of TRG: four sites, each split in two by SVD, the inner halves contracted."),
            ("hotrg", "One step of HOTRG: two neighbours merged, their doubled bonds projected back to χ."),
        ),
        "How many states every bond keeps after a step. Each step halves the number of sites; what χ cuts off is the "
        "discarded weight.",
        r"\text{TRG: } O(\chi^6) \qquad \text{HOTRG: } O(\chi^7)",
        "Nothing is stored: norms and overlaps ⟨Ŵ|Ŵ⟩ are computed, and bond environments read off.",
        (
            "A PEPS larger than about 4 × 4 sites with D of 4 or more: exact contraction is then out of reach.",
            "The engine itself is to be trusted: on the Ising magnet the exact answer is known (Physics check).",
        ),
        (
            "Any lattice for one weight, up to 3 × 3: exact contraction is cheaper and has no error.",
            "Rebuilding W: renormalization gives a number, no smaller tensors. Read literally, TRG compresses nothing.",
        ),
        "None: it runs while a PEPS is fitted, never when a model answers.",
        (
            (
                "Relative error of ln Z at the critical point, TRG, χ = 8 / 16 / 24",
                "6.9 · 10⁻⁵ / 4.6 · 10⁻⁶ / 1.1 · 10⁻⁶",
                f"{HERE}: 2³⁰ spins, against Onsager",
            ),
            ("The same, HOTRG", "1.4 · 10⁻⁵ / 5.6 · 10⁻⁷ / 1.0 · 10⁻⁷", f"{HERE}: 2³⁰ spins, against Onsager"),
        ),
        (
            arxiv("cond-mat/0611687", "Levin and Nave, Tensor renormalization group"),
            arxiv("1201.1144", "Xie et al., Coarse-graining renormalization by HOSVD"),
        ),
    ),
    "auto": Doc(
        "Auto",
        "Every weight gets the network and the size that cost least at one price for a byte.",
        (
            (
                "auto",
                "For each weight the damage over bytes of several networks; a line of the same slope λ touches each "
                "weight's lower hull and picks network and size.",
            ),
        ),
        "No bond of its own: for every weight χ is an outcome, that of the network that won.",
        r"\min_{c}\; \sum_{\ell} \text{damage}_\ell(c_\ell) + \lambda\,\text{bytes}_\ell(c_\ell)",
        "λ is bisected until the budget is met. Exact for the relaxed problem: one sort over all options of all "
        "weights, dense among them.",
        (
            "Weights differ: flat spectra here, low rank there, some that must stay as they are.",
            "The budget is in bytes, and quantized options stand in the same list.",
        ),
        (
            "One network wins everywhere: then the mix is that network.",
            "Damages of different networks are not comparable: they must be measured in one metric, as they are here.",
        ),
        "The sum of what was picked: parameters, bytes and multiply-adds of a plan are counted weight by weight.",
        (
            (
                "Perplexity of Mistral-7B at kept 0.8: uniform / by local spectra / globally calibrated",
                "7.14 / 7.13 / 5.98",
                "published, LEMS",
            ),
            ("Rise in loss at 90 % of stories260K: uniform / calibrated", "1.36 / 0.117 nats", f"{HERE}: TinyStories"),
        ),
        (arxiv("2403.07378", "Wang et al., SVD-LLM"), ("lems-svd/lems", "https://github.com/lems-svd/lems")),
    ),
}
