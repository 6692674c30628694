"""`TensorNetworkLinear` in the hands of somebody who knows only PyTorch."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from karipap_core import InputError
from karipap_core.layers.linear import TensorNetworkLinear, check_layer, effective_weight
from karipap_core.networks import NETWORKS, Metric

SPECS = {
    "lowrank": NETWORKS["lowrank"].for_shape(24, 36, 9),
    "mpo": NETWORKS["mpo"].for_shape(24, 36, 9),
    "mpo, three sites": NETWORKS["mpo"].for_shape(24, 36, 9, sites=3),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(36, 24)


def batch(*shape):
    return torch.randn(*shape, 36, generator=torch.Generator().manual_seed(1))


@every_spec
def test_drop_in_for_linear(linear, spec):
    layer = TensorNetworkLinear.from_linear(linear, spec)
    W_hat = spec.dense(spec.decompose(linear.weight))
    for x in (batch(), batch(1), batch(2, 5)):
        wanted = nn.functional.linear(x, W_hat, linear.bias)
        torch.testing.assert_close(layer(x), wanted)
        layer.runtime = "dense"
        torch.testing.assert_close(layer(x), wanted)
        layer.runtime = "cores"
    torch.testing.assert_close(layer.weight, W_hat)
    full = TensorNetworkLinear.from_linear(linear, spec.with_chi(10**6))
    torch.testing.assert_close(full(batch(3)), linear(batch(3)), rtol=1e-5, atol=1e-5)


@every_spec
def test_the_metric_reaches_the_decomposition(linear, spec):
    x = batch(400) * torch.logspace(0, -2, 36)
    metric = Metric("functional", C=(x.T @ x / len(x)).double())
    aware, plain = (TensorNetworkLinear.from_linear(linear, spec, m) for m in (metric, None))
    error = [(layer(x) - linear(x)).square().sum().item() for layer in (aware, plain)]
    assert error[0] < 0.7 * error[1]


def test_conv1d_is_turned_once():
    class Conv1D(nn.Module):  # GPT-2's, as transformers defines it
        def __init__(self):
            super().__init__()
            self.nf = 24
            self.weight, self.bias = nn.Parameter(torch.randn(36, 24)), nn.Parameter(torch.randn(24))

        def forward(self, x):
            return x @ self.weight + self.bias

    conv = Conv1D()
    assert effective_weight(conv).shape == (24, 36)
    layer = TensorNetworkLinear.from_linear(conv, NETWORKS["lowrank"].for_shape(24, 36, 24))
    torch.testing.assert_close(layer(batch(4)), conv(batch(4)), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="Embedding"):
        effective_weight(nn.Embedding(3, 4))


@every_spec
def test_state_is_the_cores_and_the_bias(linear, spec):
    layer = TensorNetworkLinear.from_linear(linear, spec)
    layer.runtime = "dense"
    with torch.no_grad():
        layer(batch())
    names = [f"cores.{k}" for k in range(len(spec.core_shapes))]
    assert sorted(layer.state_dict()) == sorted([*names, "bias"])
    assert "bias" not in TensorNetworkLinear(spec).state_dict()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = TensorNetworkLinear(spec, bias=True)
    other.load_state_dict(torch.load(file, weights_only=True))  # tensors alone, nothing to execute
    torch.testing.assert_close(other(batch(3)), layer(batch(3)))


@every_spec
@pytest.mark.parametrize("runtime", ["cores", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_copies(linear, spec, runtime, dtype):
    layer = TensorNetworkLinear.from_linear(linear, spec)
    layer.runtime = runtime
    with torch.no_grad():
        wanted = layer(batch(3))
        twin = copy.deepcopy(layer).to(dtype)
        y = twin(batch(3).to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)
        assert layer(batch(3)).dtype == torch.float32
        twin.set_cores([core * 0 for core in layer.cores])
        torch.testing.assert_close(twin(batch(3).to(dtype)), twin.bias.expand(3, 24))
        torch.testing.assert_close(layer(batch(3)), wanted)  # the copy is a copy


@every_spec
@pytest.mark.parametrize("runtime", ["auto", "cores", "dense"])
def test_gradients_are_those_of_the_dense_layer(spec, runtime):
    layer = TensorNetworkLinear.from_spec(spec, bias=True, seed=0, dtype=torch.float64)
    layer.runtime = runtime
    x = batch(5).double().requires_grad_()
    goal = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ((layer(x) - goal) ** 2).sum().backward()
    found = [p.grad.clone() for p in layer.parameters()]
    x_grad, x.grad = x.grad, None
    layer.zero_grad()
    ((x @ spec.dense(list(layer.cores)).T + layer.bias - goal) ** 2).sum().backward()
    for mine, wanted in zip(found, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted.grad)
    torch.testing.assert_close(x_grad, x.grad)


def test_auto_forms_the_matrix_of_a_pass_where_that_is_quicker(monkeypatch):
    network = NETWORKS["mpo"]
    wide, formed = network.for_shape(64, 64, 64, sites=3), []
    layer = TensorNetworkLinear.from_spec(wide, seed=0)
    dense = layer.weight.detach()
    monkeypatch.setattr(network, "dense", lambda self, cores: formed.append(self) or dense)
    for many, is_formed in ((1, False), (4096, True), (0, False)):
        formed.clear()
        x = torch.randn(many, 64, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(layer(x), x @ dense.T, rtol=1e-4, atol=1e-4)
        assert wide.forms(many) == bool(formed) == is_formed
        layer.runtime = "cores"
        layer(x)
        assert len(formed) == is_formed, "cores never form it"
        layer.runtime = "auto"
    assert wide.multiply_adds(4096) > 4096 * 64 * 64
    few = NETWORKS["lowrank"].for_shape(1024, 4096, 256)
    assert not any(few.forms(2**k) for k in range(20)), "fewer multiply-adds than the matrix at any batch"


@every_spec
def test_the_kept_weight_follows_every_change_of_the_cores(linear, spec):
    layer = TensorNetworkLinear.from_linear(linear, spec)
    layer.runtime = "dense"
    x = batch(2)

    def right():
        with torch.no_grad():
            torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, rtol=1e-4, atol=1e-5)
            assert layer.formed is layer._formed_weight()  # formed once, not at every call

    right()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimizer.step()
    right()
    layer.load_state_dict(TensorNetworkLinear.from_spec(spec, bias=True, seed=5).state_dict())
    right()
    layer.cores[0] = nn.Parameter(torch.ones_like(layer.cores[0]))  # as from_pretrained puts tensors in
    right()
    layer.double()
    x = x.double()
    right()


@every_spec
def test_compiles_in_one_graph(linear, spec):
    layer = TensorNetworkLinear.from_linear(linear, spec)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for x in (batch(2, 3), batch(7)):
        torch.testing.assert_close(compiled(x), layer(x))
    compiled(batch(4)).sum().backward()
    assert all(core.grad is not None for core in layer.cores)


@every_spec
def test_the_kept_weight_follows_the_cores_under_compile(linear, spec):
    layer = TensorNetworkLinear.from_linear(linear, spec)
    layer.runtime = "dense"
    compiled = torch.compile(layer, backend="eager")
    with torch.no_grad():
        before = compiled(batch(2)).clone()
        torch.testing.assert_close(before, batch(2) @ layer.weight.T + layer.bias)
        layer.cores[0].mul_(2)
        torch.testing.assert_close(compiled(batch(2)) - layer.bias, 2 * (before - layer.bias))


@every_spec
def test_random_start_keeps_the_variance(spec):
    wide = type(spec).for_shape(128, 192, 24, sites=3) if len(spec.core_shapes) == 3 else None
    wide = wide or type(spec).for_shape(128, 192, 24)
    x = torch.randn(400, 192, generator=torch.Generator().manual_seed(0))
    variance = [TensorNetworkLinear.from_spec(wide, seed=seed)(x).var().item() for seed in range(12)]
    assert 0.9 < sum(variance) / len(variance) < 1.1
    assert min(variance) > 0.5 and max(variance) < 2
    again = TensorNetworkLinear.from_spec(wide, seed=3)
    assert again(x).var().item() == pytest.approx(variance[3], rel=1e-6)
    spreads = [core.std().item() for core in again.cores]
    assert max(spreads) < 1.2 * min(spreads)


def test_a_network_native_layer_trains():
    spec = NETWORKS["mpo"].for_shape(8, 12, 4)
    target = TensorNetworkLinear.from_spec(spec, seed=1)
    student = TensorNetworkLinear.from_spec(spec, bias=True, seed=2)
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    y = target(x).detach()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (student(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * y.var().item()


@every_spec
def test_report_counts_what_is_there(linear, spec):
    layer = TensorNetworkLinear.from_linear(linear, spec).to(torch.bfloat16)
    stored = sum(core.numel() for core in layer.cores)
    report = layer.report(batch=7)
    assert report["parameters"] == stored == spec.parameters and report["dense_parameters"] == 24 * 36
    assert report["bytes"] == 2 * stored == report["memory_bytes"] and report["dense_bytes"] == 2 * 24 * 36
    assert report["kept"] == stored / (24 * 36)
    assert report["multiply_adds"] == spec.multiply_adds(7) and report["dense_multiply_adds"] == 7 * 24 * 36
    layer.runtime = "dense"
    report = layer.report(batch=7)
    assert report["memory_bytes"] == 2 * stored + 2 * 24 * 36 and report["multiply_adds"] == 7 * 24 * 36
    assert spec.describe() in repr(layer) == repr(layer) and report["runtime"] == "dense"


@pytest.mark.parametrize("network", ["lowrank", "mpo"])
def test_check_layer_measures_on_the_activations_given(linear, network):
    x = batch(6, 50) * torch.logspace(0, -2, 36)
    rows = check_layer(linear, x, [1, 4, 12, 10**6], network=network)
    assert [row["chi"] for row in rows] == [1, 4, 12, 10**6]
    for row in rows:
        spec = NETWORKS[network].for_shape(24, 36, row["chi"])
        assert row["parameters"] == spec.parameters
    flat = x.reshape(-1, 36).double()
    C = flat.T @ flat / len(flat)
    spec = NETWORKS[network].for_shape(24, 36, 4)
    W = linear.weight.detach().double()
    D = W - spec.dense(spec.decompose(W, Metric("functional", C=C))).double()
    assert rows[1]["weight_error"] == pytest.approx((D.norm() / W.norm()).item() ** 2, rel=1e-4)
    wanted = ((flat @ D.T).norm() / (flat @ W.T).norm()).item() ** 2
    assert rows[1]["functional_error"] == pytest.approx(wanted, rel=1e-4)
    for key in ("weight_error", "functional_error"):
        assert rows[-1][key] < 1e-9
    assert rows[0]["functional_error"] > rows[1]["functional_error"] > rows[2]["functional_error"]
    plain = check_layer(linear, x, [4], network=network, metric="weight")[0]
    assert plain["weight_error"] < rows[1]["weight_error"]
    assert plain["functional_error"] > rows[1]["functional_error"]


def test_check_layer_takes_the_networks_options(linear):
    assert check_layer(linear, batch(9), [3], network="mpo", sites=3)[0]["parameters"] == (
        NETWORKS["mpo"].for_shape(24, 36, 3, sites=3).parameters
    )


def test_user_errors(linear):
    for arguments, said in (
        ({"x": batch(3), "network": "mps"}, "'mps'.*lowrank, mpo"),
        ({"x": batch(3)[:, :30]}, "width 30, the layer takes 36"),
        ({"x": batch(3), "metric": "loss"}, "'loss'"),
    ):
        with pytest.raises(InputError, match=said):
            check_layer(linear, chis=[2], **arguments)
    with pytest.raises(InputError, match="'gpu'"):
        TensorNetworkLinear(SPECS["lowrank"], runtime="gpu")
    with pytest.raises(InputError, match=r"\(24, 36\)"):
        TensorNetworkLinear.from_linear(linear, NETWORKS["lowrank"].for_shape(36, 24, 2))


def test_made_on_meta_holds_no_memory():
    layer = TensorNetworkLinear(SPECS["mpo"], bias=True, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in layer.parameters())
    assert math.prod(layer(torch.empty(5, 36, device="meta", dtype=torch.bfloat16)).shape) == 5 * 24
