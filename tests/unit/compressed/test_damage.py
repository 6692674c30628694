"""What counts as a finished folder is what its recorded sums confirm; what is ours and damaged is mended."""

import json
import random
import shutil

import pytest

from karipap_core.cli import frame as cli
from karipap_core.compressed.checks import as_written
from karipap_core.compressed.compress import compress
from karipap_core.compressed.densify import densify
from karipap_core.compressed.records import report_of
from karipap_core.errors import InputError, StorageError
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_json
from karipap_core.workspace.locks import only_writer
from tests.helpers.architectures import make


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder with a finished compressed model in `out`, its study, its plan)"""
    folder = tmp_path_factory.mktemp("damage")
    study = Study(make("llama_bf16", folder / "model"), device="cpu", workspace=Workspace(folder / "workspace"))
    weights = {}
    for weight in study.weights:
        cut = {"network": "lowrank", "out": [weight.shape[0]], "in": [weight.shape[1]], "chi": [4], "quantize": None}
        weights[weight.name] = cut if weight.role in ("q", "up") else {"network": "dense"}
    plan = Plan(model_entry(study.checkpoint), "weight", weights, rule="uniform")
    plan.save(folder / "plan.json")
    compress(study, plan, folder / "out")
    return folder, study, plan


@pytest.fixture
def out(world, tmp_path):
    shutil.copytree(world[0] / "out", tmp_path / "out")
    return tmp_path / "out"


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file, place=-5):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "tensors cut to half": lambda out: halve(out / "model.safetensors"),
    "a bit of a tensor": lambda out: flip(out / "model.safetensors"),
    "no tensors": lambda out: (out / "model.safetensors").unlink(),
    "a bit of the config": lambda out: flip(out / "config.json", 5),
    "config cut to half": lambda out: halve(out / "config.json"),
    "no config": lambda out: (out / "config.json").unlink(),
    "another χ in the config's plan": lambda out: (out / "config.json").write_text(
        (out / "config.json").read_text().replace('"uniform"', '"entropy"')
    ),
    "no verdict": lambda out: (out / "verify.json").unlink(),
    "half a verdict": lambda out: halve(out / "verify.json"),
    "another model's file": lambda out: shutil.copy(out / "model.safetensors", out / "model-00002.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_compress_mends_a_damaged_folder(world, out, damage):
    folder, study, plan = world
    (out / "notes of mine.txt").write_text("kept")
    keep_json(out / "evaluation.json", {"mine": "kept too"})
    before = contents(out)
    DAMAGES[damage](out)
    again = compress(study, plan, out)
    assert again["verify"]["ok"], again["verify"]
    now = contents(out)
    assert json.loads(now.pop("verify.json"))["result"] == json.loads(before.pop("verify.json"))["result"]
    assert now.pop("model-00002.safetensors", None) is None or damage == "another model's file"
    assert now == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_command_says_so(world, out, capsys):
    folder, _, _ = world
    before = contents(out)
    halve(out / "model.safetensors")
    line = ["compress", str(folder / "model"), "--plan", str(folder / "plan.json"), "--out", str(out)]
    line += ["--workspace", str(folder / "workspace")]
    assert cli.main(line) == 0
    assert "7 checks passed" in capsys.readouterr().out
    assert contents(out) == before


def test_any_flipped_bit_of_any_file_is_found(out):
    rng = random.Random(7)
    report = report_of(out)
    assert as_written(out, report)
    for file in sorted(out.iterdir()):
        if file.name in ("verify.json", "karipap.json", "README.md"):  # records, and a card that people may edit
            continue
        whole = file.read_bytes()
        header = int.from_bytes(whole[:8], "little") + 8 if file.suffix == ".safetensors" else len(whole)
        places = {rng.randrange(len(whole)) for _ in range(40)} | {rng.randrange(header) for _ in range(200)}
        for place in sorted(places):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            assert not as_written(out, report) or _same(whole, damaged), f"{file.name}, byte {place}"
        file.write_bytes(whole)


def _same(whole: bytes, damaged: bytes) -> bool:
    """Whether a flipped bit changed nothing: white space in JSON."""
    try:
        return json.loads(whole) == json.loads(damaged)
    except ValueError:
        return False


def test_a_damaged_report_makes_the_folder_no_ones(world, out):
    _, study, plan = world
    flip(out / "karipap.json", 40)
    with pytest.raises(InputError, match=r"is not empty and holds no model of this plan: name another one\."):
        compress(study, plan, out)


def test_a_folder_of_before_there_were_sums_counts_by_its_headers_and_sizes(world, out):
    _, study, plan = world
    report = {key: value for key, value in report_of(out).items() if key != "sums"}
    (out / "karipap.json").write_text(json.dumps(report))
    assert compress(study, plan, out)["seconds"] == 0.0
    halve(out / "model.safetensors")
    assert compress(study, plan, out)["seconds"] > 0
    assert report_of(out)["sums"] and as_written(out, report_of(out))


def test_a_damaged_part_is_made_again(world, tmp_path):
    folder, study, plan = world
    out = tmp_path / "out"

    def stop(stage, done, total, item="", message=""):
        if stage == "compress" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(study, plan, out, progress=stop)
    parts = sorted(out.glob(".parts/*/*.safetensors"))
    assert len(parts) == 3
    flip(parts[0])
    halve(parts[1])
    assert compress(study, plan, out)["verify"]["ok"]
    assert contents(out) == contents(folder / "out")


def test_two_writers_of_one_folder_are_told_apart(world, tmp_path, capsys):
    folder, study, plan = world
    out = tmp_path / "out"
    for verb, rest in (
        ("compress", [str(folder / "model"), "--plan", str(folder / "plan.json")]),
        ("densify", [str(folder / "out")]),
    ):
        with only_writer(out, "heal"):
            assert cli.main([verb, *rest, "--out", str(out), "--workspace", str(folder / "workspace")]) == 2
        assert f"error: {out} is being written by heal (process " in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(world, tmp_path, monkeypatch):
    """Of densify and of compress: the parts stay, the folder is not begun."""
    import errno

    from karipap_core.checkpoint import tensorfile

    folder, study, plan = world
    written = tensorfile.write_file

    def full(path, pieces):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "write_file", full)
    words = "cannot be written, since the disk is full: make room and give the command again"
    with pytest.raises(StorageError, match=words):
        densify(folder / "out", tmp_path / "dense")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match=words):
        compress(study, plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".parts"]
    monkeypatch.setattr(tensorfile, "write_file", written)
    compress(study, plan, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder / "out")
