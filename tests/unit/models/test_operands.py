"""Parameters that a model multiplies by itself, and convolutions whose windows do not overlap, as linear layers: the
same numbers come out as torch itself gives, and what the layers were given is what a product was formed with."""

import pytest
import torch
from torch import nn

from karipap_core.checkpoint.layouts import Layout, operand
from karipap_core.models.operands import HeadsOperand, Patches, is_patches, stand_in

WHOLE = {
    "linear": ((24, 8), False, lambda x, w: nn.functional.linear(x, w.float()), (3, 5, 8)),
    "matmul": ((8, 24), True, lambda x, w: (x @ w).transpose(0, 1), (3, 5, 8)),
    "einsum (in, out)": ((8, 4, 6), True, lambda x, w: torch.einsum("ibh,hnd->ibnd", x, w), (3, 5, 8)),
    "einsum, letters turned": ((8, 4, 6), True, lambda x, w: torch.einsum("hib,hnd->nbid", x, w), (8, 3, 5)),
    "einsum (out, in)": ((8, 4, 6), False, lambda x, w: torch.einsum("ibnd,hnd->ibh", x, w), (3, 5, 4, 6)),
}


class Holder(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.held = nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize("name", WHOLE)
def test_a_product_with_a_parameter_goes_through_its_matrix(name):
    torch.manual_seed(0)
    shape, transposed, product, given = WHOLE[name]
    holder, x = Holder(*shape), torch.randn(given)
    wanted, seen = product(x, holder.held), []
    stand_in(holder, "held", Layout((0, 0), None, transposed))
    holder.held.matrix.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    torch.testing.assert_close(product(x, holder.held), wanted)
    ((rows, outputs),) = seen
    torch.testing.assert_close(rows @ holder.held.matrix.weight.T, outputs)
    assert rows.numel() == x.numel() and outputs.numel() == wanted.numel()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_with_a_matrix_for_each_head(transposed):
    torch.manual_seed(0)
    holder = Holder(3, 6, 4)
    x = torch.randn(3, 7, 6) if transposed else torch.randn(3, 2, 4, 7)
    bias = torch.randn(3, 1, 4)

    def product():
        return torch.baddbmm(bias, x, holder.held) if transposed else holder.held[:, None] @ x

    wanted, seen = product(), []
    stand_in(holder, "held", Layout((0, 0), 3, transposed))
    for matrix in holder.held.children():
        matrix.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(product(), wanted)
    assert len(seen) == 3


def test_what_is_no_known_product_is_formed_from_the_matrix():
    torch.manual_seed(0)
    holder = Holder(8, 4, 6)
    wanted = torch.nn.functional.normalize(holder.held, dim=1), torch.einsum("hnd,hnd->n", holder.held, holder.held)
    stand_in(holder, "held", Layout((0, 0), None, True))
    torch.testing.assert_close(torch.nn.functional.normalize(holder.held, dim=1), wanted[0])
    torch.testing.assert_close(torch.einsum("hnd,hnd->n", holder.held, holder.held), wanted[1])


@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_attention_is_three_matrices(batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    nn.init.normal_(attention.in_proj_bias)
    query, keys = torch.randn(2, 2, 12), torch.randn(2, 2, 12)
    wanted = attention(query, keys, keys)[0], attention(query, query, query)[0]
    layout = operand("head.attention.in_proj_weight", tuple(attention.in_proj_weight.shape))
    stand_in(attention, "in_proj_weight", layout)
    assert isinstance(attention.in_proj_weight, HeadsOperand) and layout == Layout((12, 12), 3)
    torch.testing.assert_close(attention(query, keys, keys)[0], wanted[0])
    torch.testing.assert_close(attention(query, query, query)[0], wanted[1])
    with torch.no_grad():  # where torch would take a way of its own
        torch.testing.assert_close(attention.eval()(query, query, query)[0], wanted[1])


@pytest.mark.parametrize(
    ("convolution", "sizes"),
    [
        (nn.Conv1d(4, 6, 1), (9,)),
        (nn.Conv2d(4, 6, (2, 3), (2, 3), bias=False), (5, 7)),
        (nn.Conv3d(4, 6, (1, 2, 2), (1, 2, 2)), (3, 4, 5)),
    ],
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_windows_that_do_not_overlap_are_a_linear_map(convolution, sizes, batch):
    torch.manual_seed(0)
    x = torch.randn(*batch, 4, *sizes)
    assert is_patches(convolution)
    torch.testing.assert_close(Patches(convolution)(x), convolution(x))
    torch.testing.assert_close(Patches(convolution).weight, convolution.weight)


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 1},
        {"groups": 2},
        {"padding": 1},
        {"dilation": 2},
        {"stride": 3},
        {"padding_mode": "circular", "padding": 1},
    ],
)
def test_other_convolutions_are_none(other):
    assert not is_patches(nn.Conv2d(4, 6, 2, **({"stride": 2} | other)))
