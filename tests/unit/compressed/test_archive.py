"""The ZIP file of a folder, read by Python's own reader and by Info-ZIP."""

import io
import shutil
import subprocess
import zipfile

import pytest

from karipap_core.compressed import archive
from karipap_core.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "below").mkdir()
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    return tmp_path


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 1000, 0])  # the smaller ones have it written as ZIP64
def test_it_is_as_large_as_was_said_and_holds_every_file(folder, monkeypatch, tmp_path_factory, limit):
    monkeypatch.setattr(archive, "LIMIT", limit)
    files = archive.members(folder, "mine", {"HOW-TO-LOAD.txt": "χ".encode()})
    data = b"".join(archive.stream(files))
    assert len(data) == archive.size(files)
    assert (b"PK\6\6" in data) == (limit < 0xFFFFFFFF)
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        names = {"config.json", "model.safetensors", "empty.txt", "HOW-TO-LOAD.txt"}
        assert set(found.namelist()) == {f"mine/{name}" for name in names}
        assert found.read("mine/model.safetensors") == (folder / "model.safetensors").read_bytes()
        assert {each.compress_type for each in found.infolist()} == {zipfile.ZIP_STORED}
    if shutil.which("unzip"):
        file = tmp_path_factory.mktemp("zip") / "a.zip"
        file.write_bytes(data)
        assert subprocess.run(["unzip", "-tq", str(file)], capture_output=True).returncode == 0


def test_what_is_no_model_and_what_changes_meanwhile_is_told(folder, tmp_path_factory):
    with pytest.raises(InputError, match="no folder of a model"):
        archive.members(tmp_path_factory.mktemp("none"), "x")
    files = archive.members(folder, "mine")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="changed while it was read"):
        list(archive.stream(files))
