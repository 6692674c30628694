"""What the weights of a model may become: the network, the format of its cores, the tables, what goes around it."""

from dataclasses import dataclass, replace

from karipap_core.plan.kind import kinds_of


@dataclass(frozen=True)
class Choice:
    """What a plan may choose from.

    network : a name of the registry, several joined by "+" (lowrank+qlr), or "auto": all of them.
    quantize : the format of all cores and of weights that stay whole (int8, int4g64, fp8 …); "auto": whichever pays;
        None: 16-bit floats, or what the weight was stored in.
    embedding : "dense", "lowrank" or "tt": what the tables of tokens may become.
    structure : "head", "rows" or "columns" around every network, None for nothing.
    """

    network: str = "lowrank"
    quantize: str | None = None
    embedding: str = "dense"
    structure: str | None = None

    @classmethod
    def of(cls, choice: "Choice | str") -> "Choice":
        """A choice as it is; the name of a network stands for that network with nothing else chosen."""
        return choice if isinstance(choice, Choice) else cls(choice)

    @property
    def rounds(self) -> bool:
        """Whether numbers may be stored in few bits."""
        return self.quantize is not None or any(kind.rounds for kind in kinds_of(self.network, None))

    def alone(self, network: str) -> "Choice":
        """The same choice with one network, and with no structure around it where it takes none."""
        from karipap_core.networks import NETWORKS

        structured = network not in NETWORKS or NETWORKS[network].structured
        return replace(self, network=network, structure=self.structure if structured else None)
