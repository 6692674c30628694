"""The plan: what each weight of one checkpoint becomes. The file that people exchange.

A plan names the checkpoint by its fingerprint and gives each weight an entry: `{"network": "dense"}`, or a network
with its factorization and bond dimensions (see `karipap_core/networks`). A compressible weight without an entry
stays dense. Nothing here imports torch until a network has to be checked.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core import schemas
from karipap_core.errors import InputError, unknown
from karipap_core.networks.listed import NAMES
from karipap_core.plan.foretold import measured
from karipap_core.plan.kind import counting
from karipap_core.reading import parse_json, read_bytes
from karipap_core.values import html_table
from karipap_core.workspace.names import clean

if TYPE_CHECKING:  # torch, seconds: not for reading a plan
    from karipap_core.networks import Spec

FORMAT, VERSION = "karipap-plan", 1
RULES = ("uniform", "entropy", "functional", "loss", "calibrated", "refined", "best")
DENSE = {"network": "dense"}
LISTED = ("dense", *NAMES, "tt_embedding")


@dataclass(frozen=True)
class Ledger:
    """What a plan leaves of a model. Parameters and bytes count everything, tied tensors once.

    kept = parameters / parameters of the dense model; `kept_blocks` the same over the compressible weights alone;
    bytes_kept = bytes / bytes of the checkpoint as stored. block_bytes: of the compressible weights with 2 bytes for
    each number that is not quantized, whatever it is stored in; bytes_kept_blocks: over those of the dense ones.
    """

    parameters: int
    bytes: int
    kept: float
    bytes_kept: float
    block_parameters: int
    kept_blocks: float
    block_bytes: int
    bytes_kept_blocks: float
    table_bytes: int = 0  # the same of embedding tables and heads that the plan changes, and of what they were
    table_bytes_dense: int = 0


class Entry(dict[str, Any]):
    """What one weight becomes: the JSON object of the plan's file, with the network that it names resolved once.

    Beside the network's own fields (`Spec.to_json`) it may hold `locked`, `by` ("hand") and `why`. Not to be changed in
    place where that touches the network: `spec` would not follow.
    """

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Entry":
        """An entry of any such object; the very same where it is one already."""
        return entry if isinstance(entry, cls) else cls(entry)

    @classmethod
    def made(cls, spec: "Spec | None") -> "Entry":
        """The entry of a network; None is the weight as it is."""
        entry = cls(DENSE if spec is None else spec.to_json())
        entry.__dict__["spec"] = spec
        return entry

    @cached_property
    def spec(self) -> "Spec | None":
        """The network, or None where the weight stays as it is. Raises InputError naming the field that is wrong."""
        if self["network"] == "dense" and not self.get("quantize"):
            return None
        from karipap_core.networks import spec_from_json

        return spec_from_json(self)

    def marked(self, **more: Any) -> "Entry":
        """The same network with these fields beside it (`locked`, `by`, `why`)."""
        entry = Entry(self | more)
        entry.__dict__ |= self.__dict__
        return entry


def rounding_of(metric: str, weights: Mapping[str, dict[str, Any]], rounding: str) -> str | None:
    """The field `rounding` of a plan with these entries: None where it makes no difference."""
    rounds = any(entry.get("quantize") or entry.get("bits") for entry in weights.values())
    return counting(rounding, metric, rounds)


@dataclass(repr=False)
class Plan:
    """What each weight of one checkpoint becomes, and where that came from; see `plan.schema.json` for the fields.

    weights : {weight: entry} (see `Entry`).  predicted : what the plan costs and is predicted to do.  tried : what was
    measured on the way to it, {"rule", "rise", "divergence", …} each.  notes : what is to be known of weights that no
    measurement says enough of.  rounding : "two-sided" where numbers in few bits are rounded under both moments of the
    loss metric; without it under that of the inputs alone, as in all plans once.  prefix :
    "aligned" where each weight is fitted behind the compressed ones before it (aligned.py).  name : what people call
    it, no part of what it is.
    """

    model: dict[str, Any]
    metric: str
    weights: dict[str, dict[str, Any]]
    rule: str = "hand"
    scope: str = "model"
    budget: float | None = None
    budget_bytes: float | None = None
    calibration: dict | None = None
    predicted: dict | None = None
    tried: list[dict] = field(default_factory=list)
    chosen_rule: str | None = None
    embedding: dict | None = None
    rounding: str | None = None
    prefix: str | None = None
    notes: list[str] = field(default_factory=list)
    name: str | None = None

    def __post_init__(self) -> None:
        self.weights = {name: Entry.of(entry) for name, entry in self.weights.items()}

    @property
    def kept(self) -> float:
        """Fraction of the model's parameters that this plan keeps, counted: as predicted when the plan was made, else
        from its own entries (a head that is untied from the embedding is then not counted)."""
        if self.predicted and "kept" in self.predicted:
            return self.predicted["kept"]
        specs = [spec for name in self.weights if (spec := self.spec(name)) is not None]
        saved = sum(spec.n_out * spec.n_in - spec.parameters for spec in specs)
        return 1 - saved / self.model["parameters"]

    @property
    def called(self) -> str:
        """Its name, or one made of the model, what is kept and the networks, such as "smollm2-0.7-lowrank"."""
        if self.name:
            return self.name
        networks = sorted({entry["network"] for entry in self.weights.values()} - {"dense", "tt_embedding"})
        formats = sorted({entry.get("quantize") or "" for entry in self.weights.values()} - {""})
        made = "+".join(networks) if len(networks) < 3 else "mixed"
        stored = formats[0] if len(formats) == 1 else "few-bits" if formats else ""
        kept = self.budget_bytes or self.budget or self.kept
        model = clean(str(self.model["name"]).rpartition("/")[2].lower(), otherwise="model")[:28]
        return clean("-".join([model, f"{kept:.2g}", *filter(None, (made, stored))]))

    def __repr__(self) -> str:
        foretold = self.predicted or {}
        rise = ""
        if foretold.get("rise") is not None:
            unit = "relative error of the outputs" if foretold.get("measure") == "output error" else "nats a token"
            how = "measured on calibration text" if measured(foretold) else "predicted"
            rise = f"; costs {foretold['rise']:.3g} {unit} ({how})"
        return (
            f"<Plan for {self.model['name']} by rule {self.chosen_rule or self.rule}, metric {self.metric}: "
            f"{self.kept:.1%} of the parameters kept (counted){rise}>"
        )

    def _repr_html_(self) -> str:
        """The entries as a small table, for notebooks."""
        rows = []
        for name, spec in ((name, self.spec(name)) for name in self.weights):
            chi = " ".join(map(str, spec.chi)) if spec else ""
            rows.append([name, spec.network if spec else "dense", chi, (spec and spec.quantize) or ""])
        return html_table(repr(self)[1:-1], ("weight", "network", "χ", "numbers"), rows)

    def to_json(self) -> dict:
        """What the plan is, in JSON; its name is not part of that (see `named`)."""
        document = {"format": FORMAT, "version": VERSION, "model": self.model, "metric": self.metric}
        document |= {"rule": self.rule, "scope": self.scope, "budget": self.budget, "budget_bytes": self.budget_bytes}
        document |= {"calibration": self.calibration, "weights": self.weights, "predicted": self.predicted}
        if self.chosen_rule:
            document["chosen_rule"] = self.chosen_rule
        if self.tried:
            document["tried"] = self.tried
        if self.embedding:
            document["embedding"] = self.embedding
        if self.rounding:
            document["rounding"] = self.rounding
        if self.prefix:
            document["prefix"] = self.prefix
        if self.notes:
            document["notes"] = self.notes
        return document

    def named(self) -> dict:
        """The document of a file that people exchange: `to_json`, and the name where it has one."""
        return self.to_json() | ({"name": self.name} if self.name else {})

    @classmethod
    def from_json(cls, document: dict, source: str = "plan") -> "Plan":
        """A plan from its JSON form. Raises InputError that names the source and the field."""
        _check(document, source)
        return cls(**{each.name: document[each.name] for each in fields(cls) if each.name in document})

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """A plan from a file. Raises InputError that names the file and what is wrong with it."""
        return cls.parse(read_bytes(path), f"File {path}")

    @classmethod
    def parse(cls, data: bytes | str, source: str = "plan") -> "Plan":
        """A plan from JSON text. Raises InputError that names the source and what is wrong."""
        return cls.from_json(parse_json(data, source), source)

    def save(self, path: str | Path) -> None:
        from karipap_core.workspace.files import write_json

        write_json(Path(path), self.named())

    def spec(self, name: str) -> "Spec | None":
        """The network of one weight, or None where the weight stays as it is. Raises InputError naming the weight."""
        try:
            return Entry.of(self.weights.get(name, DENSE)).spec
        except InputError as error:
            raise InputError(f"Plan, weight {name}: {error}") from None

    def adopted(self, checkpoint) -> "Plan":
        """This plan as one of another checkpoint, as --force uses it: the same entries, which nobody chose for these
        weights, and no prediction. Raises InputError where they do not fit."""
        found = replace(self, model=model_entry(checkpoint), rule="hand", chosen_rule=None, predicted=None, tried=[])
        found.check(checkpoint)
        return found

    def check(self, checkpoint, force: bool = False) -> None:
        """Hold the plan against a checkpoint.

        Raises InputError when the fingerprint differs (unless `force`), a weight is unknown or not compressible, or a
        network's sizes do not multiply to the weight's shape.
        """
        if not force and self.model["fingerprint"] != checkpoint.fingerprint:
            raise InputError(
                f"This plan was made for {self.model['name']} (fingerprint {self.model['fingerprint'][:12]}…), not for "
                f"{checkpoint.name} ({checkpoint.fingerprint[:12]}…): make a new plan, or use it all the same with "
                "--force."
            )
        known = {weight.name: weight for weight in checkpoint.weights}
        for name in self.weights:
            spec = self.spec(name)
            weight = known.get(name)
            if weight is None:
                raise InputError(f"Plan, weight {name}: {checkpoint.name} has no weight of that name.")
            if spec is None:
                continue
            if not weight.compressible and weight.role not in ("embed", "head"):
                raise InputError(f"Plan, weight {name}: a weight of role {weight.role} stays dense.")
            if weight.role == "embed" and not spec.looked_up:
                raise InputError(f"Plan, weight {name}: an embedding is looked up in, which a {spec.network!r} is not.")
            if (spec.n_out, spec.n_in) != tuple(weight.shape):
                raise InputError(
                    f"Plan, weight {name}: out {list(spec.out)} and in {list(spec.in_)} multiply to "
                    f"{spec.n_out} x {spec.n_in}, the weight is {weight.shape[0]} x {weight.shape[1]}."
                )
            self._check_group(name, spec)

    def _check_group(self, name: str, spec) -> None:
        """The weights that share cores must all be there, each in its place, or the cores are stored nowhere."""
        for member, mate in zip(spec.members, spec.mates, strict=False):  # who stands alone names no members
            if member not in self.weights or self.spec(member) != mate:
                raise InputError(
                    f"Plan, weight {name}: it shares cores with {member}, whose entry is missing or another one."
                )

    def ledger(self, checkpoint) -> Ledger:
        """Parameters and bytes of the model under this plan: sums of the cores' sizes in the weight's stored dtype."""
        blocks, block_bytes = checkpoint.block_parameters, 2 * checkpoint.block_parameters
        parameters, n_bytes, table_bytes, table_bytes_dense = checkpoint.parameters, checkpoint.bytes, 0, 0
        for weight in checkpoint.weights:
            spec = self.spec(weight.name) if weight.name in self.weights else None
            if spec is None:
                continue
            parameters += spec.parameters - weight.parameters
            n_bytes += spec.bytes(weight.bytes // weight.parameters) - weight.bytes
            if weight.compressible:
                blocks += spec.parameters - weight.parameters
                block_bytes += spec.bytes(2) - 2 * weight.parameters
            else:
                table_bytes += spec.bytes(2)
                table_bytes_dense += 2 * weight.parameters
        if self.unties(checkpoint):  # the head is written out on its own
            table = checkpoint.weight(next(iter(self.tables(checkpoint))))
            parameters, n_bytes = parameters + table.parameters, n_bytes + table.bytes
            table_bytes += 2 * table.parameters
        whole = checkpoint.block_parameters
        return Ledger(
            parameters=parameters,
            bytes=n_bytes,
            kept=parameters / checkpoint.parameters,
            bytes_kept=n_bytes / checkpoint.bytes,
            block_parameters=blocks,
            kept_blocks=blocks / whole if whole else 1.0,
            block_bytes=block_bytes,
            bytes_kept_blocks=block_bytes / (2 * whole) if whole else 1.0,
            table_bytes=table_bytes,
            table_bytes_dense=table_bytes_dense,
        )

    def tables(self, checkpoint) -> list[str]:
        """Names of the embedding tables and heads that the plan changes."""
        return [
            name for name in self.weights if self.spec(name) is not None and not checkpoint.weight(name).compressible
        ]

    def unties(self, checkpoint) -> bool:
        """Whether a head that is tied to the embedding stays dense while the embedding changes."""
        own_head = any(weight.role == "head" for weight in checkpoint.weights)
        asked = (self.embedding or {}).get("tied") == "untie"
        return asked and not own_head and checkpoint.predicts and bool(self.tables(checkpoint))


def made_of(entries) -> str:
    """What plan entries come to, in words: "integers alone 34 (int4 31, int3 3), networks 1 (lowrank int4)"; where
    integers alone were chosen everywhere, the sentence says so."""
    counts: dict[str, Counter] = {"integers alone": Counter(), "networks": Counter(), "as it was": Counter()}
    for entry in entries:
        form = " + ".join(filter(None, (entry.get("bits"), entry.get("quantize"))))
        if entry["network"] != "dense":
            counts["networks"][f"{entry['network']} {form}".strip()] += 1
        else:
            counts["integers alone" if form else "as it was"][form] += 1
    said = []
    for name, found in counts.items():
        forms = ", ".join(f"{form} {count}" for form, count in found.most_common() if form)
        said += [f"{name} {found.total()}" + (f" ({forms})" if forms else "")] if found else []
    only_integers = counts["integers alone"] and not counts["networks"] and not counts["as it was"]
    return ", ".join(said) + (": no network pays for its bytes here" if only_integers else "")


def model_entry(checkpoint) -> dict:
    """The plan's `model` field: which checkpoint it is for."""
    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "parameters": checkpoint.parameters,
        "block_parameters": checkpoint.block_parameters,
        "bytes": checkpoint.bytes,
    } | ({"stored": checkpoint.as_stored} if checkpoint.as_stored else {})


def measured_model(checkpoint) -> dict:
    """The `model` field of what was measured: `model_entry`, and the identity, by which measurements go."""
    return model_entry(checkpoint) | {"identity": checkpoint.identity}


def is_of(model: dict | None, checkpoint) -> bool:
    """Whether a `model` field is about this very checkpoint. One without an identity (written before 0.3) is where the
    tensors are the same."""
    model = model or {}
    same = model.get("fingerprint") == checkpoint.fingerprint
    return same and model.get("identity", checkpoint.identity) == checkpoint.identity


def _check(document: Any, source: str) -> None:
    """The schema, and what it cannot say: that a network has sizes and is one that there is."""
    schemas.check(document, "plan", source)
    for name, entry in document["weights"].items():
        if entry["network"] == "dense" and not entry.get("quantize"):
            continue
        if missing := [key for key in ("out", "in", "chi") if key not in entry]:
            raise InputError(f"{source}: field weights.{name}.{missing[0]} is missing.")
        if entry["network"] not in LISTED:
            from karipap_core.networks import EMBEDDING_NETWORKS, NETWORKS  # others may have been registered

            if entry["network"] not in NETWORKS | EMBEDDING_NETWORKS:
                known = NETWORKS | EMBEDDING_NETWORKS
                raise unknown(f"{source}: field weights.{name}.network:", entry["network"], known)
