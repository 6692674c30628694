"""Networks and layers are imported without what only torch.compile needs, and are marked for it all the same."""

import subprocess
import sys

import torch

from karipap_core.networks.contraction import constant_in_graphs

NOTHING_COMPILED = """
import sys, torch
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.networks import NETWORKS
for network in NETWORKS.values():
    layer = TensorNetworkLinear.from_spec(network.for_shape(12, 20, 3), seed=0)
    for layer.runtime in ("cores", "dense"):
        layer(torch.randn(2, 20)).sum().backward()
sys.exit("torch._dynamo" in sys.modules)
"""


def test_dynamo_is_not_imported_where_nothing_is_compiled():
    assert subprocess.run([sys.executable, "-c", NOTHING_COMPILED], timeout=120).returncode == 0


def test_the_mark_of_a_constant_is_torchs_own():
    def ours():
        return 1

    def theirs():
        return 1

    constant_in_graphs(ours)
    torch.compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}
