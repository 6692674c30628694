"""A model to look at without its weights: known by a profile that somebody sent, or by its config.json alone.

What is given is kept in the workspace's folder of a model of its own, under the SHA-256 of what it says, so that it is
never mixed up with what was measured here: `outline.json`, and for a profile the profile where all pages look for one.
"""

import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from karipap_core import schemas
from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.errors import InputError
from karipap_core.profiles.document import Profile, profile_key
from karipap_core.reading import named, parse_json
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_json, kept_json, kept_tensors

FORMAT, VERSION, FILE = "karipap-outline", 1, "outline.json"
PROFILE, CONFIG = "profile", "config"
MOST_CONFIG = 1 << 20  # bytes of a config.json; large ones have some ten thousand
WORDS = {PROFILE: "its profile", CONFIG: "its config.json"}


class Outline(Checkpoint):
    """A model whose weights are not here: names, roles and shapes of them, as a `Checkpoint` has them, and no numbers.

    `only` says what it is known by, "profile" or "config". Reading a weight raises InputError.
    """

    def __init__(self, name: str, folder: Path, only: str, config: dict, facts: dict[str, Any]) -> None:
        super().__init__(name, folder, config, {})
        self.only = only
        self.weights = [_weight(row) for row in facts["weights"]]
        self._by_name = {weight.name: weight for weight in self.weights}
        self.skipped = list(facts.get("skipped", ()))
        blocks = sum(weight.parameters for weight in self.weights if weight.compressible)
        whole = sum(weight.parameters for weight in self.weights)
        self.parameters = max(facts.get("parameters", whole), whole, 1)
        self.bytes = facts.get("bytes") or sum(weight.bytes for weight in self.weights)
        self.block_parameters = blocks
        self.__dict__ |= {"fingerprint": facts["fingerprint"], "identity": facts.get("identity", folder.name[33:])}

    @property
    def key(self) -> str:
        """Its own folder in the workspace, not that of the model which it says it is of."""
        return self.path.name

    @property
    def missing(self) -> str:
        """The sentence for what needs the weights."""
        return (
            f"The weights of {self.name} are not here, only {WORDS[self.only]}: open the model itself for what has to "
            "read them."
        )

    def read(self, name: str):
        raise InputError(self.missing)

    def read_tensor(self, tensor: str):
        raise InputError(self.missing)


def _weight(row: dict[str, Any]) -> Weight:
    """A row of a profile as a weight."""
    keys = ("name", "layer", "role", "dtype", "expert", "compressible")
    fields = {key: row[key] for key in keys} | {"role": row["role"] or "other"}
    return Weight(**fields, tensor=f"{row['name']}.weight", shape=tuple(row["shape"]), transposed=False, index=None)


def keep_profile(document: Any, spectra: bytes | None, source: str) -> str:
    """Keeps a profile that somebody gave, with its spectra where they were given; returns the key of its folder.

    Raises InputError, which begins with `source`, for what is no profile, and for spectra of another one.
    """
    schemas.check(document := _unsealed(document), "profile", source)
    rows = document["weights"]
    if not rows or len({row["name"] for row in rows}) != len(rows):
        raise InputError(f"{source}, field weights names {'a weight twice' if rows else 'none'}: profile it again.")
    metrics = document["settings"]["metrics"]
    if not any(metrics[0] in row["spectra"] for row in rows):
        raise InputError(f"{source} has no numbers under its metric {metrics[0]}: profile the model again.")
    key = _key(document["fingerprint"], [document, hashlib.sha256(spectra or b"").hexdigest()])
    folder = Workspace().model_dir(key)
    target = folder / "profiles" / profile_key(document["settings"])
    if spectra is not None:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "spectra.safetensors"
            file.write_bytes(spectra)
            profile = Profile(document, _spectra(file, document))
            profile.save(target)
    else:
        keep_json(target / "profile.json", document)
    _keep(folder, {"kind": PROFILE, "name": document["model"], "profile": target.name})
    return key


def _unsealed(document: Any) -> Any:
    """The document without the seal that a kept file has; InputError where that is not its own."""
    if not isinstance(document, dict):
        raise InputError(f"A profile.json holds {named(document)}, not an object: give the file of `karipap profile`.")
    seal = document.get(schemas.SEAL)
    if seal is not None and seal != schemas.sum_of(document):
        raise InputError("This profile.json is damaged (its SHA-256 differs): copy it again.")
    return {name: value for name, value in document.items() if name != schemas.SEAL}


def _spectra(file: Path, document: dict[str, Any]) -> dict[str, np.ndarray]:
    """The singular values of a file, held against the profile that they are to be of."""
    from karipap_core.checkpoint.tensorfile import read_header

    read_header(file)  # distrusts lengths and places before a library believes them
    found = kept_tensors(file, "numpy")
    if found is None:
        raise InputError("This spectra.safetensors is damaged: copy it again.")
    arrays, note = found
    if note.get("key") != Profile(document, {}).file_key:
        raise InputError("This spectra.safetensors is of another profile than the profile.json: give the two together.")
    for row in document["weights"]:
        for metric in row["spectra"]:
            sigma = arrays.get(f"{row['name']}|{metric}")
            if sigma is None or sigma.ndim != 1 or len(sigma) != min(row["shape"]):
                raise InputError(f"This spectra.safetensors lacks the singular values of {row['name']} under {metric}.")
    for name, sigma in arrays.items():
        if sigma.dtype.kind != "f" or not np.isfinite(sigma).all() or (sigma < 0).any():
            raise InputError(f"This spectra.safetensors holds what is no singular value, under {name}: profile again.")
    return arrays


def keep_config(data: bytes, name: str) -> str:
    """Keeps a config.json; returns the key of its folder. The parameters are counted on an empty model (torch's meta
    device). Raises InputError for what is no config.json or of no model that transformers can build."""
    from karipap_core.models.outline import of_config

    if len(data) > MOST_CONFIG:
        raise InputError(f"{name} is larger than 1 MB: this is no config.json.")
    config = parse_json(data, name, lenient=True)
    if not isinstance(config, dict):
        raise InputError(f"{name} holds {named(config)}, not an object: it is not a model's config.json.")
    title = str(config.get("_name_or_path") or config.get("model_type") or "model").rstrip("/").rpartition("/")[2]
    facts = of_config(config, name)
    fingerprint = hashlib.sha256(json.dumps(["config alone", facts, config], sort_keys=True).encode()).hexdigest()
    folder = Workspace().model_dir(key := _key(fingerprint, config))
    _keep(folder, {"kind": CONFIG, "name": title[:80], "fingerprint": fingerprint, "config": config} | facts)
    return key


def _key(fingerprint: str, content: Any) -> str:
    """The name of a folder of the workspace, as `Checkpoint.key` makes them."""
    text = json.dumps(["outline", content], sort_keys=True, separators=(",", ":"))
    return f"{fingerprint[:32]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _keep(folder: Path, facts: dict[str, Any]) -> None:
    keep_json(folder / FILE, {"format": FORMAT, "version": VERSION} | facts)


def outlines() -> dict[str, tuple[str, str]]:
    """Key → (name, kind) of all that is kept to be looked at without weights, the newest first."""
    files = [*(Workspace().root / "models").glob(f"*/{FILE}")]
    found = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        if (document := kept_json(file, "outline")) is not None:
            found[file.parent.name] = (document["name"], document["kind"])
    return found


def open_outline(key: str) -> Outline:
    """The model of an outline. Raises InputError where there is none or it is damaged."""
    folder = Workspace().model_dir(key)
    document = schemas.read(folder / FILE, "outline")
    if document["kind"] == CONFIG:
        if missing := [field for field in ("weights", "fingerprint", "config") if field not in document]:
            raise InputError(f"File {folder / FILE}: field {missing[0]} is missing.")
        return Outline(document["name"], folder, CONFIG, document["config"], document)
    profile = Profile.load(folder / "profiles" / schemas.checked_name(document.get("profile"), FILE))
    return Outline(document["name"], folder, PROFILE, {}, profile.document)


def forget_outline(key: str) -> None:
    """Removes what was kept of a model without weights."""
    folder = Workspace().model_dir(key)
    if (folder / FILE).is_file():
        shutil.rmtree(folder)


def numbers_of_shapes(weights: list[Weight]) -> list[dict[str, Any]]:
    """What the shape of each weight says by itself, a row a weight: parameters, bytes as stored, the entropy of a
    Gaussian matrix of that shape in nats, the largest that there can be (ln min), and the break-even χ, at which two
    factors have as many parameters as the weight."""
    from karipap_core.spectra.null import null_entropy

    known: dict[tuple[int, int], float] = {}
    rows = []
    for weight in weights:
        n_out, n_in = weight.shape
        noise = known.get(weight.shape)
        if noise is None:
            noise = known[weight.shape] = null_entropy(*weight.shape)
        rows.append(
            weight.facts()
            | {
                "bytes": weight.bytes,
                "null_entropy": noise,
                "largest_entropy": math.log(min(weight.shape)),
                "break_even": n_out * n_in / (n_out + n_in),
            }
        )
    return rows
