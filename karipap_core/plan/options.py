"""What a weight can become under the choices of a plan: kinds of networks and formats."""

from karipap_core.errors import InputError
from karipap_core.plan.kind import STRUCTURES, Kind

EMBEDDINGS = ("dense", "lowrank", "tt")
WHOLE = Kind("dense")  # the weight as it is
FORMATS = ("int8", "int4", "int3", "int2")  # of a weight that stays whole, where `auto` chooses
CORE_FORMATS = (None, "int8", "int4")  # three-bit cores lost to four-bit ones with fewer parameters kept, everywhere
QLR_BITS = ("int4", "int3", "int2")
QLR_FACTORS = "int4"  # the format of the correction's two factors where none is asked for
UNSTRUCTURED = ("tree", "qlr")  # networks that no structure goes around


def kinds_of(network: str, quantize: str | None, structure: str | None = None) -> list[Kind]:
    """What a weight of a block can become under these choices; the network itself comes first."""
    from karipap_core.networks import NETWORKS
    from karipap_core.quantization.formats import Format

    for name in networks_in(network):
        if name not in NETWORKS:
            raise InputError(f"Network {name!r} is not one of {', '.join(NETWORKS)}, auto.")
    if quantize not in (None, "auto"):
        Format.parse(quantize)
    if structure is not None and (structure not in STRUCTURES or network in UNSTRUCTURED):
        raise InputError(f"Structure {structure!r} is not one of {', '.join(STRUCTURES)}, or {network!r} takes none.")
    around = (("structure", structure),) if structure else ()
    kinds = []
    for name in networks_in(network):
        if name == "qlr":
            kinds += [kind for bits in QLR_BITS for kind in _qlr_kinds(bits, quantize)]
        else:
            own = () if name == "tree" else around
            kinds += [Kind(name, form, own) for form in (CORE_FORMATS if quantize == "auto" else (quantize,))]
    return list(dict.fromkeys([*kinds, *_whole_kinds(quantize)]))


def networks_in(network: str) -> list[str]:
    """The networks of a name: "auto" is all of them, "a+b" those two."""
    from karipap_core.networks import NETWORKS

    return list(NETWORKS) if network == "auto" else list(dict.fromkeys(network.split("+")))


def _qlr_kinds(bits: str, quantize: str | None) -> list[Kind]:
    """Q in `bits` with a correction, and without one (rank 0)."""
    factors = QLR_FACTORS if quantize in (None, "auto") else quantize
    return [Kind("qlr", factors, (("bits", bits),)), Kind("dense", bits)]


def _whole_kinds(quantize: str | None) -> list[Kind]:
    if quantize == "auto":
        return [*(Kind("dense", form) for form in FORMATS), WHOLE]
    return [WHOLE if quantize is None else Kind("dense", quantize)]


def table_kinds_of(embedding: str, quantize: str | None) -> list[Kind]:
    """What a table of tokens can become."""
    kinds = {
        "dense": [],
        "lowrank": [Kind("lowrank", None if quantize == "auto" else quantize)],
        "tt": [Kind("tt_embedding", None if quantize == "auto" else quantize, (("form", "table"),))],
    }[embedding]
    return [*kinds, *_whole_kinds(quantize)] if kinds else []


def own_options(spec) -> tuple[tuple[str, object], ...]:
    """The options of the kind that a spec is of."""
    structure = getattr(spec, "structure", None)
    around = next((word for word in STRUCTURES if structure is not None and getattr(structure, word)), None)
    if around is not None:
        return (("structure", around),)
    return (("bits", spec.bits),) if spec.network == "qlr" else ()


def is_of(spec, kind: Kind) -> bool:
    if (spec.network, spec.quantize) != (kind.network, kind.quantize):
        return False
    options = tuple(option for option in kind.options if option[0] != "form")
    return options == own_options(spec)
