"""Kinds of network (name, format of the cores, options), and which of them a weight can become under a choice.

What a network is like is asked of its class (`networks/base.py`): nothing here knows one by name, but for the words of
the option `embedding`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from karipap_core.errors import InputError, unknown
from karipap_core.search import largest

if TYPE_CHECKING:  # torch: seconds, and whoever reads curves that were measured needs none
    from karipap_core.networks import Spec

STRUCTURES = ("head", "rows", "columns")  # an SVD beside the network; its rows or columns in another order
# Of a weight that stays whole, where `auto` chooses. Narrow groups are not always worth their scales: in 2 bits the
# demo model loses a quarter more in groups of 64 than of 32, in 0.89 of the bytes, and a third bit is worth more.
FORMATS = ("int8", "int4", "int4g128", "int3", "int3g128", "int2", "int2g64", "int2g128")
PREFIXES = ("auto", "dense", "aligned")  # what a weight is fitted behind (`prefix_of`)
EIGHT = ("int8", "fp8")  # formats that leave nothing to make good
ROUNDED = 2  # raised where two-sided rounding gives other numbers than before: what is kept of it is made anew then
ROUNDINGS = ("two-sided", "one-sided")  # what makes rounding errors of integers good: both moments, or C alone
EMBEDDINGS = {"dense": None, "lowrank": "lowrank", "tt": "tt_embedding"}  # the option's word → the network of tables


@dataclass(frozen=True)
class Kind:
    """One thing that a weight can become: a network, the format of its cores, and the network's own options as
    (name, value); the network "dense" is the weight itself in a format."""

    network: str
    quantize: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """Names the kind in files and on screen: "lowrank", "lowrank int4", "qlr bits=int3 int4"."""
        words = [self.network, *(f"{key}={value}" for key, value in self.options), self.quantize or ""]
        return " ".join(filter(None, words))

    @property
    def rounds(self) -> bool:
        """Whether it stores numbers in few bits."""
        return self.quantize is not None or any(name == "bits" for name, _ in self.options)

    @property
    def structure(self) -> str | None:
        """Which of `STRUCTURES` is around the network, None for none."""
        return dict(self.options).get("structure")

    @property
    def cls(self) -> "type[Spec]":
        """The network's class."""
        from karipap_core.networks import EMBEDDING_NETWORKS, NETWORKS
        from karipap_core.networks.dense import Dense

        if self.network == Dense.network:
            return Dense
        return NETWORKS.get(self.network) or EMBEDDING_NETWORKS[self.network]

    @property
    def grouped(self) -> bool:
        """Whether weights share cores, so that a plan chooses for whole groups of them."""
        return self.network != "dense" and self.cls.grouped

    def spec(self, shape: tuple[int, int], chi: int) -> "Spec":
        """The `Spec` of a weight (out, in) at χ; "dense" has none but χ = 0. The weight as it is has no spec at all."""
        if self.network == "dense":
            if self.quantize is None:
                raise ValueError("The weight as it is has no spec.")
            return self.cls(shape[:1], shape[1:], (), self.quantize)
        options = dict(self.options)
        structure = options.pop("structure", None)
        spec = self.cls.for_shape(*shape, chi, quantize=self.quantize, **options)
        return spec if structure is None else _structured(spec, structure)

    def break_even(self, shape: tuple[int, int]) -> int:
        """The largest χ that is smaller than the dense weight; at least 1."""
        if self.structure is None:
            return max(1, self.spec(shape, 1).break_even_chi)
        dense, most = shape[0] * shape[1], self.spec(shape, 1).max_chi
        return largest(lambda chi: self.spec(shape, chi).parameters < dense, 1, most + 1)


def counting(rounding: str, metric: str, rounds: bool) -> str | None:
    """A rounding where it makes numbers other than they always were: in few bits (`rounds`) and under a moment of
    gradients; else None."""
    return rounding if rounds and metric == "loss" and rounding != "one-sided" else None


def check_prefix(wanted: str) -> None:
    """Raises InputError for a word that is none of `PREFIXES`."""
    if wanted not in PREFIXES:
        raise unknown("Prefix", wanted, PREFIXES)


def prefix_of(wanted: str, weights: Mapping[str, Mapping[str, Any]], runs: Callable[[], bool]) -> str | None:
    """The field `prefix` of a plan with these entries: by "auto" it is aligned where numbers are stored in less than 8
    bits, which is where that pays most, and `runs()` says that the model runs block by block."""
    if wanted != "auto":
        return None if wanted == "dense" else wanted
    forms = {form for entry in weights.values() for key in ("quantize", "bits") if (form := entry.get(key))}
    few = any(not form.startswith(EIGHT) for form in forms)
    return "aligned" if few and runs() else None


def curves_name(kind: Kind, metric: str, key: str, rounding: str = ROUNDINGS[0], which: str = "") -> str:
    """The name of the file with the curves of a kind, measured on a calibration of that key. which : "-tables" for
    those of the tables of tokens."""
    rounded = f"-{told}-{ROUNDED}" if (told := counting(rounding, metric, kind.rounds)) else ""
    key = "none" if metric == "weight" else key
    return f"{kind.label.replace(' ', '-')}{rounded}{which}-{metric}-{key}.safetensors"


WHOLE = Kind("dense")  # the weight as it is


def networks_in(network: str) -> list[str]:
    """The networks of a name: "auto" is all of them, "a+b" those two. Raises InputError for one that is not known."""
    from karipap_core.networks import NETWORKS

    if network == "auto":
        return list(NETWORKS)
    names = list(dict.fromkeys(network.split("+")))
    for name in names:
        if name not in NETWORKS:
            raise unknown("Network", name, [*NETWORKS, "auto"])
    return names


def kinds_of(network: str, quantize: str | None, structure: str | None = None) -> list[Kind]:
    """What a weight of a block can become under these choices (see `choice.Choice`); the network itself comes first.

    Raises InputError naming the choice that is not known or does not go together with the others.
    """
    from karipap_core.networks import NETWORKS
    from karipap_core.quantization.formats import Format

    names = networks_in(network)
    if quantize not in (None, "auto"):
        Format.parse(quantize)
    if structure is not None:
        if structure not in STRUCTURES:
            raise unknown("Structure", structure, STRUCTURES)
        if not any(NETWORKS[name].structured for name in names):
            raise InputError(f"Structure {structure!r}: {network!r} takes none.")
    kinds = []
    for name in names:
        around = {"structure": structure} if structure and NETWORKS[name].structured else {}
        for made, form, options in NETWORKS[name].kinds(quantize):
            kinds.append(Kind(made, form, tuple((options | around).items()) if made == name else ()))
    return list(dict.fromkeys([*kinds, *_whole_kinds(quantize)]))


def _whole_kinds(quantize: str | None) -> list[Kind]:
    if quantize == "auto":
        return [*(Kind("dense", form) for form in FORMATS), WHOLE]
    return [WHOLE if quantize is None else Kind("dense", quantize)]


def table_kinds_of(embedding: str, quantize: str | None) -> list[Kind]:
    """What a table of tokens can become, [] where it stays as it is. Raises InputError for an unknown word."""
    from karipap_core.networks import EMBEDDING_NETWORKS

    if embedding not in EMBEDDINGS:
        raise unknown("Embedding", embedding, EMBEDDINGS)
    network = EMBEDDINGS[embedding]
    if network is None:
        return []
    found = EMBEDDING_NETWORKS[network].kinds(None if quantize == "auto" else quantize)
    return [*(Kind(name, form, tuple(options.items())) for name, form, options in found), *_whole_kinds(quantize)]


def packs_unasked(network: str) -> bool:
    """Whether this one network's cores are stored in integers without being asked to."""
    if network in ("dense", "lowrank"):  # known without torch
        return False
    return any(form is not None for _, form, _ in Kind(network).cls.kinds(None))


@lru_cache(maxsize=64)
def alone_or_whole(network: str) -> bool:
    """Whether a weight, nothing quantized, has this network for itself or stays as it is: no other kind, no group."""
    if network == "lowrank":  # known without torch
        return True
    return kinds_of(network, None) == [Kind(network), WHOLE] and not Kind(network).grouped


def own_options(spec: "Spec") -> tuple[tuple[str, Any], ...]:
    """The options of the kind that a spec is of."""
    structure = getattr(spec, "structure", None)
    around = next((word for word in STRUCTURES if structure is not None and getattr(structure, word)), None)
    if around is not None:
        return (("structure", around),)
    return tuple((name, getattr(spec, name)) for name in spec.kind_fields)


def is_of(spec: "Spec", kind: Kind) -> bool:
    """Whether a spec is of a kind, whatever its χ."""
    if (spec.network, spec.quantize) != (kind.network, kind.quantize):
        return False
    told_apart = ("structure", *spec.kind_fields)
    return tuple(option for option in kind.options if option[0] in told_apart) == own_options(spec)


def _structured(spec: "Spec", structure: str) -> "Spec":
    """A network with one of `STRUCTURES` around it. The head is an SVD that takes as many numbers as the network."""
    from karipap_core.networks.structured import Structure, Structured

    if structure != "head":
        return Structured.around(spec, Structure(**{structure: True}))
    rank = max(1, round(spec.parameters / (spec.n_out + spec.n_in)))
    return Structured.around(spec, Structure(head=min(rank, spec.n_out, spec.n_in)))
