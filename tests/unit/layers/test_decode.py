"""What one vector takes, measured."""

import torch

from karipap_core.layers import decode
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.networks import NETWORKS


def test_both_layers_are_timed_by_turns_and_large_weights_are_left_alone(monkeypatch):
    clock, now, cost = [], [0.0], {TensorNetworkLinear: 3.0, torch.nn.Linear: 2.0}

    def timed(kind, forward):
        def call(self, x):
            assert x.shape == (1, 36) and not torch.is_grad_enabled()
            clock.append(kind)
            now[0] += cost[kind]
            return forward(self, x)

        return call

    for kind in cost:
        monkeypatch.setattr(kind, "forward", timed(kind, kind.forward))
    monkeypatch.setattr(decode.time, "perf_counter", lambda: now[0])
    spec = NETWORKS["lowrank"].for_shape(24, 36, 4)
    assert decode.decode_seconds(spec) == (3.0, 2.0)
    assert clock[-4:] == [TensorNetworkLinear, torch.nn.Linear] * 2
    monkeypatch.setattr(decode, "LARGEST", 24 * 36 - 1)
    assert decode.decode_seconds(spec) is None


def test_a_smaller_network_is_quicker():
    ours, dense = decode.decode_seconds(NETWORKS["lowrank"].for_shape(1024, 4096, 16))
    assert 0 < ours < dense
