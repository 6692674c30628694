"""Claims on entropies, sums of errors and sampled rows, each against NumPy or a case whose answer is known."""

import math

import numpy as np
import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.errors import InputError
from karipap_core.statistics.spearman import spearman_by_permutation
from karipap_core.studies.claims.check import check
from karipap_core.studies.claims.experiments import density, production, sampling
from karipap_core.studies.claims.experiments.bench import kept_chi, study_of
from tests.helpers.claims import harm, live, log_probabilities, module, truncated

# ---- density ------------------------------------------------------------------------------------------------------


def density_of(folder) -> float:
    """The mean of S / ln rank over the compressible weights, by their parameters, from NumPy's singular values."""
    model, found, sizes = live(folder), [], []
    for weight in open_checkpoint(folder).weights:
        if weight.compressible:
            s = np.linalg.svd(module(model, weight.name).weight.detach().double().numpy(), compute_uv=False)
            p = s**2 / (s**2).sum()
            found.append(-(p * np.log(p)).sum() / math.log(len(s)))
            sizes.append(weight.parameters)
    return float(np.average(found, weights=sizes))


def test_density_of_every_model_is_that_of_numpy_and_no_model_counts_twice(made, text):
    folder, others = made("llama_untied"), [made("llama"), made("mistral")]
    document = check(folder, "density", text, beside=[*map(str, others), str(folder)])
    models = document["figures"]["models"]
    assert [model["name"] for model in models] == ["llama_untied", "llama", "mistral"]
    for model, place in zip(models, [folder, *others], strict=True):
        assert model["density"] == pytest.approx(density_of(place), abs=1e-6)
        assert model["parameters"] == open_checkpoint(place).parameters
    assert document["figures"]["family"] == "llama" and document["measured"]["needed"] == "5; 2 of llama at hand"
    assert document["verdict"].startswith("Nothing can be said from 2 models of a family (llama: ")


def test_five_sizes_are_needed_because_four_in_order_come_by_chance_too_often():
    assert density.fewest() == 5
    chances = {n: spearman_by_permutation(range(n), range(n, 0, -1))[1] for n in (4, 5)}
    assert chances[4] > density.SURE >= chances[5] == pytest.approx(2 / math.factorial(5))


@pytest.mark.parametrize(
    ("densities", "says"),
    [
        ([0.95, 0.94, 0.93, 0.92], "Nothing can be said from 4 models of a family (x: 0.950 (1 M)"),
        ([0.95, 0.94, 0.93, 0.92, 0.91], "Seen here: larger models have lower density (ρ = -1.00"),
        ([0.91, 0.92, 0.93, 0.94, 0.95], "The opposite: larger models have more (ρ = +1.00"),
        ([0.91, 0.95, 0.92, 0.94, 0.93], "Density does not go with size here"),
        ([0.9] * 5, "The 5 models of x do not differ enough"),
    ],
)
def test_what_is_said_of_sizes_follows_from_their_order(densities, says):
    members = [{"parameters": 1e6 * 10**k, "density": value} for k, value in enumerate(densities)]
    pair = spearman_by_permutation([m["parameters"] for m in members], densities)
    assert density.verdict("x", members, pair).startswith(says)


def test_other_models_go_with_claims_about_several_alone(made, text, capsys):
    folder = made("llama_untied")
    with pytest.raises(InputError, match="'structure' is about one model; others can be given beside it for: density"):
        check(folder, "structure", text, beside=[str(made("llama"))])
    with pytest.raises(InputError, match="nowhere"):
        check(folder, "density", text, beside=["nowhere"])
    argv = ["claims", str(folder), "--claim", "density", "--text", str(text), "--progress", "off", "--beside"]
    assert cli.main([*argv, str(made("llama"))]) == 0
    assert "5; 2 of llama at hand" in capsys.readouterr().out


# ---- sums ---------------------------------------------------------------------------------------------------------


def test_two_errors_that_cancel_have_a_sum_of_nothing():
    e = torch.tensor([1.0, -2.0, 0.5])
    found = production.together(torch.stack([e, -e]), torch.zeros(3))
    assert found["aligned"] == 0 and found["linear"] is None
    assert found["cosines"] == pytest.approx(np.array([[1, -1], [-1, 1]]))
    assert production.opposite(found["cosines"]) == (0, 1, pytest.approx(-1))
    same = production.together(torch.stack([e, e, e]), 3 * e)
    assert same["aligned"] == pytest.approx(3) and same["linear"] == pytest.approx(1)
    apart = production.together(torch.eye(4), torch.ones(4) * 2)
    assert apart["aligned"] == pytest.approx(1) and apart["linear"] == pytest.approx(4)
    assert apart["with_others"] == pytest.approx([0] * 4)


def test_cosines_are_numpys():
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((5, 40))
    found = production.together(torch.from_numpy(parts), torch.from_numpy(parts.sum(0)))
    unit = parts / np.linalg.norm(parts, axis=1, keepdims=True)
    np.testing.assert_allclose(found["cosines"], unit @ unit.T, atol=1e-12)
    for k in range(5):
        rest = parts.sum(0) - parts[k]
        assert found["with_others"][k] == pytest.approx(unit[k] @ rest / np.linalg.norm(rest))
    assert found["aligned"] == pytest.approx((parts.sum(0) ** 2).sum() / (parts**2).sum())
    i, j, cosine = production.opposite(found["cosines"])
    below = np.where(np.triu(np.ones((5, 5)), 1) > 0, unit @ unit.T, np.inf)
    assert i < j and cosine == pytest.approx(below.min()) == pytest.approx(below[i, j])


def test_sums_are_measured_as_the_definitions_say(llama, text):
    folder, model, windows = llama
    document = check(folder, "sums", text)
    study = study_of(folder, text)
    dense, rows = log_probabilities(model, windows.check), document["figures"]["rows"]["0.4"]
    names = list(rows["by_weight"])
    assert len(names) == 14 and document["figures"]["layers"] == [0, 1]
    moments = {name: study.moments.metric(name, "functional") for name in names}

    def cut(name):
        layer = module(model, name)
        W, C = layer.weight.detach().double().numpy(), moments[name].damped("C", "cpu").numpy()
        B = np.linalg.cholesky(C)
        return layer, torch.from_numpy(truncated(W @ B, kept_chi(W.shape, 0.4)) @ np.linalg.inv(B)).float()

    def with_cut(chosen):
        kept = {}
        for name in chosen:
            layer, matrix = cut(name)
            kept[name], layer.weight.data = layer.weight.data, matrix
        with torch.no_grad():
            states = model(input_ids=windows.check, output_hidden_states=True).hidden_states[-1].double()
        found = harm(model, windows.check, dense)
        for name, value in kept.items():
            module(model, name).weight.data = value
        return *found, states.flatten().numpy()

    singles = {name: with_cut([name])[:2] for name in names}
    for name, (kl, _) in singles.items():
        assert rows["by_weight"][name] == pytest.approx(kl, rel=5e-3, abs=1e-8)
    assert rows["weights"] == pytest.approx(sum(kl for kl, _ in singles.values()), rel=2e-3)
    assert rows["rises"] == pytest.approx(sum(rise for _, rise in singles.values()), rel=5e-3, abs=1e-4)
    by_layer = [[name for name in names if f".{k}." in name] for k in (0, 1)]
    before = with_cut([])[-1]
    layers = [with_cut(of) for of in by_layer]
    assert rows["by_layer"] == pytest.approx([kl for kl, _, _ in layers], rel=2e-3)
    whole, _, states = with_cut(names)
    assert rows["whole"]["damage"] == pytest.approx(whole, rel=2e-3)
    changes = np.stack([found - before for _, _, found in layers])
    aligned = (changes.sum(0) ** 2).sum() / (changes**2).sum()
    assert rows["aligned"] == pytest.approx(aligned, rel=2e-3)
    assert rows["linear"] == pytest.approx(((states - before) ** 2).sum() / (changes.sum(0) ** 2).sum(), rel=2e-3)


@pytest.mark.parametrize(
    ("ratios", "aligned", "says", "way"),
    [
        ((1.0, 1.05), (1.0, 0.95), "Not seen here", "nearly independent"),
        ((1.8, 1.5), (2.0, 1.4), "Seen here", "strengthen one another ("),
        ((0.7, 1.0), (0.5, 0.6), "Seen at some sizes", "cancel in part"),
    ],
)
def test_what_is_said_of_sums_follows_from_them(ratios, aligned, says, way):
    rows = {
        kept: {"whole": {"damage": ratio}, "weights": 1.0, "by_layer": [0.5, 0.5], "aligned": each}
        for kept, ratio, each in zip(("0.7", "0.4"), ratios, aligned, strict=True)
    }
    words = production.verdict(rows)
    assert words.startswith(says) and way in words and f"{ratios[0]:.2f} times (kept 70 %)" in words


# ---- sampling -----------------------------------------------------------------------------------------------------


def test_rows_are_drawn_by_their_squared_lengths_and_stand_for_the_gram_matrix():
    rng = np.random.default_rng(2)
    A = torch.from_numpy(rng.standard_normal((7, 5)) * np.array([3.0, 1, 1, 0.5, 2, 0, 1])[:, None])
    lengths, count = sampling.Lengths.of(A), 20_000
    squares = (A.numpy() ** 2).sum(1)
    np.testing.assert_allclose(lengths.chances, squares / squares.sum())
    S = sampling.drawn_rows(A, lengths, count, torch.Generator().manual_seed(0)).numpy()
    # Every drawn row is a row over √(count · its chance), so that one draw of each, weighed by its chance, is AᵀA.
    scaled = A.numpy() / np.sqrt(np.where(squares > 0, squares / squares.sum(), 1))[:, None]
    exact = sum(p * np.outer(row, row) for p, row in zip(squares / squares.sum(), scaled, strict=True))
    np.testing.assert_allclose(exact, A.numpy().T @ A.numpy(), atol=1e-12)
    nearest = np.linalg.norm(S[:, None] * np.sqrt(count) - scaled[None], axis=2)
    assert nearest.min(1).max() < 1e-9
    often = np.bincount(nearest.argmin(1), minlength=7) / count
    spread = np.sqrt(squares / squares.sum() * (1 - squares / squares.sum()) / count)
    assert (np.abs(often - squares / squares.sum()) <= 5 * spread + 1e-15).all()


def test_a_matrix_of_low_rank_is_found_from_few_rows():
    rng = np.random.default_rng(3)
    A = torch.from_numpy(rng.standard_normal((300, 4)) @ rng.standard_normal((4, 80)))
    V = sampling.sampled_basis(A, sampling.Lengths.of(A), 4, 20, torch.Generator().manual_seed(0))
    np.testing.assert_allclose((V.T @ V).numpy(), np.eye(4), atol=1e-10)
    assert sampling.left_out(A, V) < 1e-16 * float(A.square().sum())
    whole = sampling.sampled_basis(A, sampling.Lengths.of(A), 4, 100, torch.Generator().manual_seed(0))  # all columns
    assert sampling.left_out(A, whole) < 1e-16 * float(A.square().sum())


def test_errors_are_over_the_truncated_svds_and_fall_with_rows():
    rng = np.random.default_rng(4)
    W = rng.standard_normal((60, 40)) * np.arange(1, 41) ** -0.5
    found = sampling.compared(torch.from_numpy(W), 8)
    tail = (np.linalg.svd(W, compute_uv=False)[8:] ** 2).sum()
    assert found["best_share"] == pytest.approx(tail / (W**2).sum())
    errors = [error for _, error in found["curve"]]
    assert min(errors) >= 1 - 1e-9 and errors[-1] < errors[0] == found["error_chi"]
    assert found["reached"] == (errors[-1] <= sampling.CLOSE) and found["drawn"] == 8 * 2 ** (len(errors) - 1)
    A, V = (
        W,
        sampling.sampled_basis(
            torch.from_numpy(W), sampling.Lengths.of(torch.from_numpy(W)), 8, 8, torch.Generator().manual_seed(0)
        ).numpy(),
    )
    assert sampling.left_out(torch.from_numpy(A), torch.from_numpy(V)) == pytest.approx(((A - A @ V @ V.T) ** 2).sum())
    assert 1 - 1e-9 <= found["randomized_error"] < errors[0]


def row(**more) -> dict:
    times = {f"{way}_{clock}": 1.0 for way in ("sampled", "exact", "randomized") for clock in ("wall", "cpu")}
    return times | {"drawn": 10, "longer": 100, "reached": True, "randomized_error": 1.01, "best_share": 0.25} | more


@pytest.mark.parametrize(
    ("case", "won"),
    [
        ({"sampled_wall": 0.5, "sampled_cpu": 0.5}, True),
        ({"sampled_wall": 0.5}, False),  # by one clock alone
        ({"sampled_wall": 0.5, "sampled_cpu": 0.5, "drawn": 100}, False),  # as many rows as there are
        ({"sampled_wall": 0.5, "sampled_cpu": 0.5, "reached": False}, False),
        ({"sampled_wall": 0.5, "sampled_cpu": 0.5, "randomized_wall": 0.4}, False),
        ({"sampled_wall": 0.5, "sampled_cpu": 0.5, "randomized_wall": 0.4, "randomized_error": 2.0}, True),
    ],
)
def test_sampling_wins_only_where_it_is_close_and_quickest(case, won):
    assert sampling.wins(row(**case)) is won
    says = sampling.verdict([row(**case), row()])
    assert says.startswith("It pays for 1 of 2 weights" if won else "It does not pay") and "leaves 25 % of ‖W‖²" in says
