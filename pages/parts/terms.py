"""The words of the screen: each in one plain line, for a stranger, and where there is more to say, a second.

A page says a word's line where the word stands; the Glossary page has them all.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass

import streamlit as st


@dataclass(frozen=True)
class Term:
    """name: as the screen writes it. line: what it is, in one sentence. more: formula, source, or what to beware of."""

    name: str
    line: str
    more: str = ""


GROUPS: dict[str, dict[str, Term]] = {
    "The map: how much structure a weight holds": {
        "weight": Term(
            "Weight",
            "One matrix of the model, with as many rows as it has outputs and as many columns as it has inputs.",
            "A model's layer holds several, each with a role: q, k, v and o of the attention, gate, up and down of the "
            "feed-forward part. Cells of the map are weights.",
        ),
        "sigma": Term(
            "Singular values σ",
            "Every matrix is a sum of simple ones, each one column times one row; σ says how strong each of them is.",
            "In falling order they are the weight's spectrum. Cutting the sum after χ of them is the best "
            "approximation of that rank (Eckart and Young 1936).",
        ),
        "entropy": Term(
            "Entropy S",
            "How many of a weight's singular values matter: low where a few hold most of it, high where all are alike.",
            "S = −Σ p ln p with p = σ² / Σσ². In physics it is the entanglement entropy of the cut between a weight's "
            "inputs and its outputs.",
        ),
        "nats": Term(
            "nats",
            "The unit of entropies and losses here: bits, but with the natural logarithm (1 nat = 1.44 bits).",
        ),
        "noise": Term(
            "Noise",
            "A matrix of random numbers with the same shape: what a weight that had learned nothing would look like.",
            "Independent Gaussian numbers; the expected spectrum and entropy are computed from the law of Marchenko "
            "and Pastur.",
        ),
        "excess": Term(
            "Excess over noise",
            "Entropy of noise of this shape, minus the weight's own: what training put in. Near 0, nothing to cut.",
        ),
        "normalized_entropy": Term(
            "Normalized entropy",
            "S on a scale from 0 (one singular value holds everything) to 1 (all are equal), for any shape.",
            "S / ln min(out, in).",
        ),
        "renyi2": Term("Rényi-2 entropy", "As S, but the strongest singular values count for more.", "−ln Σ p² ≤ S."),
        "effective_rank": Term(
            "Effective rank",
            "How many equal singular values would have this entropy.",
            "exp S (Roy and Vetterli 2007).",
        ),
        "stable_rank": Term(
            "Stable rank",
            "How many times the strongest singular value's share there is in all.",
            "Σσ² / σ₁².",
        ),
        "rank": Term(
            "Rank",
            "How many singular values are not zero, as far as numbers of 32 bits can tell.",
        ),
        "spikes": Term(
            "Out of the bulk",
            "Singular values too large to be noise, and their share of Σσ². The bulk is what noise alone would fill.",
            "Beyond the bulk's edge by the 99 % quantile of its Tracy-Widom fluctuation.",
        ),
        "metric": Term(
            "Error of weights, outputs or loss",
            "What a cut is measured by: the numbers themselves, what the layer puts out on text, or the loss.",
            "The last two need a calibration text: W √C with C = E[x xᵀ] of the inputs, √G W √C with G = E[g gᵀ] of "
            "the output gradients.",
        ),
        "kfac": Term(
            "K-FAC estimate",
            "How much the loss would rise, estimated from gradients on text without cutting anything.",
            "Second order, with each weight's curvature as a Kronecker product (Martens and Grosse 2015). It compares "
            "layers well and is often wrong in size: damages of a calibration are better.",
        ),
    },
    "The plan: how much is kept": {
        "chi": Term(
            "χ (bond dimension)",
            "How many singular values a weight keeps: smaller χ, fewer numbers, larger error.",
            "In networks with several bonds it is the size of each.",
        ),
        "break_even": Term(
            "Break-even χ",
            "The χ at which the cut weight has as many numbers as the whole one: above it, cutting makes it larger.",
            "For two factors just under out · in / (out + in).",
        ),
        "kept": Term("Kept", "Numbers after compression over numbers before: 70 % kept is 30 % removed."),
        "bytes_kept": Term("Bytes kept", "The same in bytes as stored, so that quantization counts too."),
        "budget": Term("Budget", "How much of the model to keep in all; a rule divides it among the weights."),
        "dense": Term("Dense", "A weight left as it is, whole."),
        "locked": Term("Locked", "A weight that no rule and no slider changes until it is unlocked."),
        "cores": Term("Cores", "The small arrays that take a weight's place; multiplied together they approximate it."),
        "damage": Term(
            "Damage",
            "How far the model's outputs move when this one weight is cut to its χ and all others stay whole.",
            "The mean KL divergence from the dense model's predictions, in nats a token; for encoders the relative "
            "error of the outputs. Measured at a few χ, interpolated between them.",
        ),
        "rule": Term(
            "Rule",
            "How a budget is divided: equally (uniform), by entropy, or to where it saves most error.",
        ),
        "calibrated": Term(
            "Calibrated",
            "The rule that measures first: what cutting each weight alone costs; the budget goes where it saves most.",
            "Refined measures again at the plan itself; best measures every rule and keeps the best.",
        ),
        "predicted": Term(
            "Predicted",
            "What a plan should cost, by its damages and a few measured plans; beside it how wrong earlier ones were.",
            "Beyond what was checked: the plan is harsher than any that was measured, so no figure is given.",
        ),
    },
    "Networks and formats: what a weight becomes": {
        "lowrank": Term("low-rank", "Two thin matrices whose product approximates the weight: plain SVD, in a metric."),
        "mpo": Term(
            "MPO", "Matrix product operator: a chain of small tensors, one for each part of the rows and columns."
        ),
        "tree": Term("tree", "The same weight of several layers together: what they share is stored once."),
        "peps": Term("PEPS", "Small tensors on a two-dimensional lattice, each tied to its neighbours by a bond."),
        "disentangled": Term(
            "disentangled", "An MPO between two circuits of rotations that take entanglement out before it is cut."
        ),
        "qlr": Term(
            "qlr (quantized + low-rank)",
            "The weight in few bits, plus a low-rank correction of what rounding lost.",
        ),
        "auto": Term("auto", "Each weight gets the network and the format that lose least for their bytes."),
        "quantized": Term(
            "int8, int4 g64 …",
            "Numbers stored in 8 or 4 bits; g64: each group of 64 shares a scale, which is counted in the bytes.",
            "Rounded: to the nearest. GPTQ: rounded one column after the other, each making up for the last.",
        ),
        "tt_embedding": Term("tt", "A table of tokens as a tensor train: a chain of small tensors."),
    },
    "Measuring: what it cost": {
        "loss": Term(
            "Loss",
            "How surprised the model is by each token of a text, in nats; lower is better.",
            "Mean negative log-likelihood a token.",
        ),
        "rise": Term("Rise in loss", "Loss of the compressed model minus that of the dense one, on the same text."),
        "perplexity": Term(
            "Perplexity",
            "exp(loss): between how many equally likely tokens the model hesitates.",
            "Comparable only for one tokenizer, one text and one way of cutting it into windows.",
        ),
        "bits_per_byte": Term(
            "Bits per byte",
            "The loss for each byte of text: comparable between models with different tokenizers.",
        ),
        "kl": Term(
            "KL divergence",
            "How far the compressed model's predictions are from the dense model's, in nats a token; 0 is identical.",
        ),
        "top1": Term("Top-1 agreement", "How often both models put the same token first."),
        "interval": Term(
            "95 % interval",
            "How far chance in the choice of texts moves the figure: 95 of 100 such intervals hold the true one.",
            "Paired bootstrap of the difference to the dense model, over documents or windows.",
        ),
        "pareto": Term("Pareto front", "The points that no other beats in both size and quality."),
        "baseline": Term(
            "Baseline",
            "A plain rival measured in the same way: SVD, SVD-LLM, pruning, integers of 8 to 2 bits.",
        ),
        "calibration_text": Term(
            "Calibration text",
            "What a method may look at while it compresses. Never the text that it is measured on.",
        ),
        "heldout": Term("Held-out text", "What the result is measured on; nothing was fitted to it."),
        "healing": Term("Healing", "A short training of the compressed model on its own dense predictions."),
        "fingerprint": Term(
            "Fingerprint", "A sum over all of a checkpoint's tensors: a plan fits the model that has the same."
        ),
    },
}
TERMS = {key: term for terms in GROUPS.values() for key, term in terms.items()}


def line(key: str) -> str:
    """What a word is, in one plain sentence."""
    return TERMS[key].line


def rows(keys: Iterable[str], more: bool = False) -> None:
    """Words and their lines, one below the other."""
    cells = []
    for key in keys:
        term = TERMS[key]
        rest = f" <span>{html.escape(term.more)}</span>" if more and term.more else ""
        cells.append(f"<div><dt>{html.escape(term.name)}</dt><dd>{html.escape(term.line)}{rest}</dd></div>")
    st.html(f'<dl class="k-terms">{"".join(cells)}</dl>')


def strip(*keys: str) -> None:
    """The words of a page, folded at its end."""
    with st.expander("Words on this page", icon=":material/menu_book:", key="k-words"):
        rows(keys)
        st.page_link("pages/glossary.py", label="All words: the glossary", icon=":material/menu_book:")
