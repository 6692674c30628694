"""A model on disk: the name, role and shape of each weight, read one at a time, and a fingerprint of it all."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.files import SETTINGS
from karipap_core.checkpoint.form import Form
from karipap_core.checkpoint.kinds import PREDICTS, Kind, kind_of
from karipap_core.checkpoint.layouts import Layouts
from karipap_core.checkpoint.roles import TABLES, compressible, listing_key, place, role_of, towers_of
from karipap_core.checkpoint.tensorfile import FLOATS, OpenedTensor, TensorInfo, chunks
from karipap_core.errors import InputError, StorageError
from karipap_core.reading import open_file
from karipap_core.terminal import size
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

if TYPE_CHECKING:  # torch takes a second to import
    import torch

SHORT = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
BUFFERS = re.compile(
    r"(?:^|\.)(?:inv_freq|position_ids|token_type_ids|e_score_correction_bias|masked_bias|slope_rate|query_decay|key_decay"
    r"|diagonal_decay|num_batches_tracked|running_mean|running_var)$"
)
BUFFER = "a buffer, not a parameter"
CAUSAL_MASK = re.compile(r"(?:^|\.)(?:attn|attention)\.bias$")


@dataclass(frozen=True)
class Weight:
    """One matrix W of `y = W x`; `shape` is (out, in) however it is stored, `dtype` is how it is stored.

    `name` is the module's name, without ".weight": the key of plans, profiles and cores. `tensor` is the name on
    disk. A slice of a stacked expert tensor has that slice's number as `index` and at the end of its name. `tower`:
    see `roles.towers_of`; "" in models that have one.
    """

    name: str
    tensor: str
    layer: int | None
    role: str
    shape: tuple[int, int]
    dtype: str
    transposed: bool
    expert: int | None
    index: int | None
    compressible: bool
    tower: str = ""

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        return self.parameters * (4 if self.dtype == "float32" else 2)

    def facts(self) -> dict[str, Any]:
        """The beginning of a document's row about this weight: name, layer, role, expert, tower (where the model has
        several), shape and parameters."""
        keys = ("name", "layer", "role", "expert", *(("tower",) if self.tower else ()))
        return {key: getattr(self, key) for key in keys} | {"shape": list(self.shape), "parameters": self.parameters}


class Checkpoint:
    """A model on disk, opened from its headers alone. Make one with `open_checkpoint`.

    `name` (as shown), `path` (folder or file), `config` (config.json, {} without one), `kind` (see `kind_of`; None
    where no config says it), `weights`, `skipped` (a list of {"name", "why"}), `tensors` (name → TensorInfo),
    `parameters` and `bytes` (the whole model, tied tensors once), `block_parameters` (of what can be compressed).
    `form` says how the files store it where that is not how the model computes (quantized …): then `tensors` are those
    that it opens to, `form.stored` those in the files. `left_out` gives the weights that look compressible and that no
    plan can reach, with the reason, `reachable_tables` the tables of tokens that one can, and `not_run` why the model
    cannot be run on text: see reach.py; None, () and None until that has been found out. `home` is the folder that
    config.json and tokenizer are in.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        config: dict,
        tensors: dict[str, TensorInfo],
        form: Form | None = None,
        home: Path | None = None,
    ):
        self.name, self.path, self.config, self.tensors, self.form = name, path, config, tensors, form
        self.home = home or (path if path.is_dir() else path.parent)
        self.weights: list[Weight] = []
        self.skipped: list[dict[str, str]] = []
        self.left_out: dict[str, str] | None = None
        self.reachable_tables: tuple[str, ...] = ()
        self.not_run: str | None = None
        self._handles: dict[Path, Any] = {}
        self._sort_out()

    def __repr__(self) -> str:
        ready = sum(weight.compressible for weight in self.weights)
        kind = (
            f"{self.kind} {self.config.get('model_type', '')}".strip() if self.kind else "without a known architecture"
        )
        return (
            f"<Checkpoint {self.name}, {kind}: {self.parameters:,} parameters, {size(self.bytes)}, {len(self.weights)} "
            f"weights, of which {ready} can be compressed>"
        )

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the model knows: rows of its table or head; None where it has neither."""
        return max((weight.shape[0] for weight in self.weights if weight.role in TABLES), default=None)

    def weights_are(self, weights: list[Weight]) -> None:
        """Takes these for the weights, and what of them is compressible for what counts as blocks."""
        self.weights = sorted(
            weights, key=lambda each: listing_key(each.name, each.layer, each.expert, each.role, each.tower)
        )
        self._by_name = {weight.name: weight for weight in self.weights}
        self.block_parameters = sum(weight.parameters for weight in self.weights if weight.compressible)

    def _sort_out(self) -> None:
        """Fills `weights`, `skipped`, `parameters`, `bytes` and `tied` from the headers."""
        mixture = any(".experts." in name or "block_sparse_moe." in name for name in self.tensors)
        self.tied = self._tied()
        self.parameters = self.bytes = 0
        self._layouts = Layouts(self.config, {name: info.shape for name, info in self.tensors.items()})
        for tensor, info in self.tensors.items():
            if tensor in self.tied:
                self.skipped.append({"name": tensor, "why": f"tied to {self.tied[tensor]}, counted once"})
                continue
            # Old GPT-2 files keep the causal mask under a bias's name: what tells it is that it is no vector.
            if BUFFERS.search(tensor) or (CAUSAL_MASK.search(tensor) and len(info.shape) > 1):
                self.skipped.append({"name": tensor, "why": BUFFER})
                continue
            self.parameters += info.items if "F" in info.dtype else 0
            self.bytes += info.size
            self.weights += self._sorted(tensor, info, mixture)
        towers = towers_of(weight.name for weight in self.weights if weight.compressible)
        self.weights_are([replace(weight, tower=towers.get(weight.name, "")) for weight in self.weights])
        self.skipped.sort(key=lambda entry: entry["name"])

    def _tied(self) -> dict[str, str]:
        """Head tensors that repeat the embedding table: {head tensor: embedding tensor}."""
        if self.config.get("tie_word_embeddings") is False:
            return {}
        roles = {tensor: role_of(tensor.removesuffix(".weight"), False) for tensor in self.tensors}
        tables = [tensor for tensor, role in roles.items() if role == "embed" and tensor.endswith(".weight")]
        heads = [tensor for tensor, role in roles.items() if role == "head" and tensor.endswith(".weight")]
        same = {head: [table for table in tables if self._same_bytes(head, table)] for head in heads}
        return {head: found[0] for head, found in same.items() if found}

    def _same_bytes(self, one: str, other: str) -> bool:
        """A config that leaves `tie_word_embeddings` out does not settle it, and one that says so may be wrong."""
        infos = self.tensors[one], self.tensors[other]
        if (infos[0].dtype, infos[0].shape) != (infos[1].dtype, infos[1].shape):
            return False
        return all(mine == theirs for mine, theirs in zip(chunks(infos[0]), chunks(infos[1]), strict=True))

    def _sorted(self, tensor: str, info: TensorInfo, mixture: bool) -> list[Weight]:
        """The weights in one tensor: one, or the slices of a stack; none where it holds none, which `skipped` says."""
        if info.dtype not in FLOATS:
            return self._skip(tensor, f"stored as {info.dtype}; only BF16, F16 and F32 are read as weights")
        name = tensor.removesuffix(".weight")
        role, (layer, expert) = role_of(name, mixture), place(name)
        ready = compressible(role)
        layout = self._layouts.of(tensor, info.shape, role, ready)
        if layout is None:
            return self._skip(tensor, _why_not(tensor, info.shape))
        if 0 in info.shape:
            return self._skip(tensor, "empty")
        shape, dtype, turned = layout.shape, FLOATS[info.dtype], layout.transposed
        if layout.count is None:
            return [Weight(name, tensor, layer, role, shape, dtype, turned, expert, None, ready)]
        numbers = [(index, index if layout.experts else None) for index in range(layout.count)]
        return [
            Weight(f"{name}.{index}", tensor, layer, role, shape, dtype, turned, expert, index, ready)
            for index, expert in numbers
        ]

    def _skip(self, tensor: str, why: str) -> list[Weight]:
        self.skipped.append({"name": tensor, "why": why})
        return []

    @cached_property
    def kind(self) -> Kind | None:
        return kind_of(self.config, self._has_head) if self.config else None

    @property
    def predicts(self) -> bool:
        """Whether the model predicts tokens, so that it has a loss; of others the outputs are compared."""
        return self.kind in PREDICTS

    @property
    def buffers(self) -> set[str]:
        """Tensors that are no parameters, which a model makes anew: masks, positions."""
        return {entry["name"] for entry in self.skipped if entry["why"] == BUFFER}

    @property
    def compressed(self) -> bool:
        """Whether this is a folder that Karipap wrote."""
        settings = self.config.get("quantization_config")
        return settings is not None and settings.get("quant_method") == "karipap"

    @property
    def _has_head(self) -> bool:
        return bool(self.tied) or any(weight.role == "head" for weight in self.weights)

    def weight(self, name: str) -> Weight:
        """The weight of that name. Raises InputError where the model has none."""
        if name not in self._by_name:
            raise InputError(f"{self.name} has no weight named {name}.")
        return self._by_name[name]

    def read(self, name: str):
        """W of a weight as a tensor (out, in) in the stored dtype; mapped from the file, not to be written to.

        Raises InputError where there is no such weight or it holds NaN or infinity.
        """
        import torch

        weight = self.weight(name)
        info = self.tensors[weight.tensor]
        if weight.index is None:
            matrix = self.read_tensor(weight.tensor).flatten(1)  # of a side with several dimensions one
        else:
            high = weight.shape[1 if weight.transposed else 0]
            flat = slice(weight.index * high, (weight.index + 1) * high)
            if isinstance(info, OpenedTensor):
                matrix = info.make(weight.index) if len(info.shape) == 3 else info.make(None)[flat]
            else:
                with self._readable(weight.tensor) as file:
                    matrix = file.get_slice(weight.tensor)[weight.index if len(info.shape) == 3 else flat]
        if not torch.isfinite(matrix).all():
            raise self.damaged(name)
        return matrix.T if weight.transposed else matrix

    def damaged(self, name: str) -> InputError:
        """The error for a tensor that holds what is no number."""
        return InputError(f"Weight {name} of {self.name} holds NaN or infinity: the checkpoint is damaged.")

    def read_tensor(self, tensor: str):
        """Any tensor as stored, by its name on disk. Raises InputError where there is none, or it cannot be read."""
        if tensor not in self.tensors:
            raise InputError(f"{self.name} has no tensor named {tensor}.")
        info = self.tensors[tensor]
        if isinstance(info, OpenedTensor):
            return info.make(None)
        with self._readable(tensor) as file:
            return file.get_tensor(tensor)

    @contextmanager
    def _readable(self, tensor: str) -> Iterator[Any]:
        """The open file that a tensor is in; what safetensors raises becomes one sentence."""
        from safetensors import SafetensorError, safe_open

        file = self.tensors[tensor].file
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(file, framework="pt")
            yield self._handles[file]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read by safetensors ({error}): fetch it again.") from None

    @property
    def missing(self) -> str:
        """Why this is no model but the update that an adapter makes, in a sentence; "" for a model."""
        return self.form.update if self.form else ""

    def factors(self, name: str) -> "tuple[torch.Tensor, torch.Tensor] | None":
        """(out, r) and (r, in) whose product W of a weight is, where it is stored as these; else None."""
        made = self.form.factors.get(self.weight(name).tensor) if self.form else None
        return made() if made else None

    @property
    def stored(self) -> dict[str, TensorInfo]:
        """The tensors in the files, by their names there."""
        return self.form.stored if self.form else self.tensors

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors in the files, as they are."""
        return sum(info.size for info in self.form.stored.values()) if self.form else self.bytes

    @property
    def as_stored(self) -> dict[str, Any] | None:
        """{"form": "int4 (GPTQ, g128), opened to bf16", "bytes": of the files} where the files store the model in
        another form than it computes with, None where not."""
        if self.form is None:
            return None
        made = Counter(info.dtype for info in self.tensors.values() if isinstance(info, OpenedTensor))
        to = f", opened to {SHORT[made.most_common(1)[0][0]]}" if made else ""
        return {"form": self.form.words + to, "bytes": self.stored_bytes}

    @property
    def settings_files(self) -> list[Path]:
        """The files beside the tensors that decide about what the model puts out, those that are there."""
        return [file for name in SETTINGS if (file := self.home / name).is_file()]

    @cached_property
    def identity(self) -> str:
        """16 hex digits that tell this model from all others: the `fingerprint`, and the SHA-256 of `settings_files`.

        Everything measured goes by this and not by the fingerprint alone: the same tensors under another `rope_theta`
        or another tokenizer are another model. Raises InputError for a file that cannot be read.
        """
        sums = {}
        for path in self.settings_files:
            with open_file(path) as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return settings_key({"tensors": self.fingerprint, "files": sums})

    @property
    def key(self) -> str:
        """Names the model's folder in the workspace: the fingerprint's first 32 digits, then the identity."""
        return f"{self.fingerprint[:32]}-{self.identity}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over every stored tensor's name, dtype, shape and bytes, by name, and over the recipe that
        opens them: blind to how the model is sharded.

        Kept in the workspace by the files' paths, sizes and times, so that a large model is hashed once.
        """
        files = sorted({info.file for info in self.stored.values()})
        facts = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        recipe = {"recipe": self.form.recipe} if self.form else {}
        file = Workspace().cache_file("fingerprints", settings_key({"files": facts} | recipe))
        known = kept_json(file)
        if known is not None and "fingerprint" in known:
            return str(known["fingerprint"])
        digest = hashlib.sha256()
        if recipe:
            digest.update(json.dumps(recipe, sort_keys=True).encode())
        for name in sorted(self.stored):
            info = self.stored[name]
            digest.update(json.dumps([name, info.dtype, list(info.shape)]).encode())
            for data in chunks(info):
                digest.update(data)
        with suppress(InputError, StorageError):  # a workspace that cannot be written only costs the time to hash again
            keep_json(file, {"fingerprint": digest.hexdigest(), "model": self.name})
        return digest.hexdigest()


def _why_not(tensor: str, shape: tuple[int, ...]) -> str:
    """Why a tensor is no weight."""
    if not tensor.endswith(".weight"):
        matrix = len(shape) > 1
        return "a parameter that no linear layer holds as its weight" if matrix else "a bias or another vector"
    return "one-dimensional (a norm's scale)" if len(shape) == 1 else f"{len(shape)}-dimensional, not a matrix"
