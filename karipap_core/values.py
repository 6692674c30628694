"""What the public functions return: a step's JSON document with its figures as fields, shown well in a notebook.

Each says of its figures which are counted, which measured and which predicted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from karipap_core.terminal import size, value

ROWS_SHOWN = 12


@dataclass(frozen=True, repr=False)
class Value:
    """The base: `document` is what the command of the same name prints with --json."""

    document: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The JSON document of this step, as the command of the same name prints it."""
        return self.document


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A small table for a notebook, its first `ROWS_SHOWN` rows; cells as in `terminal.value`."""
    rows = [*rows]
    more = f" The first {ROWS_SHOWN} of {len(rows)} rows." if len(rows) > ROWS_SHOWN else ""
    heads = "".join(f"<th>{escape(word)}</th>" for word in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(value(cell))}</td>" for cell in row) + "</tr>" for row in rows[:ROWS_SHOWN]
    )
    caption = f"<caption>{escape(caption + more)}</caption>"
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, repr=False)
class Compressed(Value):
    """A compressed model: a Hugging Face folder, which `from_pretrained` loads once karipap_core is imported.

    Sizes are counted from the cores that were written, errors measured on them.
    """

    folder: Path

    @property
    def kept(self) -> float:
        """Parameters of the compressed model / parameters of the dense one, all tensors counted, tied ones once."""
        return self.document["kept"]

    @property
    def bytes_kept(self) -> float:
        """Bytes of the compressed model's tensors / bytes of the dense one's as stored."""
        return self.document["bytes_kept"]

    @property
    def parameters(self) -> int:
        return self.document["parameters"]

    @property
    def bytes(self) -> int:
        return self.document["bytes"]

    @property
    def verified(self) -> bool:
        """Whether the folder on disk passed every check of `verify` when it was written."""
        return self.document["verify"]["ok"]

    @property
    def errors(self) -> dict[str, float]:
        """‖W − Ŵ‖² / ‖W‖² of each weight that was changed, Ŵ as stored."""
        return {row["name"]: row["weight_error"] for row in self.rows()}

    @property
    def functional_errors(self) -> dict[str, float | None]:
        """‖(W − Ŵ)C^½‖² / ‖W C^½‖² of each weight that was changed, C = E[x xᵀ] of its inputs on the calibration text;
        None where the plan's metric looked at no text."""
        return {row["name"]: row["functional_error"] for row in self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One row a changed weight: name, network, chi, quantize, parameters, weight_error, functional_error."""
        return self.document["weights"]

    def __repr__(self) -> str:
        worst = max(self.errors.values(), default=0.0)
        return (
            f"<Compressed {self.folder}: {self.kept:.1%} of the parameters and {self.bytes_kept:.1%} of the bytes kept "
            f"({size(self.bytes)}, counted); {len(self.rows())} weights changed, largest relative squared error "
            f"{worst:.3g} (measured); {'verified' if self.verified else 'NOT verified'}>"
        )

    def _repr_html_(self) -> str:
        head = ("weight", "network", "χ", "numbers", "parameters", "error of W", "error of outputs")
        keys = ("name", "network", "chi", "quantize", "parameters", "weight_error", "functional_error")
        said = f"{repr(self)[1:-1]}. Errors are relative and squared, measured on the stored cores."
        return html_table(said, head, ([_cell(row[key]) for key in keys] for row in self.rows()))


def _cell(something):
    return " ".join(map(str, something)) if isinstance(something, list) else something


@dataclass(frozen=True, repr=False)
class Evaluation(Value):
    """A model measured on held-out text, beside the dense model that it came from where that is at hand.

    Everything here is measured. Losses are nats a token. An encoder predicts no token: its loss, perplexity and rise
    are None, and `relative_error` says how far its outputs are from the dense model's.
    """

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy of the next token, nats."""
        return self.document["loss"]

    @property
    def perplexity(self) -> float | None:
        """e^loss."""
        return self.document["perplexity"]

    @property
    def bits_per_byte(self) -> float | None:
        return self.document["bits_per_byte"]

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return self.document["tokens"]

    @property
    def dense_perplexity(self) -> float | None:
        """The dense model's perplexity on the same tokens; None where nothing was compared."""
        return (self.document["dense"] or {}).get("perplexity")

    @property
    def rise(self) -> float | None:
        """Loss − the dense model's loss on the same tokens, nats; None where nothing was compared."""
        return self.document["rise"]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `rise`, by bootstrap over documents or windows; None where there are too few of them."""
        low, high = self.document.get("rise_low"), self.document.get("rise_high")
        return None if low is None or high is None else (low, high)

    @property
    def kl(self) -> float | None:
        """Mean KL(dense ‖ model) of the next token, nats."""
        return self.document["kl"]

    @property
    def top1_agreement(self) -> float | None:
        """Share of tokens whose likeliest successor is the same in both models."""
        return self.document["top1_agreement"]

    @property
    def relative_error(self) -> float | None:
        """Of an encoder: relative squared error of its outputs against the dense model's."""
        return (self.document["fidelity"] or {}).get("relative_error")

    @property
    def notes(self) -> list[str]:
        return self.document["notes"]

    def _figures(self) -> list[tuple[str, Any]]:
        interval = self.interval and "{:+z.4f} to {:+z.4f}".format(*self.interval)
        named = [
            ("perplexity", self.perplexity),
            ("perplexity of the dense model", self.dense_perplexity),
            ("rise in loss, nats a token", self.rise),
            ("its 95 % interval", interval),
            ("KL, nats a token", self.kl),
            ("top-1 agreement", self.top1_agreement),
            ("relative squared error of the outputs", self.relative_error),
            ("tokens", self.tokens),
        ]
        return [(name, figure) for name, figure in named if figure is not None]

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value(figure)}" for name, figure in self._figures())
        return f"<Evaluation of {self.document['model']} on {self.document['text']['name']}, measured: {figures}>"

    def _repr_html_(self) -> str:
        caption = f"{self.document['model']} on {self.document['text']['name']}, measured"
        return html_table(" ".join([f"{caption}.", *self.notes]), ("", "measured"), self._figures())


@dataclass(frozen=True)
class Check:
    """One check of a compressed folder. ok is None where it could not be decided."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, repr=False)
class Verdict(Value):
    """Whether a compressed folder is what its plan says and loads as that; true as a condition where it is."""

    @property
    def ok(self) -> bool:
        return self.document["ok"]

    @cached_property
    def checks(self) -> list[Check]:
        return [Check(**check) for check in self.document["checks"]]

    @property
    def loader(self) -> str:
        """Python that loads the folder, to paste."""
        return self.document["loader"]

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        red = ", ".join(f"{check.name} ({check.detail})" for check in self.checks if not check.ok)
        said = f"all {len(self.checks)} checks passed" if self.ok else f"NOT ok: {red}"
        return f"<Verdict on {self.document['folder']}: {said}>"

    def _repr_html_(self) -> str:
        words = {True: "yes", False: "NO", None: "not checked"}
        rows = ((check.name, words[check.ok], check.detail) for check in self.checks)
        return html_table(
            f"{self.document['folder']}: {'ok' if self.ok else 'NOT ok'}", ("check", "ok", "detail"), rows
        )


@dataclass(frozen=True, repr=False)
class Densified(Value):
    """An ordinary dense folder made from a compressed one: as large as the original, readable without Karipap."""

    @property
    def folder(self) -> Path:
        return Path(self.document["folder"])

    @property
    def parameters(self) -> int:
        return self.document["parameters"]

    @property
    def bytes(self) -> int:
        return self.document["bytes"]

    def __repr__(self) -> str:
        return (
            f"<Densified {self.folder}: {self.document['weights']} weights formed, {self.parameters:,} parameters, "
            f"{size(self.bytes)}: it gives back the compressed model's quality, not its memory>"
        )
