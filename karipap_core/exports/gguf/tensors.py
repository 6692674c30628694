"""The tensors of a model as a GGUF file has them: their names, the order of their rows, and ggml's type for each."""

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from karipap_core.checkpoint.gguf.config import heads_of
from karipap_core.checkpoint.gguf.layouts import DO, OF_ROWS
from karipap_core.checkpoint.gguf.tensors import WHOLE
from karipap_core.checkpoint.tensorfile import FLOATS, Piece
from karipap_core.errors import InputError
from karipap_core.exports.exporter import error_of
from karipap_core.exports.gguf import blocks
from karipap_core.exports.gguf.entries import Described, check_tensors, described, read_again, rotation_tensors
from karipap_core.exports.gguf.file import FLOAT_BYTES, Tensor, float_bytes
from karipap_core.exports.gguf.vocabulary import vocabulary
from karipap_core.exports.source import Part, Source

if TYPE_CHECKING:
    import torch

NOT_WRITTEN = re.compile(r".*(?:rotary_emb\.inv_freq|\.attn\.(?:masked_)?bias|\.attention\.(?:masked_)?bias)")
# Tensors that llama.cpp's kernels take in 32 bits alone, besides all vectors.
ONLY_F32 = re.compile(r".*(?:norm|norm_2|ffn_gate_inp|ffn_gate_inp_shexp|conv1d|shortconv\.conv|ssm_a|ssm_d)(?:\.\w+)?")
ONLY_F32_TABLE = "position_embd.weight"
PREFIXES = ("model.", "transformer.")  # that a checkpoint of the base model alone leaves out
TABLE = "token_embd.weight"
HALVES = ("F16", "BF16")
OF_COLUMNS = "tiled columns"
TURNED = ("transposed", "each transposed")  # layouts that a `Part` does not have: it is (out, in)
STACKED = "llama.cpp has one tensor for all experts, with one type"
NETWORK = "llama.cpp has no word for this network"


@dataclass(frozen=True)
class Target:
    """A tensor of the file and what it is made of: tensors of the ordinary model, several where experts lie one behind
    the other. turn : which of the columns, in turns, of a tensor that holds two."""

    name: str
    sources: tuple[str, ...]
    layout: str | None
    stacked: bool = False
    turn: int | None = None


@dataclass(frozen=True)
class Choice:
    """How a compressed weight is stored: ggml's word, the relative error, why it is not as its integers are, and the
    type of its pair in an adapter ("" where it has none there)."""

    kind: str
    error: float
    why: str = ""
    adapter: str = ""


class Model:
    """A compressed folder in GGUF's words. Raises InputError where llama.cpp has no place for it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pieces = source.pieces()
        self.words: Described = described(source.config)
        self.heads = heads_of(self.words.header)
        self.owners: dict[str, str] = {}  # tensor → the compressed weight that it is
        self.members: dict[str, list[str]] = {}  # tensor → the compressed weights in it
        for name in source.names:
            held = source.held(name)
            self.members.setdefault(held.tensor, []).append(name)
            if not held.stack:
                self.owners[held.tensor] = name
        self.targets = list(self._targets())
        rows = next((self.shapes[target.name][0] for target in self.targets if target.name == TABLE), 0)
        check_tensors(self.words, self.shapes)
        told, notes = vocabulary(source.folder, rows)
        self.entries = self.words.entries | told
        self.notes = read_again(self.words, self.shapes) + notes
        self._chosen: dict[str, dict[str, Choice]] = {}

    def _targets(self) -> Iterator[Target]:
        found: dict[tuple[str, str | None, bool, int | None], dict[int, str]] = {}
        patterns = list(self._patterns())
        for name in self.pieces:
            if NOT_WRITTEN.fullmatch(name) or (name == "lm_head.weight" and self.tied):
                continue
            matched = [(each, stem, turn) for pattern, stem, turn in patterns if (each := pattern.fullmatch(name))]
            if not matched:
                raise InputError(f"llama.cpp has no place for {name} in a model of the type {self.words.name}.")
            for each, stem, turn in matched:
                groups = each.groupdict()
                layout = self.words.architecture.layout.get(stem)
                suffix = (groups["suffix"] or "").replace("_", ".")
                if name.removesuffix(groups["suffix"] or "").endswith(WHOLE) or turn is not None:
                    suffix = suffix or ".weight"
                layout = None if suffix == ".bias" and layout not in OF_ROWS else layout
                stored = f"blk.{groups['n']}.{stem}{suffix}" if groups.get("n") else f"{stem}{suffix}"
                expert = groups.get("e")
                key = stored, layout, expert is not None, turn
                found.setdefault(key, {})[int(expert or 0)] = name
        for (stored, layout, stacked, turn), members in found.items():
            yield Target(stored, tuple(members[number] for number in sorted(members)), layout, stacked, turn)

    def _patterns(self) -> Iterator[tuple[re.Pattern[str], str, int | None]]:
        """(what a name of transformers looks like, its stem in the file, its turn)."""
        architecture = self.words.architecture
        known: list[tuple[str, str, int | None]] = [(stem, target, None) for stem, target in architecture.names.items()]
        known += [(stem, target, turn) for stem, (target, turn) in architecture.turns.items()]
        for stem, target, turn in known:
            pattern = re.escape(target).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{e\}", r"(?P<e>\d+)")
            for prefix in PREFIXES:
                if target.startswith(prefix):
                    pattern = f"(?:{re.escape(prefix)})?{pattern.removeprefix(re.escape(prefix))}"
            yield re.compile(rf"{pattern}(?P<suffix>\.weight|\.bias|_bias)?"), stem, turn

    @property
    def tied(self) -> bool:
        return self.words.architecture.tied or bool(self.words.config.get("tie_word_embeddings"))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and sides of the file's tensors."""
        return {target.name: self.shape(target) for target in self.targets}

    def shape(self, target: Target) -> tuple[int, ...]:
        """Sides of a tensor of the file, found on one without numbers."""
        import torch

        with torch.device("meta"):
            empty = [torch.empty(self.pieces[name].shape) for name in target.sources]
        return tuple(self._laid_out(target, empty).shape)

    def _laid_out(self, target: Target, tensors: "list[torch.Tensor]") -> "torch.Tensor":
        """Tensors of the ordinary model as the file has them."""
        import torch

        if target.turn is not None:
            (both,) = tensors
            return (both.transpose(-1, -2) if both.ndim == 3 else both)[:, target.turn :: 2]
        if target.layout:
            tensors = [DO[target.layout](tensor, self.heads) for tensor in tensors]
        return torch.stack(tensors) if target.stacked else tensors[0]

    def values(self, target: Target) -> "torch.Tensor":
        """The numbers of a tensor of the file."""
        return self._laid_out(target, [self._original(name) for name in target.sources])

    def _original(self, tensor: str) -> "torch.Tensor":
        """A tensor of the ordinary model; of a compressed weight the exact Ŵ."""
        if tensor in self.owners:
            held, W = self.source.held(self.owners[tensor]), self.source.exact(self.owners[tensor])
            return (W.T if held.transposed else W).reshape(held.shape)
        return read_piece(self.pieces[tensor])

    # How each is stored.

    def choices(self, target: Target) -> dict[str, Choice]:
        """Of the compressed weights in a tensor of the file, how each is stored: one type for all of them."""
        if target.name not in self._chosen:
            self._chosen[target.name] = self._choose(target)
        return self._chosen[target.name]

    @property
    def has_adapter(self) -> bool:
        return any(choice.adapter for target in self.targets for choice in self.choices(target).values())

    def _choose(self, target: Target) -> dict[str, Choice]:
        names = [name for tensor in target.sources for name in self.members.get(tensor, ())]
        if not names:
            return {}
        if self._only_f32(target):
            return self._dense(names, ("F32",), "llama.cpp takes it in 32 bits alone")
        parts = [self.source.part(name) for name in names]
        if all(part.grid is None for part in parts):
            return self._dense(names, HALVES, "" if self.source.plain else NETWORK)
        whole = len(names) == len(target.sources) and not any(part.held.stack for part in parts)
        found = self._in_blocks(target, parts) if whole else None
        return found or self._dense(names, HALVES, self._why_dense(target, parts))

    def _why_dense(self, target: Target, parts: list[Part]) -> str:
        part = next(part for part in parts if part.grid is not None)
        assert part.grid is not None
        if part.shape[1] % blocks.BLOCK:
            return f"its {part.shape[1]} columns do not divide into blocks of {blocks.BLOCK}"
        if self.grid(target, part) is None:
            return f"its groups of {part.grid.group} do not hold whole blocks of {blocks.BLOCK}"
        return STACKED

    def _in_blocks(self, target: Target, parts: list[Part]) -> dict[str, Choice] | None:
        """None where a weight is no grid, or several with corrections lie in one tensor."""
        if any(part.grid is None for part in parts) or (len(parts) > 1 and any(part.pair for part in parts)):
            return None
        grids = [self.grid(target, part) for part in parts]
        if any(grid is None for grid in grids):
            return None
        kinds = [blocks.best_of(grid) for grid in grids if grid is not None]
        kind = max(kinds, key=blocks.BYTES.__getitem__)
        if len(parts) > 1 and not all(blocks.fits(grid, kind) for grid in grids if grid is not None):
            kind = "Q8_0"
        found = {}
        for part, grid in zip(parts, grids, strict=True):
            assert grid is not None
            stored, wanted, adapter = blocks.values(grid, kind), grid.dense(), ""
            if part.pair is not None:
                adapter, left, right = self._pair(target, part)
                exact = self._ordered(target, *part.pair)
                wanted = wanted + exact[0] @ exact[1]
                stored = stored + left.float() @ right.float()
            found[part.name] = Choice(kind, error_of(stored, wanted), adapter=adapter)
        return found

    def grid(self, target: Target, part: Part) -> "blocks.Grid | None":
        assert part.grid is not None
        return blocks.in_blocks(part.grid, partial(self._rows, target))

    def _rows(self, target: Target, matrix: "torch.Tensor") -> "torch.Tensor":
        """A matrix (out, …) of a weight in the order that the file has its rows in."""
        layout = target.layout
        return matrix if layout is None or layout in TURNED else DO[layout](matrix, self.heads)

    def _ordered(self, target: Target, left: "torch.Tensor", right: "torch.Tensor"):
        """L and R of a weight whose rows or columns are in the file's order."""
        if target.layout == OF_COLUMNS:
            return left, DO[OF_COLUMNS](right, self.heads)
        return self._rows(target, left), right

    def _pair(self, target: Target, part: Part) -> "tuple[str, torch.Tensor, torch.Tensor]":
        """(type, L, R) in the file's order as an adapter holds them: in float16 where that is exact, and where they
        come from few bits, whose rounding is coarser."""
        import torch

        assert part.pair is not None
        half = part.packed or all(torch.equal(each.half().float(), each) for each in part.pair)
        left, right = self._ordered(target, *part.pair)
        kind = torch.float16 if half else torch.float32
        return "F16" if half else "F32", left.to(kind), right.to(kind)

    def _dense(self, names: list[str], kinds: tuple[str, ...], why: str) -> dict[str, Choice]:
        """Weights of one tensor in that of the types that holds the worst of them best."""
        import torch

        errors: dict[str, list[float]] = {kind: [] for kind in kinds}
        for name in names:
            exact = self.source.exact(name)
            for kind, found in errors.items():
                found.append(error_of(exact.to(getattr(torch, FLOATS[kind])), exact))
        kind = min(kinds, key=lambda kind: max(error if math.isfinite(error) else math.inf for error in errors[kind]))
        return {name: Choice(kind, error, why) for name, error in zip(names, errors[kind], strict=True)}

    def _only_f32(self, target: Target) -> bool:
        vector = len(self.shapes[target.name]) < 2 or target.name.endswith(".bias")
        return vector or target.name == ONLY_F32_TABLE or ONLY_F32.fullmatch(target.name) is not None

    # What is written.

    def tensors(self) -> "tuple[list[Tensor], list[Tensor]]":
        """(those of the model's file, those of the adapter's)."""
        model, adapter = rotation_tensors(self.words), []
        for target in self.targets:
            chosen = self.choices(target)
            kind = self._kind(target, chosen)
            model.append(Tensor(target.name, self.shapes[target.name], kind, partial(self._bytes, target, kind)))
            for name, choice in chosen.items():
                adapter += self._adapter(target, name, choice) if choice.adapter else []
        return model, adapter

    def _kind(self, target: Target, chosen: dict[str, Choice]) -> str:
        """The one type of a tensor: that of the compressed weights in it, else its own."""
        for choice in chosen.values():
            return choice.kind
        dtype = self.pieces[target.sources[0]].dtype
        return "F32" if self._only_f32(target) or dtype not in FLOAT_BYTES else dtype

    def _bytes(self, target: Target, kind: str) -> np.ndarray:
        if kind in FLOAT_BYTES:
            return float_bytes(self.values(target), kind)
        found = []
        for tensor in target.sources:
            grid = self.grid(target, self.source.part(self.owners[tensor]))
            assert grid is not None
            found.append(blocks.packed(grid, kind))
        return np.stack(found) if target.stacked else found[0]

    def _adapter(self, target: Target, name: str, choice: Choice) -> list[Tensor]:
        part = self.source.part(name)

        def make(which: str) -> np.ndarray:
            _, left, right = self._pair(target, self.source.part(name))
            return float_bytes(left if which == "left" else right, choice.adapter)

        (rows, columns), rank = part.shape, part.rank
        right = Tensor(f"{target.name}.lora_a", (rank, columns), choice.adapter, partial(make, "right"))
        return [right, Tensor(f"{target.name}.lora_b", (rows, rank), choice.adapter, partial(make, "left"))]


def read_piece(piece: Piece) -> "torch.Tensor":
    """The numbers of a tensor that is otherwise written to a file."""
    import torch

    if piece.dtype not in FLOATS:
        raise InputError(f"Tensor {piece.name} holds {piece.dtype}, which is not written as GGUF.")
    file = io.BytesIO()
    piece.write(file)
    return torch.frombuffer(file.getbuffer(), dtype=getattr(torch, FLOATS[piece.dtype])).reshape(piece.shape)
