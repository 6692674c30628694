"""Claims: every check against a computation of its own, on small random checkpoints; results kept and found again."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.cli.tables.claims import table
from karipap_core.errors import InputError
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.tt_embedding import TtEmbedding
from karipap_core.quantization.rounding import quantize_rtn
from karipap_core.statistics.spearman import spearman_by_permutation
from karipap_core.studies.claims.catalogue import CLAIMS, named
from karipap_core.studies.claims.check import check, listing, result_file, results
from karipap_core.studies.claims.experiments import CHECKS
from karipap_core.studies.claims.experiments.bench import Bench, fitting, kept_chi, published_mpo, study_of
from karipap_core.studies.claims.experiments.disentanglers import angles, padded_mpo, product_spectrum
from karipap_core.studies.claims.experiments.registry import experiment
from karipap_core.studies.claims.experiments.tensorgpt import lookup, prime_factors
from tests.helpers.claims import harm, live, log_probabilities, module, truncated


def test_whitening_is_measured_as_a_computation_from_the_definitions_says(llama, text):
    folder, model, windows = llama
    document = check(folder, "whitening", text)
    names = [weight.name for weight in open_checkpoint(folder).weights if weight.compressible]
    dense = log_probabilities(model, windows.check)
    moments, handles = {}, []
    for name in names:

        def seen(module, arguments, name=name):
            x = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
            moments[name] = moments.get(name, 0) + (x.T @ x).numpy()

        handles.append(module(model, name).register_forward_pre_hook(seen))
    with torch.no_grad():
        model(input_ids=windows.moments)
    for handle in handles:
        handle.remove()
    for key, whitened in (("plain_60", False), ("white_60", True)):
        kept = {}
        for name in names:
            layer = module(model, name)
            W = layer.weight.detach().double().numpy()
            rank = int(0.6 * W.size / sum(W.shape))
            if whitened:
                C = moments[name] / windows.moments.numel()
                B = np.linalg.cholesky(C + 0.01 * np.trace(C) / len(C) * np.eye(len(C)))
                cut = truncated(W @ B, rank) @ np.linalg.inv(B)
            else:
                cut = truncated(W, rank)
            kept[name] = layer.weight.data
            layer.weight.data = torch.from_numpy(cut).float()
        kl, rise = harm(model, windows.check, dense)
        for name in names:
            module(model, name).weight.data = kept[name]
        row = document["figures"]["rows"][key]
        assert row["damage"] == pytest.approx(kl, rel=2e-3) and row["rise"] == pytest.approx(rise, rel=5e-3, abs=1e-5)
    before = math.exp(document["dense_loss"])
    assert f"perplexity {before:,.2f} →" in document["measured"]["plain_80"]
    wins = [
        k
        for k in (80, 60, 40)
        if document["figures"]["rows"][f"white_{k}"]["damage"] < document["figures"]["rows"][f"plain_{k}"]["damage"]
    ]
    assert document["figures"]["wins"] == wins and f"at {len(wins)} of 3 sizes" in document["verdict"]


def test_depth_holds_excess_and_damage_of_each_weight(llama, text):
    folder, model, windows = llama
    document = check(folder, "depth", text)
    dense = log_probabilities(model, windows.check)
    rows = document["figures"]["weights"]
    assert len(rows) == 14
    for row in rows[3], rows[9]:
        layer = module(model, row["name"])
        W = layer.weight.detach().double().numpy()
        p = np.linalg.svd(W, compute_uv=False) ** 2
        p /= p.sum()
        assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
        kept, layer.weight.data = layer.weight.data, torch.from_numpy(truncated(W, kept_chi(W.shape, 0.5))).float()
        kl, _ = harm(model, windows.check, dense)
        layer.weight.data = kept
        assert row["damage"] == pytest.approx(kl, rel=2e-3)
    by_layer = [sum(r["damage"] for r in rows if r["layer"] == layer) for layer in (0, 1)]
    assert document["figures"]["damage"] == pytest.approx(by_layer)
    assert document["measured"]["layers"] == "too few to say"
    assert document["measured"]["deepest"] == f"{by_layer[1] / by_layer[0]:.3g} times"


def test_sensitivity_cuts_layers_and_leaves_as_much_with_down_as_without(llama, text):
    folder, model, windows = llama
    document = check(folder, "sensitivity", text)
    figures = document["figures"]
    dense, kept = log_probabilities(model, windows.check), {}
    for weight in open_checkpoint(folder).weights:
        if weight.layer == 1:
            layer = module(model, weight.name)
            W = layer.weight.detach().double()
            kept[weight.name] = layer.weight.data
            layer.weight.data = published_mpo(W, 0.5 * W.numel(), lambda spec: spec.parameters).float()
    kl, _ = harm(model, windows.check, dense)
    for name, value in kept.items():
        module(model, name).weight.data = value
    assert figures["by_layer"]["0.5"][1]["damage"] == pytest.approx(kl, rel=2e-3)
    alike, without = figures["whole"].values()
    left = figures["by_role"]["down"]["parameters"]
    total = sum(row["parameters"] for row in figures["by_role"].values())
    assert without["parameters"] + left == total == alike["parameters"]
    assert without["kept"] * without["parameters"] + left == pytest.approx(0.7 * total)
    assert ("it pays" in document["measured"]["excluded"]) == (without["damage"] < alike["damage"])
    order = sorted(figures["by_role"], key=lambda role: -figures["by_role"][role]["per_million"])
    assert document["measured"]["down"].startswith(f"{order.index('down') + 1} of 7")


def test_a_published_mpo_is_three_sequential_svds():
    rng = np.random.default_rng(3)
    W = rng.standard_normal((12, 18))
    found = published_mpo(torch.from_numpy(W), 10**9, lambda spec: spec.parameters)
    np.testing.assert_allclose(found, W, atol=1e-12)  # at full χ
    limit = 0.4 * W.size
    spec = fitting(LowRank.for_shape(12, 18, 1), limit, lambda s: s.parameters)
    assert spec.parameters <= limit < spec.with_chi(spec.chi[0] + 1).parameters
    cut = published_mpo(torch.from_numpy(W), limit, lambda spec: spec.parameters)
    # Independently: digits paired site by site, unfolded and truncated from the left.
    mpo = fitting(Mpo.for_shape(12, 18, 1, sites=3), limit, lambda s: s.parameters)
    o, i, (a, b) = mpo.out, mpo.in_, mpo.chi
    T = W.reshape(*o, *i).transpose(0, 3, 1, 4, 2, 5)
    U, s, V = np.linalg.svd(T.reshape(o[0] * i[0], -1), full_matrices=False)
    rest = (s[:a, None] * V[:a]).reshape(a * o[1] * i[1], -1)
    U2, s2, V2 = np.linalg.svd(rest, full_matrices=False)
    back = (U[:, :a] @ ((U2[:, :b] * s2[:b]) @ V2[:b]).reshape(a, -1)).reshape(T.shape)
    np.testing.assert_allclose(cut, back.transpose(0, 2, 4, 1, 3, 5).reshape(12, 18), atol=1e-10)


def test_bytes_are_equal_and_integers_are_those_of_quantize(llama, text):
    folder, model, windows = llama
    document = check(folder, "bytes", text)
    rows = document["figures"]["rows"]
    for like, names in (
        ("int8", ("mpo_half", "svd_half", "mpo_two_half")),
        ("int4", ("mpo_quarter", "svd_quarter", "mpo_int8_quarter")),
    ):
        for name in names:
            assert 0.8 * rows[like]["bytes_kept"] < rows[name]["bytes_kept"] <= rows[like]["bytes_kept"] + 1e-9, name
    dense, kept, size, numbers = log_probabilities(model, windows.check), {}, 0, 0
    for weight in open_checkpoint(folder).weights:
        if weight.compressible:
            layer = module(model, weight.name)
            quantized = quantize_rtn(layer.weight.detach(), 8, None)
            size, numbers = size + quantized.bytes, numbers + weight.parameters
            kept[weight.name], layer.weight.data = layer.weight.data, quantized.dense()
    kl, _ = harm(model, windows.check, dense)
    for name, value in kept.items():
        module(model, name).weight.data = value
    assert rows["int8"]["damage"] == pytest.approx(kl, rel=2e-2)
    assert rows["int8"]["bytes_kept"] == pytest.approx(size / (2 * numbers))


def test_the_embedding_is_a_product_of_small_vectors_token_by_token(llama, text):
    folder, model, windows = llama
    document = check(folder, "embedding", text)
    table_ = model.get_input_embeddings().weight.detach().double().numpy()
    product = np.empty_like(table_)
    for token, vector in enumerate(table_):  # sequential SVDs of rank 1: 48 = 3·2·2·2·2
        rest, sides = vector.reshape(1, -1), []
        for leg in (3, 2, 2, 2):
            U, s, V = np.linalg.svd(rest.reshape(leg, -1), full_matrices=False)
            sides.append(U[:, 0])
            rest = s[0] * V[:1]
        made_ = rest.ravel()
        for side in reversed(sides):
            made_ = np.kron(side, made_)
        product[token] = made_
    rank1 = next(row for row in document["figures"]["rows"] if row["method"] == "token" and row["rank"] == 1)
    assert rank1["smaller"] == pytest.approx(48 / 11)
    mine = ((table_ - product) ** 2).sum() / (table_**2).sum()
    assert 0.9 * mine < rank1["error"] <= mine  # the fit starts from these and goes on
    spec = TtEmbedding.for_shape(*table_.shape, 1, in_=(3, 2, 2, 2, 2), form="token")
    found = spec.dense([core.double() for core in spec.decompose(torch.from_numpy(table_))])
    assert rank1["error"] == pytest.approx(((table_ - found.numpy()) ** 2).sum() / (table_**2).sum())
    dense = log_probabilities(model, windows.check)
    with lookup(model, found):
        kl, rise = harm(model, windows.check, dense)
    assert rank1["damage"] == pytest.approx(kl, rel=2e-3) and rank1["rise"] == pytest.approx(rise, rel=5e-3, abs=1e-5)
    svd = next(row for row in document["figures"]["rows"] if row["method"] == "svd" and row["rank"] == 1)
    chi = svd["bytes"] // 2 // sum(table_.shape)
    tail = np.linalg.svd(table_, compute_uv=False)[chi:]
    assert svd["bytes"] <= rank1["bytes"] and svd["error"] == pytest.approx((tail**2).sum() / (table_**2).sum())
    with lookup(model, torch.zeros(table_.shape)):
        assert model.get_input_embeddings().weight.abs().sum() == 0
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().double(), table_)


def test_a_tied_head_stays_dense_while_the_look_up_changes(made, text):
    folder = made("llama")
    model = live(folder)
    head = model.get_output_embeddings().weight
    with lookup(model, torch.zeros(head.shape)):
        assert model.get_output_embeddings().weight is head and head.abs().sum() > 0
    assert model.get_input_embeddings().weight is head
    assert "left dense" in check(folder, "embedding", text)["notes"][0]


def test_prime_factors_and_what_they_cost():
    assert prime_factors(768) == (3, 2, 2, 2, 2, 2, 2, 2, 2)
    assert prime_factors(7) == (7, 1) and prime_factors(1) == (1, 1)
    assert all(math.prod(prime_factors(n)) == n for n in range(1, 200))


def test_the_published_counts_of_the_disentanglers_come_from_the_sizes():
    counts = [padded_mpo(576, 192, chi)[0].parameters for chi in (1, 2, 5, 10, 50, 256)]
    assert counts == [36, 132, 696, 2356, 36948, 401956]
    assert padded_mpo(576, 192, 1)[1] == (1024, 256) and angles(1024) + angles(256) == 556416
    for shape in ((1, 5), (7, 1), (24, 24), (13, 64)):
        spec, padded = padded_mpo(*shape, 3)
        assert (spec.n_out, spec.n_in) == padded and all(
            n <= p < 2 * max(n, 2) for n, p in zip(shape, padded, strict=True)
        )


def test_a_product_spectrum_is_found_again_and_none_fits_better():
    exact = np.sort(np.kron(np.kron([3.0, 1.2], [1, 0.4]), [1, 0.9]))[::-1]
    np.testing.assert_allclose(product_spectrum(exact), exact, rtol=2e-3)
    for sigma in (np.array([4.0, 2.5, 1.0, 0.2]), np.array([1.0, 1.0, 1.0, 0.0]), np.array([5.0, 0.1, 0.1])):
        best = product_spectrum(sigma)
        target = np.pad(sigma, (0, 4 - len(sigma)))
        grid = np.linspace(0, 1, 201)
        a, b = np.meshgrid(grid, grid)
        spectra = -np.sort(-np.stack([np.ones_like(a), a, b, a * b], -1), axis=-1)
        overlap = (spectra @ target) / np.linalg.norm(spectra, axis=-1)
        assert best @ target / np.linalg.norm(best) >= overlap.max() * (1 - 1e-4)
        assert best @ target == pytest.approx(best @ best)  # the scale is the best for its form


def test_disentanglers_count_circuits_and_measure_one_weight(llama, text):
    folder, model, windows = llama
    document = check(folder, "disentanglers", text)
    figures = document["figures"]
    layer = module(model, figures["weight"])
    W = layer.weight.detach().double().numpy()
    assert figures["padded"] == [64, 64] and figures["circuits"] == 2 * 64 * 63 // 2
    assert figures["rows"]["with"]["parameters"] == figures["circuits"] + 6 * 4
    U, s, V = np.linalg.svd(W)
    wide = product_spectrum(s)[: len(s)]
    assert figures["rows"]["with"]["error"] == pytest.approx(((s - wide) ** 2).sum() / (s**2).sum())
    kept, layer.weight.data = layer.weight.data, torch.from_numpy((U * wide) @ V).float()
    dense = log_probabilities(model := live(folder), windows.check)
    module(model, figures["weight"]).weight.data = layer.weight.data
    kl, _ = harm(model, windows.check, dense)
    layer.weight.data = kept
    assert figures["rows"]["with"]["damage"] == pytest.approx(kl, rel=5e-3, abs=1e-7)
    assert figures["rows"]["with"]["error"] < figures["rows"]["without"]["error"]
    for key in ("local", "local_mpo", "local_svd"):
        assert figures["rows"][key]["parameters"] <= W.size / 2
    published = {row.key: row.value for row in CLAIMS["disentanglers"].published}
    assert document["measured"]["chi1"] == published["chi1"] and "to the last digit" in document["verdict"]


def test_structure_tells_trained_from_fresh(made, text, tmp_path):
    folder = made("llama_untied")
    document = check(folder, "structure", text)  # Gaussian weights: nothing was trained
    assert document["verdict"].startswith("Not seen here")
    assert abs(document["figures"]["mean"]["trained_excess"]) < 0.05
    again = check(folder, "structure", text)
    assert again["figures"]["rows"] == document["figures"]["rows"]  # the seed is fixed
    row = document["figures"]["rows"][0]
    assert row["trained_excess"] != row["twin_excess"]
    structured = tmp_path / "structured"
    model = live(folder)
    for weight in open_checkpoint(folder).weights:
        if weight.compressible:
            layer = module(model, weight.name)
            layer.weight.data = torch.from_numpy(truncated(layer.weight.detach().double().numpy(), 3)).float()
    model.save_pretrained(structured)
    from tests.helpers.architectures import write_tokenizer

    write_tokenizer(structured)
    document = check(structured, "structure", text)
    assert document["verdict"].startswith("Seen here") and document["figures"]["above"]["trained"] == 14
    for row in document["figures"]["rows"]:
        assert row["trained_error"] < 1e-6 < row["twin_error"]


def test_the_headline_cuts_one_attention_to_thirty_percent(llama, text):
    folder, model, windows = llama
    document = check(folder, "headline", text)
    rows, names = document["figures"]["rows"], document["figures"]["weights"]
    assert set(rows) == {"accuracy", "mpo", "svd", "whitened"}
    assert all(".1.self_attn." in name for name in names) and len(names) == 4
    errors = []
    for name in names:
        W = module(model, name).weight.detach().double().numpy()
        s = np.linalg.svd(W, compute_uv=False)
        errors.append((s[kept_chi(W.shape, 0.3) :] ** 2).sum() / (s**2).sum())
    assert rows["svd"]["error"] == pytest.approx(np.mean(errors), rel=1e-4)
    best = min(rows.values(), key=lambda row: row["damage"])
    assert f"comes from: {best['label']}" in document["verdict"]


# ---- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.usefixtures("quick_fits")
def test_every_figure_that_is_shown_has_a_place_and_is_json(claim, made, text):
    folder = made("gpt2")  # fused qkv, Conv1D, fc1 and fc2, tied head
    document = check(folder, claim, text)
    json.dumps(document, allow_nan=False)
    keys = {row.key for row in CLAIMS[claim].published}
    assert keys & set(document["measured"]) and document["verdict"].endswith(".")
    assert document["tokens"] == (6144 if claim == "tree" else 2048)  # on as much text as a plan
    assert document["model"]["name"] == folder.name and document["measure"] == "kl"
    columns = document["table"]["columns"]
    assert len(set(columns)) == len(columns)  # the page draws no table with two of a name
    assert all(len(row) == len(columns) for row in document["table"]["rows"])
    for chart in document["charts"]:
        assert chart["series"] and all(len(series["x"]) == len(series["y"]) for series in chart["series"])
    assert results(open_checkpoint(folder).key)[claim] == json.loads(json.dumps(document))
    assert CLAIMS[claim].title in table(document) and document["verdict"] in table(document)


@pytest.mark.parametrize("claim", [name for name in CLAIMS if name not in ("bytes", "headline")])
@pytest.mark.usefixtures("quick_fits")
def test_an_encoder_is_measured_by_its_output(claim, made, text):
    document = check(made("bert"), claim, text)
    assert document["measure"] == "output error" and document["dense_loss"] is None
    assert any("An encoder has no next-token loss" in note for note in document["notes"])
    assert not any("perplexity" in words for words in document["measured"].values())
    json.dumps(document, allow_nan=False)


def test_nothing_is_left_changed_in_the_model(made, text):
    study = study_of(made("llama_untied"), text)
    bench = Bench(study, lambda *args, **more: None)
    before = {name: site.get().clone() for name, site in bench.probe.sites.items()}
    for name in ("structure", "sensitivity", "embedding"):
        CHECKS[name](study, lambda *args, **more: None)
    assert all(torch.equal(before[name], site.get()) for name, site in bench.probe.sites.items())
    assert bench.measure()["damage"] == 0


def test_published_figures_have_sources_and_checks_their_claims():
    assert set(CHECKS) == set(CLAIMS)
    for claim in CLAIMS.values():
        keys = [row.key for row in claim.published]
        assert len(keys) == len(set(keys))
        for row in claim.published:
            assert row.what and bool(row.value) == bool(row.source), (claim.name, row.key)
        assert claim.address.startswith("https://") and bool(claim.link) != claim.origin.startswith("arXiv:")
        assert claim.headline and claim.allows and claim.check


def test_spearman_is_scipys():
    rng = np.random.default_rng(1)
    for n in (3, 5, 7, 30):
        a, b = rng.integers(0, 6, n).astype(float), rng.standard_normal(n)
        b[0] = b[-1]
        if np.ptp(a) == 0:
            continue
        rho, p = spearman_by_permutation(a, b)
        assert rho == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
        assert 0 < p <= 1
    assert spearman_by_permutation([1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7, 9]) == pytest.approx(
        (1.0, 2 / math.factorial(7))
    )
    assert spearman_by_permutation([1, 2], [1, 2]) == (None, None) and spearman_by_permutation(
        [1, 1, 1], [1, 2, 3]
    ) == (None, None)


def test_bad_input_is_told_in_a_sentence(made, tmp_path, text):
    with pytest.raises(InputError, match="Claim 'nonsense' is not one of depth"):
        check(made("llama_untied"), "nonsense")
    with pytest.raises(InputError, match="not one of"):
        named("../secrets")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.safetensors").symlink_to(made("llama_untied") / "model.safetensors")
    with pytest.raises(InputError, match="has no config.json"):
        check(bare, "structure", text)


def test_a_damaged_result_counts_as_not_there(workspace_folder):
    key = f"{'ab' * 16}-{'cd' * 8}"
    for content in ("{", "[]", '{"format": "karipap-claim", "version": 99}', '{"format": "other"}'):
        file = result_file(key, "depth")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        assert results(key) == {}
    assert file.is_relative_to(workspace_folder)


def test_the_verb_lists_claims_and_checks_one(made, text, capsys):
    folder = str(made("llama_untied"))
    assert cli.main(["claims", folder, "--json", "--progress", "off"]) == 0
    assert json.loads(capsys.readouterr().out) == listing()
    argv = ["claims", folder, "--claim", "structure", "--text", str(text), "--progress", "off"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "published (arXiv:1810.01075)" in out and "measured here (llama_untied)" in out
    assert cli.main(["claims", folder, "--claim", "nothing"]) == 2
    assert "error: Claim 'nothing' is not one of" in capsys.readouterr().err


def test_a_claim_has_one_experiment(monkeypatch):
    """A function registers itself under the claim that it is of, and a second one for the same claim is refused."""

    def measured(study, progress) -> dict:
        return {}

    with pytest.raises(ValueError, match="two experiments: depth and measured"):
        experiment("depth")(measured)
    monkeypatch.delitem(CHECKS, "depth")
    assert experiment("depth")(measured) is measured and CHECKS["depth"] is measured
