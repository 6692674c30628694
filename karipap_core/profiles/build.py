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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karipap_core import cluster
from karipap_core.checkpoint.carried import Carried
from karipap_core.checkpoint.reach import coverage
from karipap_core.errors import InputError
from karipap_core.profiles.document import FORMAT, VERSION, Profile, file_key, profile_settings, write_spectra
from karipap_core.profiles.given import Given
from karipap_core.progress import Progress, silent
from karipap_core.spectra.describe import describe, in_words
from karipap_core.spectra.spectrum import pick_device, singular_values, singular_values_of_product
from karipap_core.workspace.kept import has_tensors, keep_json, kept_json, kept_tensors
from karipap_core.workspace.locks import only_writer

LONG_SECONDS = 10.0  # a matrix expected to take longer than this is announced with its expected time
FIRST_GUESS = 1e10  # floating-point operations a second, until the first weight has been timed


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
    key = file_key(checkpoint.fingerprint, checkpoint.identity, settings)
    folder = None if folder is None else Path(folder)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a profile needs a folder.")
    keys = (key, file_key(checkpoint.fingerprint, None, settings))  # the second of before there were identities
    if folder is None:
        return _built(checkpoint, settings, key, moments, pick_device(device), None, progress)
    found = None if _parts(folder).exists() else _finished(folder, *keys)
    if found is not None and _of_these_weights(found, checkpoint):
        return found
    with only_writer(folder, "profile", waiting=progress):
        found = _finished(folder, *keys)  # by the one who was waited for
        if found is not None and _of_these_weights(found, checkpoint):
            _clear(folder)  # one who was killed before the end of this left them
            return found
        return _built(checkpoint, settings, key, moments, pick_device(device), folder, progress, found)


def _parts(folder: Path) -> Path:
    return folder / "partial"


def _clear(folder: Path) -> None:
    """Removes the parts of a profile that is finished."""
    for part in _parts(folder).glob("*.*"):
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        _parts(folder).rmdir()


def _of_these_weights(found: Profile, checkpoint) -> bool:
    """Whether a kept profile is of the weights that there are now: which a plan can reach, another version may have
    said otherwise."""
    rows = [(row["name"], row["compressible"]) for row in found.weights]
    same = rows == [(weight.name, weight.compressible) for weight in checkpoint.weights]
    said = found.document.get("coverage")
    return same and (said is None or said == coverage(checkpoint))


def _built(
    checkpoint,
    settings: dict,
    key: str,
    moments,
    device: str,
    folder: Path | None,
    progress: Progress,
    before: Profile | None = None,
) -> Profile:
    """The profile, made from the parts that are in `folder`, from one of `before` and from the checkpoint."""
    import torch

    began = time.monotonic()
    rows: list[dict] = []
    spectra: dict[str, np.ndarray] = {}
    work = seconds = 0.0
    if folder is not None and (crew := cluster.crew()) is not None:
        found = [(weight, part_file(folder, number)) for number, weight in enumerate(checkpoint.weights)]
        missing = [
            (weight, part)
            for weight, part in found
            if _read_part(part, key, weight.name)[0] is None and (before is None or _taken(before, weight)[0] is None)
        ]
        _spread(crew, checkpoint, missing, settings, key, moments, device, progress)
    for number, weight in enumerate(checkpoint.weights):
        part = None if folder is None else part_file(folder, number)
        row, arrays = _read_part(part, key, weight.name)
        if row is None and before is not None:
            row, arrays = _taken(before, weight)
        flops = _flops(weight.shape) * len(settings["metrics"])
        expected = flops * (seconds / work if work else 1 / FIRST_GUESS)
        long = row is None and expected > LONG_SECONDS
        message = f"{weight.shape[0]} × {weight.shape[1]}: about {expected:.0f} s" if long else ""
        progress("profile", number, len(checkpoint.weights), weight.name, message)
        if row is None:
            started = time.monotonic()
            row, arrays = _profile_weight(checkpoint, weight, settings, moments, device)
            work, seconds = work + flops, seconds + time.monotonic() - started
            if part is not None:
                _write_part(part, key, row, arrays)
        rows.append(row)
        spectra |= arrays
    progress("profile", len(rows), len(rows))
    groups = _groups(checkpoint, settings, moments, key, folder, progress) if settings["network"] == "tree" else None
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "identity": checkpoint.identity,
        "parameters": checkpoint.parameters,
        "block_parameters": checkpoint.block_parameters,
        "bytes": checkpoint.bytes,
        "settings": settings,
        "device": device,
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "seconds": round(time.monotonic() - began, 3),
        "weights": rows,
        "skipped": list(checkpoint.skipped),
    }
    if not checkpoint.missing:  # of an adapter's update there is no model to cover
        document["coverage"] = coverage(checkpoint)
    document |= {"kind": checkpoint.kind} if checkpoint.kind and not checkpoint.missing else {}
    document |= {} if groups is None else {"groups": groups}
    document |= {"stored": checkpoint.as_stored} if checkpoint.as_stored else {}
    document |= {"update": checkpoint.missing} if checkpoint.missing else {}
    profile = Profile(document, spectra)
    if folder is not None:
        profile.save(folder)
        _clear(folder)
    return profile


def _taken(before: Profile, weight) -> tuple[dict | None, dict[str, np.ndarray]]:
    """(row, spectra) of a weight from an earlier profile of the same model, where it was looked at in the same way."""
    row = next((row for row in before.weights if row["name"] == weight.name), None)
    if row is None or row["compressible"] != weight.compressible:
        return None, {}
    return row | weight.facts(), before.spectra_of(weight.name)


class Parts:
    """The profile of a checkpoint under some settings, in the folder that it is kept in, weight by weight in any order:
    for whoever comes by the moments of each once. `build_profile` puts it together."""

    def __init__(self, checkpoint, settings: dict, folder: Path, device: str) -> None:
        self.checkpoint, self.settings, self.folder, self.device = checkpoint, settings, folder, device
        self._key = file_key(checkpoint.fingerprint, checkpoint.identity, settings)
        self._numbers = {weight.name: number for number, weight in enumerate(checkpoint.weights)}

    @property
    def finished(self) -> bool:
        """Whether the whole profile is there, or the part of every weight that needs moments."""
        found = _finished(self.folder, self._key)
        if found is not None:
            return _of_these_weights(found, self.checkpoint)
        return all(self.has(weight.name) for weight in self.checkpoint.weights if weight.compressible)

    def has(self, name: str) -> bool:
        """Whether a weight's part is there."""
        return _read_part(part_file(self.folder, self._numbers[name]), self._key, name)[0] is not None

    def add(self, name: str, moments) -> None:
        """Makes and keeps a weight's part."""
        weight = self.checkpoint.weight(name)
        row, arrays = _profile_weight(self.checkpoint, weight, self.settings, moments, self.device)
        _write_part(part_file(self.folder, self._numbers[name]), self._key, row, arrays)

    def add_all(self, names: Sequence[str], moments) -> None:
        """Makes and keeps the parts of weights that are not there, on the workers of a cluster where one is joined."""
        missing = [name for name in names if not self.has(name)]
        if (crew := cluster.crew()) is None:
            for name in missing:
                self.add(name, moments)
            return
        wanted = [(self.checkpoint.weight(name), part_file(self.folder, self._numbers[name])) for name in missing]
        _spread(crew, self.checkpoint, wanted, self.settings, self._key, moments, self.device, silent)


def _spread(
    crew: cluster.Crew,
    checkpoint,
    wanted: Sequence[tuple[Any, Path]],
    settings: dict,
    key: str,
    moments,
    device: str,
    progress: Progress,
) -> None:
    """Makes the parts of these weights on the workers of a cluster, and keeps each in its file."""
    there = cluster.device_there(device)

    def parts() -> Iterator[tuple]:
        for weight, _ in wanted:
            given = Given.of(moments, [weight.name] if weight.compressible else [], settings["metrics"])
            yield Carried.of(checkpoint, [weight.name], crew), weight, settings, given, there

    for number, (row, arrays) in enumerate(crew.each(_profile_weight, parts(), device=there)):
        weight, part = wanted[number]
        progress("profile", number, len(wanted), weight.name)
        _write_part(part, key, row, arrays)


def part_file(folder: Path, number: int) -> Path:
    """Where weight number `number` of a profile is kept until all are there."""
    return _parts(folder) / f"{number:05d}.safetensors"


def _write_part(part: Path, key: str, row: dict, arrays: dict[str, np.ndarray]) -> None:
    write_spectra(part, arrays, {"key": key, "row": json.dumps(row)})


def _finished(folder: Path, *keys: str) -> Profile | None:
    """The profile of one of these keys that a folder holds, whole."""
    if kept_json(folder / "profile.json", "profile") is None:
        return None
    found = Profile.load(folder)
    return found if found.file_key in keys and has_tensors(folder / "spectra.safetensors") else None


def _profile_weight(checkpoint, weight, settings: dict, moments, device: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(row, spectra) of one weight."""
    matrix = checkpoint.read(weight.name)
    notes: list[str] = []
    wanted = settings["metrics"] if weight.compressible else ["weight"]
    if wanted != settings["metrics"]:
        notes.append("Only the weights that can be compressed have their activations looked at: weight spectrum alone.")
    chosen = {name: None if name == "weight" else moments.metric(weight.name, name) for name in wanted}
    if any(chosen.values()) and weight.expert is not None and (said := moments.borrowed(weight.name)):
        notes.append(said)
    cuts = _cuts(weight.shape, settings["network"]) if settings["network"] == "mpo" else []
    lattice = _lattice(weight.shape) if settings["network"] == "peps" and weight.compressible else None
    row = weight.facts() | {
        "dtype": weight.dtype,
        "compressible": weight.compressible,
        "notes": notes,
        "spectra": {},
        "bonds": [cut | {"spectra": {}} for cut in cuts],
    }
    if lattice is not None:
        row["lattice"] = {
            "grid": list(lattice.grid),
            "bonds": {},
            "sites": [f"{o}·{i}" for o, i in zip(lattice.out, lattice.in_, strict=True)],
        }
    spectra = {}
    for name, metric in chosen.items():
        damping = {} if metric is None else _damping(metric, notes.append)
        whitened = matrix if metric is None else _whitened(matrix, metric, device, weight.name, notes.append)
        factors = checkpoint.factors(weight.name) if metric is None else None
        if factors is not None:
            sigma = singular_values_of_product(*factors)
        else:
            sigma = singular_values(whitened, device, weight.name, notes.append)
        spectra[f"{weight.name}|{name}"] = sigma
        row["spectra"][name] = describe(sigma, weight.shape) | ({"damping": damping} if damping else {})
        if name == wanted[0] and (said := in_words(row["spectra"][name], weight.shape)):
            notes.append(said)
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
    from karipap_core.networks.tree.groups import group_names
    from karipap_core.spectra.metric import Metric

    groups = group_names(checkpoint.weights)
    found = []
    for number, members in enumerate(groups):
        progress("entropy of trees", number, len(groups), ", ".join(members))
        part = None if folder is None else _parts(folder) / f"tree-{number:05d}.json"
        found_part = (part and kept_json(part)) or {}
        if found_part.get("key") != key:
            matrices = [checkpoint.read(name) for name in members]
            edges = {}
            for name in settings["metrics"]:
                of = [Metric() if name == "weight" else moments.metric(member, name) for member in members]
                edges[name] = group_profile(members, matrices, of)
            found_part = json.loads(json.dumps({"key": key, "members": members, "edges": edges}))
            if part is not None:
                keep_json(part, found_part)
        found.append({"members": found_part["members"], "edges": found_part["edges"]})
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


def _read_part(file: Path | None, key: str, name: str) -> tuple[dict | None, dict[str, np.ndarray]]:
    """A weight finished by an earlier run of the same model and settings; (None, {}) where there is none."""
    if file is None or (found := kept_tensors(file, "numpy")) is None:
        return None, {}
    arrays, note = found
    row = json.loads(note["row"])
    return (row, arrays) if note["key"] == key and row["name"] == name else (None, {})
