"""The profile as a document: a row a weight with the numbers of its spectra, read, written and listed."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np

from karipap_core import schemas
from karipap_core.errors import InputError, unknown
from karipap_core.networks.listed import NAMES
from karipap_core.spectra.spectrum import METRICS
from karipap_core.terminal import value
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, keep_tensors, kept_tensors

FORMAT, VERSION = "karipap-profile", 1
NETWORKS_WITH_BONDS = ("mpo", "tree", "peps")
SHOWN = {  # columns of a profile in a notebook, and their heads
    "name": "weight",
    "out": "out",
    "in": "in",
    "entropy": "S",
    "null_entropy": "S null",
    "excess": "excess",
    "normalized_entropy": "S / ln r",
    "effective_rank": "exp S",
}
ROWS_SHOWN = 12


def profile_settings(metrics: Iterable[str] = ("weight",), network: str | None = None, text=None, calibration=None):
    """The settings that decide what a profile holds, as JSON; `profile_key` of them names it in the workspace.

    `text` (a Text) and `calibration` (a CalibrationSettings) count only where a metric looks at activations.
    InputError for a metric or network that does not exist, and for activations without a text.
    """
    wanted = list(metrics)
    if not wanted:
        raise InputError(f"metrics: none given; choose from {', '.join(METRICS)}.")
    for metric in wanted:
        if metric not in METRICS:
            raise unknown("Metric", metric, METRICS)
    if network is not None and network not in NETWORKS_WITH_BONDS:
        if network not in NAMES:
            raise unknown("Network", network, NAMES)
        network = None  # its spectra are the matrix cut's: the same profile
    chosen = [metric for metric in METRICS if metric in wanted]
    settings = {"metrics": chosen, "network": network, "text": None, "sha256": None}
    if chosen == ["weight"]:
        return settings
    if not text:
        raise InputError(f"metrics: {chosen[-1]} looks at activations and needs a calibration text.")
    images = {"images": text.images.facts()} if text.images else {}
    settings |= {"text": text.name, "sha256": text.sha256} | images
    return settings | (asdict(calibration) if calibration else {})


def profile_key(settings: dict) -> str:
    """16 hex digits that name these settings; with the fingerprint, a profile's place in the workspace."""
    return settings_key({"format": FORMAT, "version": VERSION, "settings": settings})


def file_key(fingerprint: str, identity: str | None, settings: dict) -> str:
    """Names the model and settings in each file of a profile; profiles written before 0.3 have no identity."""
    return "-".join([fingerprint, *([identity] if identity else []), profile_key(settings)])


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
        if self.folder is None:
            raise InputError("This profile has neither spectra nor a folder to read them from.")
        file = self.folder / "spectra.safetensors"
        if (found := kept_tensors(file, "numpy")) is None:
            raise InputError(f"{file} is missing or damaged; profile the model again.")
        if found[1].get("key") != self.file_key:
            raise InputError(f"{file} does not belong to the profile.json beside it; profile the model again.")
        return found[0]

    @cached_property
    def bare(self) -> bool:
        """Whether the singular values are not here: profile.json was given without the file beside it."""
        return self.folder is not None and not (self.folder / "spectra.safetensors").exists()

    @property
    def file_key(self) -> str:
        return file_key(self.fingerprint, self.document.get("identity"), self.settings)

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

    def spectra_of(self, name: str) -> dict[str, np.ndarray]:
        """Every spectrum of a weight, by its key in spectra.safetensors."""
        return {key: sigma for key, sigma in self._spectra.items() if key.startswith(f"{name}|")}

    def bond_sigma(self, name: str, metric: str, bond: int) -> np.ndarray:
        """Singular values across bond k (from 1) of the weight's default MPO, of the tensor of A W B; descending."""
        return self._lookup(name, metric, f"{name}|{metric}|bond{bond}")

    def _lookup(self, name: str, metric: str, key: str) -> np.ndarray:
        notes = " ".join(self.weight(name)["notes"])
        if key not in self._spectra:
            what = key.removeprefix(name + "|").replace("|", ", ")
            raise InputError(f"{name} has no spectrum '{what}' in this profile. {notes}".strip())
        return self._spectra[key]

    def rows(self, metric: str = "weight") -> list[dict]:
        """One flat row a weight, for a data frame or a CSV file: what it is, then the numbers of its spectrum.

        metric : whose numbers, one of `settings["metrics"]`. Columns: name, layer, role, expert, out, in, parameters,
        dtype, compressible, those of `spectra.describe` (entropies in nats; None for a weight without that spectrum)
        and notes. InputError for a metric that this profile does not hold.
        """
        columns = next((list(row["spectra"][metric]) for row in self.weights if metric in row["spectra"]), None)
        if columns is None:
            held = ", ".join(self.settings["metrics"])
            raise InputError(f"metric {metric!r} is not in this profile; it has {held}.")
        columns = [column for column in columns if column != "damping"]
        rows = []
        for weight in self.weights:
            what = {key: weight[key] for key in ("name", "layer", "role", "expert")}
            what |= {"out": weight["shape"][0], "in": weight["shape"][1]}
            what |= {key: weight[key] for key in ("parameters", "dtype", "compressible")}
            numbers = weight["spectra"].get(metric, {})
            rows.append(what | {key: numbers.get(key) for key in columns} | {"notes": " ".join(weight["notes"])})
        return rows

    def __repr__(self) -> str:
        return (
            f"<Profile of {self.document['model']}: {len(self.weights)} weights under "
            f"{', '.join(self.settings['metrics'])}>"
        )

    def _repr_html_(self) -> str:
        """The first rows as a small table, under the first metric of the profile; for notebooks."""
        metric = self.settings["metrics"][0]
        rows = self.rows(metric)
        head = "".join(f"<th>{words}</th>" for words in SHOWN.values())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(value(row[key]))}</td>" for key in SHOWN) + "</tr>"
            for row in rows[:ROWS_SHOWN]
        )
        said = escape(f"{self!r}"[1:-1]) + f"; metric {metric}, entropies in nats."
        rest = len(rows) - ROWS_SHOWN
        more = f" The first {ROWS_SHOWN}; .rows() has {rest} more." if rest > 0 else ""
        return f"<table><caption>{said}{more}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_json(self) -> dict:
        """The one JSON document of the `profile` verb."""
        return self.document

    def save(self, folder: str | Path) -> Path:
        """Writes the folder: spectra first, then profile.json, each whole or not at all.

        A folder with a profile.json is complete. Other files in it are left alone.
        """
        folder = Path(folder)
        write_spectra(folder / "spectra.safetensors", self._spectra, {"key": self.file_key})
        keep_json(folder / "profile.json", self.document)
        self.folder = folder
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Profile":
        """Reads a profile's folder (or the path of its profile.json); the spectra are read when first asked for.

        InputError where there is none, where it is damaged or where a newer Karipap wrote it.
        """
        folder = Path(folder)
        file = folder if folder.name == "profile.json" else folder / "profile.json"
        return cls(schemas.read(file, "profile"), folder=file.parent)


def write_spectra(file: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    keep_tensors(file, {key: np.ascontiguousarray(array) for key, array in arrays.items()}, metadata)
