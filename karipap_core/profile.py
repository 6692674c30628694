"""The profile of a checkpoint: the spectrum of every weight, under every metric, across every cut.

A profile is a folder: `profile.json` (numbers, settings, fingerprint; what the `profile` verb prints) and
`spectra.safetensors` (the singular values, float64, under the keys "<weight>|<metric>" and
"<weight>|<metric>|bond<k>", k from 1). Weights are read and decomposed one at a time, and each finished one is kept
in `partial/` of that folder, so a killed profile goes on where it stopped. Reading a profile needs no torch.
"""

import contextlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.spectra.describe import describe
from karipap_core.spectra.spectrum import METRICS, pick_device, singular_values
from karipap_core.workspace.files import read_json, settings_key, whole_file, write_json

FORMAT, VERSION = "karipap-profile", 1
NETWORKS_WITH_BONDS = ("mpo", "tree", "peps")
LONG_SECONDS = 10.0  # a matrix expected to take longer than this is announced with its expected time
FIRST_GUESS = 1e10  # floating-point operations a second, until the first weight has been timed


def profile_settings(metrics: Iterable[str] = ("weight",), network: str | None = None, text=None, calibration=None):
    """The settings that decide what a profile holds, as JSON; `profile_key` of them names it in the workspace.

    `text` (a Text) and `calibration` (a CalibrationSettings) count only where a metric looks at activations.
    InputError for a metric or network that does not exist, and for activations without a text.
    """
    wanted = list(metrics)
    unknown = [metric for metric in wanted if metric not in METRICS]
    if unknown or not wanted:
        raise InputError(f"metrics: {unknown[0] if unknown else 'none given'}; choose from {', '.join(METRICS)}.")
    if network is not None and network not in NETWORKS_WITH_BONDS:
        from karipap_core.networks import NETWORKS  # torch, seconds: not for reopening a finished profile

        if network not in NETWORKS:
            raise InputError(f"network: {network!r} does not exist; choose from {', '.join(NETWORKS)}.")
        network = None  # its spectra are the matrix cut's: the same profile
    chosen = [metric for metric in METRICS if metric in wanted]
    settings = {"metrics": chosen, "network": network, "text": None, "sha256": None}
    if chosen == ["weight"]:
        return settings
    if not text:
        raise InputError(f"metrics: {chosen[-1]} looks at activations and needs a calibration text.")
    return settings | {"text": text.name, "sha256": text.sha256} | (asdict(calibration) if calibration else {})


def profile_key(settings: dict) -> str:
    """16 hex digits that name these settings; with the fingerprint, a profile's place in the workspace."""
    return settings_key({"format": FORMAT, "version": VERSION, "settings": settings})


class Profile:
    """What `build_profile` finds. `document` is profile.json as a dictionary; `weights` its rows, in model order.

    A row: name, layer, role, expert, shape [out, in], parameters, dtype, compressible, notes (what is missing and
    why), spectra {metric: numbers, see `spectrum.describe`} and bonds: a list of {bond (k, from 1), left_dims [[o, i]
    of each site left of the cut], right_dims, dims [m, n] of the unfolding, max_chi, spectra}. With the network `peps`
    a row also has lattice: {grid [R, C], sites ["o·i"], bonds {metric: rows of `renormalize.bond_profile`}}, with
    `tree` the document has groups: [{members, edges {metric: rows of `tree_edges.group_profile`}}].
    """

    def __init__(self, document: dict, spectra: dict[str, np.ndarray] | None = None, folder: Path | None = None):
        self.document = document
        self.folder = folder
        if spectra is not None:
            self._spectra = spectra

    @cached_property
    def _spectra(self) -> dict[str, np.ndarray]:
        file = self.folder / "spectra.safetensors"
        try:
            with safe_open(file, framework="numpy") as handle:
                key = (handle.metadata() or {}).get("key")
            spectra = load_file(file)
        except (OSError, SafetensorError) as failure:
            raise InputError(f"{file} cannot be read ({failure}); profile the model again.") from failure
        if key != self._file_key:
            raise InputError(f"{file} does not belong to the profile.json beside it; profile the model again.")
        return spectra

    @property
    def _file_key(self) -> str:
        return f"{self.fingerprint}-{profile_key(self.settings)}"

    @property
    def weights(self) -> list[dict]:
        return self.document["weights"]

    @property
    def fingerprint(self) -> str:
        return self.document["fingerprint"]

    @property
    def settings(self) -> dict:
        return self.document["settings"]

    def group(self, name: str) -> dict | None:
        """The tree's group that a weight is in; None where this profile has no trees."""
        return next((group for group in self.document.get("groups", ()) if name in group["members"]), None)

    @cached_property
    def _rows(self) -> dict[str, dict]:
        return {row["name"]: row for row in self.weights}

    def weight(self, name: str) -> dict:
        """The row of one weight; InputError where the model has none of that name."""
        if name not in self._rows:
            raise InputError(f"{name} is not a weight of {self.document['model']}.")
        return self._rows[name]

    def sigma(self, name: str, metric: str = "weight") -> np.ndarray:
        """Singular values of A W B, descending, float64; InputError where this profile has none for the metric."""
        return self._lookup(name, metric, f"{name}|{metric}")

    def bond_sigma(self, name: str, metric: str, bond: int) -> np.ndarray:
        """Singular values across bond k (from 1) of the weight's default MPO, of the tensor of A W B; descending."""
        return self._lookup(name, metric, f"{name}|{metric}|bond{bond}")

    def _lookup(self, name: str, metric: str, key: str) -> np.ndarray:
        notes = " ".join(self.weight(name)["notes"])
        if key not in self._spectra:
            what = key.removeprefix(name + "|").replace("|", ", ")
            raise InputError(f"{name} has no spectrum '{what}' in this profile. {notes}".strip())
        return self._spectra[key]

    def to_json(self) -> dict:
        """The one JSON document of the `profile` verb."""
        return self.document

    def save(self, folder: str | Path) -> Path:
        """Writes the folder: spectra first, then profile.json, each whole or not at all.

        A folder with a profile.json is complete. Other files in it are left alone.
        """
        folder = Path(folder)
        _write(folder / "spectra.safetensors", self._spectra, {"key": self._file_key})
        write_json(folder / "profile.json", self.document)
        self.folder = folder
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Profile":
        """Reads a profile's folder (or the path of its profile.json); the spectra are read when first asked for.

        InputError where there is none, where it is damaged or where a newer Karipap wrote it.
        """
        folder = Path(folder)
        file = folder if folder.name == "profile.json" else folder / "profile.json"
        document = read_json(file)
        if document.get("format") != FORMAT:
            raise InputError(f"{file} is not a Karipap profile (field 'format').")
        if document.get("version") != VERSION:
            version = document.get("version")
            raise InputError(f"{file} has version {version!r}, this Karipap reads {VERSION}; profile the model again.")
        missing = sorted({"model", "fingerprint", "settings", "weights"} - document.keys())
        if missing:
            raise InputError(f"{file} lacks the field '{missing[0]}'; profile the model again.")
        return cls(document, folder=file.parent)


def table(profile: Profile, metric: str = "weight") -> list[dict]:
    """One flat row a weight, for a screen or a CSV: what it is, its numbers under `metric` (None where missing)."""
    columns = next((list(row["spectra"][metric]) for row in profile.weights if metric in row["spectra"]), None)
    if columns is None:
        raise InputError(f"metric {metric!r} is not in this profile; it has {', '.join(profile.settings['metrics'])}.")
    columns = [column for column in columns if column != "damping"]
    rows = []
    for weight in profile.weights:
        what = {key: weight[key] for key in ("name", "layer", "role", "expert")}
        what |= {"out": weight["shape"][0], "in": weight["shape"][1]}
        what |= {key: weight[key] for key in ("parameters", "dtype", "compressible")}
        numbers = weight["spectra"].get(metric, {})
        rows.append(what | {key: numbers.get(key) for key in columns} | {"notes": " ".join(weight["notes"])})
    return rows


def build_profile(
    checkpoint,
    metrics: Iterable[str] = ("weight",),
    network: str | None = None,
    moments=None,
    device: str = "auto",
    progress: Progress = silent,
    folder: str | Path | None = None,
) -> Profile:
    """Spectra of every weight of `checkpoint` under each metric; with a network also what its cuts hold: the spectrum
    of every bond of an `mpo`, the entropy of every edge of a `tree` over each group of layers and of every bond of a
    `peps`.

    `moments` (activations.Moments) gives what `functional` and `loss` need; weights that are not compressible
    (embeddings, head, ...) have their weight spectrum alone, with a note. With `folder` the profile is kept there: a
    finished one of the same model and settings is returned as it is, an unfinished one is continued. Cost: see
    `spectrum.singular_values`, once for each weight, metric and bond. InputError for unknown metrics and networks,
    missing moments, NaN in a weight.
    """
    text, calibration = (getattr(moments, name, None) for name in ("text", "settings"))
    settings = profile_settings(metrics, network, text, calibration)
    key = f"{checkpoint.fingerprint}-{profile_key(settings)}"
    folder = None if folder is None else Path(folder)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a profile needs a folder.")
    if folder is not None and (folder / "profile.json").exists():
        found = Profile.load(folder)
        if found._file_key == key:
            return found
    import torch

    began, device = time.monotonic(), pick_device(device)
    rows, spectra, work, seconds = [], {}, 0.0, 0.0
    for number, weight in enumerate(checkpoint.weights):
        part = None if folder is None else folder / "partial" / f"{number:05d}.safetensors"
        row, found = _read_part(part, key, weight.name)
        flops = _flops(weight.shape) * len(settings["metrics"])
        expected = flops * (seconds / work if work else 1 / FIRST_GUESS)
        long = row is None and expected > LONG_SECONDS
        message = f"{weight.shape[0]} × {weight.shape[1]}: about {expected:.0f} s" if long else ""
        progress("profile", number, len(checkpoint.weights), weight.name, message)
        if row is None:
            started = time.monotonic()
            row, found = _profile_weight(checkpoint, weight, settings, moments, device)
            work, seconds = work + flops, seconds + time.monotonic() - started
            if part is not None:
                _write(part, found, {"key": key, "row": json.dumps(row)})
        rows.append(row)
        spectra |= found
    progress("profile", len(rows), len(rows))
    groups = _groups(checkpoint, settings, moments, key, folder, progress) if settings["network"] == "tree" else None
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "parameters": checkpoint.parameters,
        "block_parameters": checkpoint.block_parameters,
        "bytes": checkpoint.bytes,
        "settings": settings,
        "device": device,
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "seconds": round(time.monotonic() - began, 3),
        "weights": rows,
        "skipped": list(checkpoint.skipped),
    } | ({} if groups is None else {"groups": groups})
    profile = Profile(document, spectra)
    if folder is not None:
        profile.save(folder)
        for part in (folder / "partial").glob("*.*"):
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (folder / "partial").rmdir()
    return profile


def _profile_weight(checkpoint, weight, settings: dict, moments, device: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(row, spectra) of one weight."""
    matrix = checkpoint.read(weight.name)
    notes: list[str] = []
    wanted = settings["metrics"] if weight.compressible else ["weight"]
    if wanted != settings["metrics"]:
        notes.append("Only the weights that can be compressed have their activations looked at: weight spectrum alone.")
    chosen = {name: None if name == "weight" else moments.metric(weight.name, name) for name in wanted}
    cuts = _cuts(weight.shape, settings["network"]) if settings["network"] == "mpo" else []
    lattice = _lattice(weight.shape) if settings["network"] == "peps" and weight.compressible else None
    row = {
        "name": weight.name,
        "layer": weight.layer,
        "role": weight.role,
        "expert": weight.expert,
        "shape": list(weight.shape),
        "parameters": weight.parameters,
        "dtype": weight.dtype,
        "compressible": weight.compressible,
        "notes": notes,
        "spectra": {},
        "bonds": [cut | {"spectra": {}} for cut in cuts],
    }
    if lattice is not None:
        row["lattice"] = {
            "grid": list(lattice.grid), "bonds": {},
            "sites": [f"{o}·{i}" for o, i in zip(lattice.out, lattice.in_, strict=True)],
        }  # fmt: skip
    spectra = {}
    for name, metric in chosen.items():
        damping = {} if metric is None else _damping(metric, notes.append)
        whitened = matrix if metric is None else _whitened(matrix, metric, device, weight.name, notes.append)
        sigma = singular_values(whitened, device, weight.name, notes.append)
        spectra[f"{weight.name}|{name}"] = sigma
        row["spectra"][name] = describe(sigma, weight.shape) | ({"damping": damping} if damping else {})
        if lattice is not None:
            from karipap_core.networks.peps.renormalize import bond_profile

            row["lattice"]["bonds"][name] = bond_profile(whitened, lattice)
        for cut in row["bonds"]:
            unfolded = unfold(whitened, cut["left_dims"] + cut["right_dims"], cut["bond"])
            sigma = singular_values(unfolded, device, f"{weight.name}, bond {cut['bond']}", notes.append)
            spectra[f"{weight.name}|{name}|bond{cut['bond']}"] = sigma
            cut["spectra"][name] = describe(sigma, cut["dims"])
    return row, spectra


def _lattice(shape: tuple[int, int]):
    """The default lattice of a shape."""
    from karipap_core.networks.peps.network import Peps

    return Peps.for_shape(*shape, 1)


def _groups(checkpoint, settings: dict, moments, key: str, folder: Path | None, progress: Progress) -> list[dict]:
    """Entropy of every edge of the tree over each group of layers; finished groups are kept beside the weights."""
    from karipap_core.networks.tree.edges import group_profile
    from karipap_core.networks.tree.network import group_names
    from karipap_core.spectra.metric import Metric

    groups = group_names(checkpoint.weights)
    found = []
    for number, members in enumerate(groups):
        progress("entropy of trees", number, len(groups), ", ".join(members))
        part = None if folder is None else folder / "partial" / f"tree-{number:05d}.json"
        kept = read_json(part) if part is not None and part.exists() else {}
        if kept.get("key") != key:
            matrices = [checkpoint.read(name) for name in members]
            edges = {}
            for name in settings["metrics"]:
                of = [Metric() if name == "weight" else moments.metric(member, name) for member in members]
                edges[name] = group_profile(members, matrices, of)
            kept = json.loads(json.dumps({"key": key, "members": members, "edges": edges}))
            if part is not None:
                write_json(part, kept)
        found.append({"members": kept["members"], "edges": kept["edges"]})
    progress("entropy of trees", len(groups), len(groups))
    return found


def _damping(metric, notice: Callable[[str], None]) -> dict[str, float | None]:
    """The damping that each moment took; a moment that is all zeros (an expert never routed to) is told of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the note says it
        used = metric.damping_used
    for side, damping in used.items():
        if damping is None:
            what = "inputs" if side == "C" else "output gradients"
            notice(f"{metric.name}: the text gives this weight no {what}; the identity stands in for {side}.")
    return used


def _whitened(matrix, metric, device: str, name: str, notice: Callable[[str], None]):
    """A W B in float64, on the device if it can."""
    if device != "cpu":
        try:
            return metric.whiten(matrix.to(device))
        except (RuntimeError, TypeError) as failure:
            notice(f"{name}: whitened on the CPU, because {device} failed: {str(failure).splitlines()[0]}")
    return metric.whiten(matrix)


def _cuts(shape: tuple[int, int], network: str) -> list[dict]:
    """The bonds of a shape's default MPO: bond k (from 1) parts the first k sites from the rest."""
    from karipap_core.networks import NETWORKS

    spec = NETWORKS[network].for_shape(*shape, chi=1)
    sites = [list(site) for site in zip(spec.out, spec.in_, strict=True)]
    cuts = []
    for bond in range(1, len(sites)):
        dims = [int(np.prod(part, dtype=np.int64)) for part in (sites[:bond], sites[bond:])]
        cut = {"bond": bond, "left_dims": sites[:bond], "right_dims": sites[bond:], "dims": dims}
        cuts.append(cut | {"max_chi": min(dims)})
    return cuts


def unfold(matrix, sites: list, bond: int):
    """The matrix (o_1 i_1 … o_k i_k | o_{k+1} i_{k+1} …) of W (out, in) seen as a tensor of `sites` [[o_1, i_1], …]."""
    d = len(sites)
    order = [axis for site in range(d) for axis in (site, d + site)]
    tensor = matrix.reshape([o for o, _ in sites] + [i for _, i in sites]).permute(order)
    return tensor.reshape(int(np.prod(sites[:bond], dtype=np.int64)), -1)


def _flops(shape: tuple[int, int]) -> float:
    small, large = sorted(shape)
    return float(small) ** 2 * large + 4.0 * small**3


def _write(file: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    with whole_file(file) as temporary:
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, temporary, metadata)


def _read_part(file: Path | None, key: str, name: str) -> tuple[dict | None, dict[str, np.ndarray]]:
    """A weight finished by an earlier run of the same model and settings; (None, {}) where there is none."""
    if file is None or not file.exists():
        return None, {}
    try:
        with safe_open(file, framework="numpy") as handle:
            metadata = handle.metadata()
        row = json.loads(metadata["row"])
        return (row, load_file(file)) if metadata["key"] == key and row["name"] == name else (None, {})
    except SafetensorError:  # cut off by a power failure: as good as absent
        return None, {}
