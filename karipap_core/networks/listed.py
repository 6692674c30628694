"""Which networks there are, without loading one: pages offer them by name before anything needs torch.

A new network is a line here and its file: the path below this package, whose first part is the network's name. They are
listed in this order everywhere, and "auto" tries them in it.
"""

NETWORKS = (  # for the weights of linear layers
    "lowrank",
    "mpo",
    "qlr",
    "peps.network",
    "disentangled",
    "tree.network",
)
OTHERS = (  # a weight as it is, tables of tokens alone, and what goes around a network
    "dense",
    "tt_embedding",
    "structured",
)
FILES = (*NETWORKS, *OTHERS)
NAMES = tuple(file.partition(".")[0] for file in NETWORKS)
