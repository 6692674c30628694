"""A kind of network: its name, the format of its cores, and its options."""

from dataclasses import dataclass

from karipap_core.search import largest

STRUCTURES = ("head", "rows", "columns")  # an SVD beside the network; its rows or columns in another order


@dataclass(frozen=True)
class Kind:
    """One thing that a weight can become: a network, the format of its cores, and the network's own options as
    (name, value); the network "dense" is the weight itself in a format."""

    network: str
    quantize: str | None = None
    options: tuple[tuple[str, object], ...] = ()

    @property
    def label(self) -> str:
        """Names the kind in files and on screen: "lowrank", "lowrank int4", "qlr bits=int3 int4"."""
        words = [self.network, *(f"{key}={value}" for key, value in self.options), self.quantize or ""]
        return " ".join(filter(None, words))

    def spec(self, shape: tuple[int, int], chi: int):
        """The `Spec` of a weight (out, in) at χ; of "dense" at χ = 0. None is the weight as it is."""
        from karipap_core.networks import EMBEDDING_NETWORKS, NETWORKS
        from karipap_core.networks.dense import Dense

        if self.network == "dense":
            return None if self.quantize is None else Dense((shape[0],), (shape[1],), (), self.quantize)
        network = NETWORKS.get(self.network) or EMBEDDING_NETWORKS[self.network]
        options = dict(self.options)
        structure = options.pop("structure", None)
        spec = network.for_shape(*shape, chi, quantize=self.quantize, **options)
        return spec if structure is None else _structured(spec, structure)

    def break_even(self, shape: tuple[int, int]) -> int:
        """The largest χ that is smaller than the dense weight; at least 1."""
        if "structure" not in dict(self.options):
            return max(1, self.spec(shape, 1).break_even_chi)
        dense, most = shape[0] * shape[1], self.spec(shape, 1).max_chi
        return largest(lambda chi: self.spec(shape, chi).parameters < dense, 1, most + 1)


def _structured(spec, structure: str):
    """A network with one of `STRUCTURES` around it. The head is an SVD that takes as many numbers as the network."""
    from karipap_core.networks.structured import Structure, Structured

    if structure != "head":
        return Structured.around(spec, Structure(**{structure: True}))
    rank = max(1, round(spec.parameters / (spec.n_out + spec.n_in)))
    return Structured.around(spec, Structure(head=min(rank, spec.n_out, spec.n_in)))
