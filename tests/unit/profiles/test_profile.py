"""Profiles of small checkpoints made here, against NumPy; what is written comes back; a killed one goes on."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import Cancelled, InputError
from karipap_core.networks import NETWORKS
from karipap_core.profiles import build as profile_module
from karipap_core.profiles.build import build_profile, unfold
from karipap_core.profiles.document import ROWS_SHOWN, Profile, profile_key, profile_settings
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.null import null_entropy
from karipap_core.spectra.spectrum import entropy
from karipap_core.text import Text
from karipap_core.workspace.kept import keep_json

HIDDEN, WIDE, VOCABULARY = 12, 20, 30
SHAPES = {"self_attn.q_proj": (12, 12), "self_attn.v_proj": (6, 12), "mlp.up_proj": (20, 12), "mlp.down_proj": (12, 20)}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(3)
    made = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    made |= {f"model.layers.{k}.{name}.weight": shape for k in range(2) for name, shape in SHAPES.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in made.items()}


@pytest.fixture
def checkpoint(tensors, tmp_path):
    return write(tensors, tmp_path / "tiny")


def write(tensors, folder, **config):
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | config
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


@dataclass(frozen=True)
class Calibration:
    tokens: int = 100
    damping: float = 0.01


class SomeMoments:
    """Random second moments, the same for a size."""

    text = Text("some text", ("abc",))
    settings = Calibration()

    def second_moment(self, size):
        samples = np.random.default_rng(size).standard_normal((3 * size, size)) * np.linspace(0.1, 3, size)
        return torch.from_numpy(samples.T @ samples / len(samples))

    def metric(self, name, which):
        n_out, n_in = SHAPES[name.split(".", 3)[3]]
        C, G = self.second_moment(n_in), self.second_moment(n_out)
        return Metric(which, C=C, G=G if which == "loss" else None, damping=self.settings.damping)


def damped_root(moment, damping):
    """Symmetric square root, another one than the Cholesky factor of the core: spectra do not see the difference."""
    values, vectors = np.linalg.eigh(moment.numpy() + damping * np.mean(np.diag(moment)) * np.eye(len(moment)))
    return (vectors * np.sqrt(values)) @ vectors.T


def test_every_weight_with_its_numbers(checkpoint, tensors):
    profile = build_profile(checkpoint, device="cpu")
    assert [row["name"] for row in profile.weights] == [weight.name for weight in checkpoint.weights]
    assert len(profile.weights) == 1 + 2 * len(SHAPES)
    for row in profile.weights:
        matrix = tensors[row["name"] + ".weight"].astype(np.float64)
        sigma = np.linalg.svd(matrix, compute_uv=False)
        assert profile.sigma(row["name"]) == pytest.approx(sigma, rel=1e-12)
        p = sigma**2 / (sigma**2).sum()
        numbers = row["spectra"]["weight"]
        assert numbers["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-10)
        assert numbers["renyi2"] == pytest.approx(-np.log((p**2).sum()), rel=1e-10)
        assert numbers["effective_rank"] == pytest.approx(math.exp(numbers["entropy"]))
        assert numbers["normalized_entropy"] == pytest.approx(numbers["entropy"] / math.log(min(matrix.shape)))
        assert numbers["excess"] == pytest.approx(null_entropy(*matrix.shape) - numbers["entropy"])
        assert numbers["rank"] == np.linalg.matrix_rank(matrix) == min(matrix.shape)
        assert numbers["total"] == pytest.approx((matrix**2).sum())
        assert row["shape"] == list(matrix.shape) and row["parameters"] == matrix.size and row["bonds"] == []
    row = profile.weight("model.layers.1.mlp.down_proj")
    assert (row["layer"], row["role"], row["expert"]) == (1, "down", None)
    assert row["dtype"] == "float32" and row["compressible"] is True
    document = json.loads(json.dumps(profile.to_json()))
    assert document["model"] == "tiny" and document["fingerprint"] == checkpoint.fingerprint
    assert document["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert [entry["name"] for entry in document["skipped"]] == ["model.norm.weight"]


def test_transposed_storage_is_turned_once(tmp_path):
    stored = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)
    checkpoint = write({"transformer.h.0.attn.c_attn.weight": stored}, tmp_path / "gpt", model_type="gpt2")
    row = build_profile(checkpoint, device="cpu").weights[0]
    assert row["shape"] == [24, 8] and row["role"] == "qkv"


def test_metrics_of_activations(checkpoint, tensors):
    moments = SomeMoments()
    profile = build_profile(checkpoint, ("loss", "weight", "functional"), moments=moments, device="cpu")
    assert profile.settings["metrics"] == ["weight", "functional", "loss"]
    assert profile.settings["sha256"] == moments.text.sha256 and profile.settings["damping"] == 0.01
    for row in profile.weights:
        if row["role"] == "embed":
            assert list(row["spectra"]) == ["weight"] and "activations" in row["notes"][0]
            continue
        W = tensors[row["name"] + ".weight"].astype(np.float64)
        A, B = (damped_root(moments.second_moment(size), 0.01) for size in W.shape)
        for metric, whitened in (("functional", W @ B), ("loss", A @ W @ B)):
            expected = np.linalg.svd(whitened, compute_uv=False)
            assert profile.sigma(row["name"], metric) == pytest.approx(expected, rel=1e-9)
        assert row["spectra"]["loss"]["damping"] == {"C": 0.01, "G": 0.01} and row["notes"] == []
    with pytest.raises(InputError, match="embed_tokens has no spectrum 'loss'.*activations"):
        profile.sigma("model.embed_tokens", "loss")


def test_a_weight_that_the_text_never_reaches_says_so(checkpoint):
    class Unreached(SomeMoments):
        def second_moment(self, size):
            return super().second_moment(size) * (size != 20)

    profile = build_profile(checkpoint, ("loss",), moments=Unreached(), device="cpu")
    row = profile.weight("model.layers.0.mlp.down_proj")  # its inputs have size 20
    assert row["spectra"]["loss"]["damping"] == {"C": None, "G": 0.01}
    assert "no inputs" in row["notes"][0] and math.isfinite(row["spectra"]["loss"]["entropy"])


def test_errors_of_the_user(checkpoint, tensors, tmp_path):
    with pytest.raises(InputError, match="energy"):
        build_profile(checkpoint, ("weight", "energy"))
    with pytest.raises(InputError, match="none given"):
        build_profile(checkpoint, ())
    with pytest.raises(InputError, match="loss.*calibration text"):
        build_profile(checkpoint, ("weight", "loss"))
    with pytest.raises(InputError, match="'knot'"):
        build_profile(checkpoint, network="knot")
    with pytest.raises(InputError, match="model.layers.7 is not a weight of tiny"):
        build_profile(checkpoint, device="cpu").sigma("model.layers.7")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = math.nan
    with pytest.raises(InputError, match="model.layers.1.mlp.up_proj"):
        build_profile(write(tensors, tmp_path / "broken"), device="cpu")


# ---- bonds ----------------------------------------------------------------------------------------------------------


def test_unfold_groups_the_digits_of_both_sides():
    sites = [[2, 3], [3, 2], [2, 2]]
    W = torch.arange(12 * 12, dtype=torch.float64).reshape(12, 12)
    for bond in (1, 2):
        unfolded = unfold(W, sites, bond)
        for out_digits in np.ndindex(2, 3, 2):
            for in_digits in np.ndindex(3, 2, 2):
                pairs = [(o, i) for (o, i) in zip(out_digits, in_digits, strict=True)]
                left = right = 0
                for (o, i), (size_o, size_i) in zip(pairs[:bond], sites[:bond], strict=True):
                    left = (left * size_o + o) * size_i + i
                for (o, i), (size_o, size_i) in zip(pairs[bond:], sites[bond:], strict=True):
                    right = (right * size_o + o) * size_i + i
                place = np.ravel_multi_index(out_digits, (2, 3, 2)), np.ravel_multi_index(in_digits, (3, 2, 2))
                assert unfolded[left, right] == W[place]


needs_mpo = pytest.mark.skipif("mpo" not in NETWORKS, reason="the network mpo is not here")


@needs_mpo
def test_bonds_of_the_default_mpo(checkpoint):
    profile = build_profile(checkpoint, ("weight", "loss"), "mpo", SomeMoments(), "cpu")
    for row in profile.weights:
        spec = NETWORKS["mpo"].for_shape(*row["shape"], chi=10**6)
        assert [bond["bond"] for bond in row["bonds"]] == list(range(1, len(spec.out)))
        for bond in row["bonds"]:
            k = bond["bond"]
            assert bond["left_dims"] == [list(site) for site in zip(spec.out[:k], spec.in_[:k], strict=True)]
            assert math.prod(bond["dims"]) == row["parameters"] and bond["max_chi"] == min(bond["dims"])
            assert spec.chi[k - 1] == bond["max_chi"]
            for metric, numbers in bond["spectra"].items():
                sigma = profile.bond_sigma(row["name"], metric, k)
                assert (sigma**2).sum() == pytest.approx((profile.sigma(row["name"], metric) ** 2).sum())
                assert numbers["entropy"] == pytest.approx(entropy(sigma))
                assert numbers["null_entropy"] == null_entropy(*bond["dims"])
            assert set(bond["spectra"]) == set(row["spectra"])


@needs_mpo
def test_a_product_operator_has_no_entropy_on_its_bonds(tmp_path):
    # the Kronecker product of one matrix a site is an MPO of bond dimension 1, whatever its matrix rank
    spec = NETWORKS["mpo"].for_shape(16, 24, chi=1)
    rng = np.random.default_rng(1)
    W = np.ones((1, 1))
    for o, i in zip(spec.out, spec.in_, strict=True):
        W = np.kron(W, rng.standard_normal((o, i)))
    checkpoint = write({"model.layers.0.mlp.up_proj.weight": W.astype(np.float32)}, tmp_path / "product")
    row = build_profile(checkpoint, network="mpo", device="cpu").weights[0]
    assert row["spectra"]["weight"]["entropy"] > 0.5 and row["bonds"]
    for bond in row["bonds"]:
        assert bond["spectra"]["weight"]["entropy"] < 1e-9
        assert bond["spectra"]["weight"]["rank"] == 1


def test_edges_of_the_trees_over_the_layers(checkpoint, tmp_path):
    from karipap_core.networks.tree.edges import group_profile
    from karipap_core.networks.tree.groups import group_names

    profile = build_profile(checkpoint, ("weight", "loss"), "tree", SomeMoments(), "cpu", folder=tmp_path / "p")
    groups = profile.document["groups"]
    assert [group["members"] for group in groups] == group_names(checkpoint.weights)
    group = profile.group("model.layers.1.self_attn.q_proj")
    assert group["members"] == [f"model.layers.{k}.self_attn.q_proj" for k in range(2)]
    matrices = [checkpoint.read(name) for name in group["members"]]
    wanted = group_profile(group["members"], matrices, [SomeMoments().metric(n, "loss") for n in group["members"]])
    assert [row["entropy"] for row in group["edges"]["loss"]] == [row["entropy"] for row in wanted]
    for row, name in zip(group["edges"]["weight"][-2:], group["members"], strict=True):
        assert row["edge"] == "own" and row["members"] == [name]
        assert row["entropy"] == pytest.approx(profile.weight(name)["spectra"]["weight"]["entropy"], rel=1e-9)
    assert Profile.load(tmp_path / "p").document == json.loads(json.dumps(profile.document))
    assert not (tmp_path / "p" / "partial").exists()
    assert build_profile(checkpoint, device="cpu").group("model.layers.1.self_attn.q_proj") is None


def test_bonds_of_the_default_lattice(checkpoint):
    from karipap_core.networks.peps.renormalize import bond_profile

    profile = build_profile(checkpoint, ("weight", "functional"), "peps", SomeMoments(), "cpu")
    for row in profile.weights:
        if not row["compressible"]:
            assert "lattice" not in row
            continue
        spec, lattice = NETWORKS["peps"].for_shape(*row["shape"], 1), row["lattice"]
        assert lattice["grid"] == list(spec.grid) and len(lattice["sites"]) == len(spec.out)
        assert set(lattice["bonds"]) == {"weight", "functional"}
        assert lattice["bonds"]["weight"] == bond_profile(checkpoint.read(row["name"]), spec)
        assert {bond["direction"] for bond in lattice["bonds"]["functional"]} <= {"horizontal", "vertical"}


# ---- on disk --------------------------------------------------------------------------------------------------------


def test_save_and_load_are_the_identity(checkpoint, tmp_path):
    profile = build_profile(checkpoint, ("weight", "functional"), moments=SomeMoments(), device="cpu")
    profile.save(tmp_path / "p")
    assert sorted(file.name for file in (tmp_path / "p").iterdir()) == ["profile.json", "spectra.safetensors"]
    for found in (Profile.load(tmp_path / "p"), Profile.load(tmp_path / "p" / "profile.json")):
        assert found.to_json() == profile.to_json()
        for row in profile.weights:
            for metric in row["spectra"]:
                sigma = found.sigma(row["name"], metric)
                assert sigma.dtype == np.float64 and np.array_equal(sigma, profile.sigma(row["name"], metric))
    assert "model.embed_tokens|weight" in load_file(tmp_path / "p" / "spectra.safetensors")


def test_loading_says_what_is_wrong(checkpoint, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Profile.load(tmp_path / "nowhere")
    folder = build_profile(checkpoint, device="cpu").save(tmp_path / "p")
    document = json.loads((folder / "profile.json").read_text())
    for changed, what in [({"format": "karipap-plan"}, "'format'"), ({"version": 9}, "version 9")]:
        (folder / "profile.json").write_text(json.dumps(document | changed))
        with pytest.raises(InputError, match=what):
            Profile.load(folder)
    (folder / "profile.json").write_text(json.dumps({k: v for k, v in document.items() if k != "weights"}))
    with pytest.raises(InputError, match="field weights is missing"):
        Profile.load(folder)
    keep_json(folder / "profile.json", document | {"fingerprint": "f" * 64})
    with pytest.raises(InputError, match="does not belong"):
        Profile.load(folder).sigma("model.embed_tokens")
    (folder / "spectra.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"spectra\.safetensors is missing or damaged"):
        Profile.load(folder).sigma("model.embed_tokens")


def test_a_killed_profile_goes_on_where_it_stopped(checkpoint, tmp_path, monkeypatch):
    reads = []
    read = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda name: reads.append(name) or read(name))

    def stop_at_three(stage, done, total, item="", message=""):
        if done == 3:
            raise Cancelled

    def run(progress=lambda *a, **k: None, metrics=("weight",)):
        moments = None if metrics == ("weight",) else SomeMoments()
        return build_profile(checkpoint, metrics, None, moments, "cpu", progress, tmp_path / "p")

    with pytest.raises(Cancelled):
        run(stop_at_three)
    assert len(reads) == 3 and not (tmp_path / "p" / "profile.json").exists()
    (tmp_path / "p" / "partial" / "00001.safetensors").write_bytes(b"cut off")
    names = [weight.name for weight in checkpoint.weights]
    resumed = run()
    assert reads[3:] == [names[1], *names[3:]]
    assert sorted(file.name for file in (tmp_path / "p").iterdir()) == ["profile.json", "spectra.safetensors"]
    fresh = build_profile(checkpoint, device="cpu")
    assert resumed.weights == fresh.weights
    assert all(np.array_equal(resumed.sigma(name), fresh.sigma(name)) for name in names)

    reads.clear()
    assert run().weights == fresh.weights and not reads  # finished: opened, not made again
    with pytest.raises(Cancelled):
        run(stop_at_three, ("weight", "loss"))
    assert len(reads) == 3
    assert "loss" in run(metrics=("weight", "loss")).settings["metrics"]


def test_parts_beside_a_finished_profile_are_removed_by_the_next_to_ask(checkpoint, tmp_path):
    """Who was killed between the last file of a profile and the removal of its parts left them."""
    whole = build_profile(checkpoint, folder=tmp_path / "p")
    (tmp_path / "p" / "partial").mkdir()
    (tmp_path / "p" / "partial" / "00000.safetensors").write_bytes(b"left")
    (tmp_path / ".p.lock").touch()
    assert build_profile(checkpoint, folder=tmp_path / "p").document == whole.document
    assert not (tmp_path / "p" / "partial").exists() and not (tmp_path / ".p.lock").exists()


def test_partial_results_of_other_settings_are_not_used(checkpoint, tmp_path):
    def stop_at_three(stage, done, total, item="", message=""):
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        build_profile(checkpoint, device="cpu", progress=stop_at_three, folder=tmp_path / "p")
    found = build_profile(checkpoint, ("functional",), moments=SomeMoments(), device="cpu", folder=tmp_path / "p")
    assert [list(row["spectra"]) for row in found.weights[1:]] == [["functional"]] * 8


def test_the_key_depends_on_what_the_profile_holds():
    text = Text("name", ("one",))
    base = profile_settings(("weight", "loss"), None, text, Calibration())
    assert profile_key(base) == profile_key(profile_settings(["loss", "weight"], "lowrank", text, Calibration()))
    others = [
        profile_settings(("weight",)),
        profile_settings(("weight", "loss"), "mpo", text, Calibration()),
        profile_settings(("weight", "loss"), None, Text("name", ("two",)), Calibration()),
        profile_settings(("weight", "loss"), None, text, Calibration(damping=0.1)),
    ]
    assert len({profile_key(settings) for settings in [base, *others]}) == 5
    assert profile_settings(("weight",), None, text, Calibration()) == profile_settings(("weight",))


def test_progress_announces_long_weights(checkpoint, monkeypatch):
    monkeypatch.setattr(profile_module, "LONG_SECONDS", 0.0)
    said = []
    build_profile(checkpoint, device="cpu", progress=lambda *args: said.append(args))
    assert [line[1:3] for line in said] == [(k, 9) for k in range(10)]
    assert said[0] == ("profile", 0, 9, "model.embed_tokens", "30 × 12: about 0 s")


def test_table_is_flat_and_complete(checkpoint):
    profile = build_profile(checkpoint, ("weight", "loss"), moments=SomeMoments(), device="cpu")
    rows = profile.rows("loss")
    assert len({tuple(row) for row in rows}) == 1  # the same columns everywhere
    assert rows[0]["entropy"] is None and "activations" in rows[0]["notes"]
    row = next(row for row in rows if row["name"] == "model.layers.0.mlp.up_proj")
    assert (row["out"], row["in"], row["role"]) == (20, 12, "up")
    assert row["entropy"] == profile.weight(row["name"])["spectra"]["loss"]["entropy"]
    assert all(not isinstance(value, list | dict) for row in rows for value in row.values())
    with pytest.raises(InputError, match="'functional'"):
        profile.rows("functional")


def test_a_notebook_shows_a_small_table(checkpoint):
    profile = build_profile(checkpoint, device="cpu")
    shown = profile._repr_html_()
    assert shown.count("<tr>") == 1 + min(len(profile.weights), ROWS_SHOWN)
    row = profile.rows()[0]
    assert f"<td>{row['name']}</td>" in shown and f"<td>{row['entropy']:.4g}</td>" in shown
    assert repr(profile) == f"<Profile of {profile.document['model']}: {len(profile.weights)} weights under weight>"
    profile.weights[0]["name"] = "<script>"  # names come from checkpoints of unknown origin
    assert "<script>" not in profile._repr_html_()


def test_reading_a_profile_needs_no_torch(checkpoint, tmp_path):
    folder = build_profile(checkpoint, device="cpu").save(tmp_path / "p")
    code = (
        "import sys; from karipap_core.profiles.document import Profile; import karipap_core.spectra.null;"
        f"p = Profile.load({str(folder)!r}); p.sigma('model.embed_tokens'); p.rows(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- a real model ---------------------------------------------------------------------------------------------------


def test_a_trained_model_is_told_from_noise(stories):
    checkpoint = open_checkpoint(stories)
    profile = build_profile(checkpoint, device="cpu")
    assert profile.document["parameters"] == 260_032
    excess = {row["role"]: [] for row in profile.weights}
    for row in profile.weights:
        W = checkpoint.read(row["name"]).double().numpy()
        p = np.linalg.svd(W, compute_uv=False) ** 2
        p /= p.sum()
        numbers = row["spectra"]["weight"]
        assert numbers["entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-10)
        excess[row["role"]].append(numbers["excess"] / numbers["null_deviation"])
    assert min(excess["q"]) > 50  # trained queries are far from noise in every layer
    assert np.mean(excess["q"]) > 10 * np.mean(excess["v"])  # values are near it
