"""The cores of one weight as they are stored, in a module: numbers, integers, or packed in a few bits.

Names in the state dict are those on disk: a plain core k is `cores.k`, a packed one `cores.k.codes`, `cores.k.scales`
and, but for fp8, `cores.k.zeros` (see `stored_tensors`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_map

from karipap_core.errors import unknown
from karipap_core.networks.base import Spec
from karipap_core.quantization.formats import Format, from_tensors

RUNTIMES = ("auto", "cores", "dense")
INDEX = "index"
SCALES = "scales"  # of a core in few bits, by their name on disk


def stored_tensors(spec: Spec) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """The tensors that hold a weight's own cores on disk: name → (shape, dtype), dtype None for the weight's own.

    Integers are packed without gaps: `codes` and `zeros` are one-dimensional uint8, `scales` (rows, groups) float16;
    fp8 has `codes` (rows, columns) float8_e4m3fn and `scales` (rows, 1) float16. Integer cores are int32.
    """
    found: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {}
    for k, (shape, form, own) in enumerate(zip(spec.core_shapes, spec.formats, spec.owned, strict=True)):
        if not own:
            continue
        if form is None or form == INDEX:
            found[f"cores.{k}"] = (tuple(shape), None if form is None else torch.int32)
        else:
            parts = Format.parse(form).shapes(*spec.core_matrix(k))
            found |= {f"cores.{k}.{part}": kind for part, kind in parts.items()}
    return found


def dequantized(form: str, matrix: tuple[int, int], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The matrix (rows, columns) that packed tensors stand for: float32, in which every scale · (code − zero) and every
    scale · code is exact."""
    return from_tensors(form, *matrix, tensors).dense()


def read_cores(spec: Spec, name: str, read: Callable[[str, str], torch.Tensor]) -> list[torch.Tensor]:
    """The cores of the weight `name` in float64 (those of an index as they are), from the tensors that store them.

    read: (weight, tensor) → tensor, for the tensors of `stored_tensors`. `weight` is `name`, or for cores that a group
    shares its first member (`spec.members[0]`), with which they are stored.
    """
    cores = []
    for k, (form, own) in enumerate(zip(spec.formats, spec.owned, strict=True)):
        owner, core = name if own else spec.members[0], f"cores.{k}"
        if form == INDEX:
            cores.append(read(owner, core))
        elif form is None:
            cores.append(read(owner, core).double())
        else:
            matrix = spec.core_matrix(k)
            parts = {part: read(owner, f"{core}.{part}") for part in Format.parse(form).shapes(*matrix)}
            cores.append(dequantized(form, matrix, parts).double().reshape(spec.core_shapes[k]))
    return cores


class Packed(nn.Module):
    """One core in a `formats.Format`, held as on disk and dequantized whenever it is asked for.

    Casting the module (`.to(dtype)`) changes the dtype that it is dequantized to, never what is stored.
    """

    like: torch.Tensor

    def __init__(
        self,
        shape: Sequence[int],
        matrix: tuple[int, int],
        form: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = tuple(shape)
        self.matrix, self.format = matrix, Format.parse(form)
        for name, (size, kind) in self.format.shapes(*matrix).items():
            self.register_buffer(name, torch.zeros(size, dtype=kind, device=device))
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Packed":
        for name, held in self.stored.items():
            moved = fn(held.data)
            moved = held.data.to(moved.device) if moved.dtype != held.dtype else moved
            if isinstance(held, nn.Parameter):
                held.data = moved
            else:
                self._buffers[name] = moved
        self.like = fn(self.like)
        return self

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """The tensors as on disk, by their names there; scales that were freed in float32."""
        held = {**self._buffers, **self._parameters}
        return {name: each for name, each in held.items() if name != "like" and each is not None}

    def free_scales(self) -> None:
        """Makes the scales, where the format has any, a parameter in float32, which can be trained while codes stay."""
        if (scales := self._buffers.pop(SCALES, None)) is not None:
            self.register_parameter(SCALES, nn.Parameter(scales.float()))

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    def forward(self, dtype: torch.dtype | None = None, index: torch.Tensor | None = None) -> torch.Tensor:
        """The whole core (`tensor`) or some rows of it (`rows`)."""
        return self.tensor(dtype) if index is None else self.rows(index, dtype)

    def tensor(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The core in its own shape, in `dtype` (default: the one that the module was cast to)."""
        return self.format.read(*self.matrix, self.stored).dense().reshape(self.shape).to(dtype or self.dtype)

    def rows(self, index: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`tensor(dtype)[index]` for integers `index`, of which only the rows asked for are dequantized where the
        format can cut them out; a table of a hundred thousand rows is looked up in this way."""
        found = self.format.some_rows(self.stored, self.matrix, self.shape[0], index.reshape(-1))
        if found is None:
            return self.tensor(dtype)[index]
        return found.dense().reshape(*index.shape, *self.shape[1:]).to(dtype or self.dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x Mᵀ (…, rows) for x (…, columns) and a core that is a matrix M (rows, columns)."""
        found = None
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in self.stored.values())
        if self.shape == self.matrix and not learns:
            found = self.format.product(x.reshape(-1, self.matrix[1]), *self.matrix, self.stored)
        return x @ self.tensor(x.dtype).T if found is None else found.reshape(*x.shape[:-1], self.matrix[0])

    @torch.no_grad()
    def set(self, values: torch.Tensor) -> None:
        """Rounds new values to the format's nearest."""
        stored = self.stored
        for name, tensor in self.format.rounded(values.reshape(self.matrix)).tensors().items():
            stored[name].copy_(tensor)


class Lazy:
    """A packed core that is dequantized as a whole only where somebody asks for more than its subclass knows."""

    def __init__(self, packed: Packed) -> None:
        self.packed, self.device = packed, packed.like.device

    def __getitem__(self, index):
        return self.packed()[index]

    def __getattr__(self, name: str):
        return getattr(self.packed(), name)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        given = tree_map(lambda each: each.packed() if isinstance(each, cls) else each, (arguments, keywords or {}))
        return function(*given[0], **given[1])


class LookedUp(Lazy):
    """A packed core for a look-up: indexed by a tensor it gives those rows alone."""

    def __getitem__(self, index):
        some = isinstance(index, torch.Tensor) and index.dtype != torch.bool
        return self.packed(index=index) if some else self.packed()[index]


class Multiplied(Lazy):
    """A packed core for a few vectors: `x @ core.T` reads the codes as they are stored (`Format.product`)."""

    @property
    def T(self) -> "Turned":
        return Turned(self.packed)


class Turned(Lazy):
    """The transpose of a packed matrix."""

    def __getitem__(self, index):
        return self.packed().T[index]

    def __getattr__(self, name: str):
        return getattr(self.packed().T, name)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if getattr(function, "__name__", "") in ("matmul", "__matmul__") and not isinstance(arguments[0], Lazy):
            return arguments[1].packed.product(arguments[0])
        whole = tree_map(lambda each: each.packed().T if isinstance(each, cls) else each, (arguments, keywords or {}))
        return function(*whole[0], **whole[1])


class Cores(nn.Module):
    """The cores of one weight in order: `cores[k]` is core k as a tensor, dequantized where it is packed.

    `borrowed` names cores that live in another weight's `Cores` (those that a group shares, those of a tied head):
    they are the same tensors, are no state of this module, and are saved and trained once.
    """

    lenders: dict[int, "Cores"]

    def __init__(
        self,
        spec: Spec,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        borrowed: Mapping[int, "Cores"] | None = None,
    ) -> None:
        super().__init__()
        self.forms = list(spec.formats)
        self.__dict__["lenders"] = dict(borrowed or {})  # no children: what they hold is not ours to save or move
        for k, (shape, form) in enumerate(zip(spec.core_shapes, self.forms, strict=True)):
            if k in self.lenders:
                continue
            if form is None:
                self.register_parameter(str(k), nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            elif form == INDEX:
                self.register_buffer(str(k), torch.zeros(shape, device=device, dtype=torch.int32))
            else:
                self.add_module(str(k), Packed(shape, spec.core_matrix(k), form, device, dtype))

    def __len__(self) -> int:
        return len(self.forms)

    def held(self, k: int) -> torch.Tensor | Packed:
        """Core k as it is held: a parameter, a buffer of integers, or a `Packed`."""
        k = range(len(self))[k]
        return self.lenders[k].held(k) if k in self.lenders else getattr(self, str(k))

    def __getitem__(self, k: int) -> torch.Tensor:
        held = self.held(k)
        return held.tensor() if isinstance(held, Packed) else held

    def __setitem__(self, k: int, value: torch.Tensor | Packed) -> None:
        k = range(len(self))[k]
        if k in self.lenders:
            self.lenders[k][k] = value
        else:
            setattr(self, str(k), value)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[k] for k in range(len(self)))

    def forward(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        lazy: type[Lazy] | None = None,
        only: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """What a network computes with: packed cores dequantized to `dtype` (or as they are, in a `lazy`), others as
        they are; borrowed ones on `device`, for their lender may be on another. `only` gives some of them.

        A module's call and no method, because tools that keep weights elsewhere bring them back when it is called.
        """
        found = []
        for k in range(len(self)) if only is None else only:
            if k in self.lenders:
                (core,) = self.lenders[k](dtype, device, lazy, (k,))
                core = core if device is None or core.device == device else core.to(device)
            else:
                core = getattr(self, str(k))
                if isinstance(core, Packed):
                    # What accelerate keeps elsewhere is here only while the core is called.
                    now = torch.compiler.is_compiling() or hasattr(core, "_hf_hook")
                    core = core(dtype) if lazy is None or now else lazy(core)
            found.append(core)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the cores give when nobody asks for one."""
        held = [self.held(k) for k, form in enumerate(self.forms) if form != INDEX]
        return held[0].dtype

    def raw(self) -> Iterator[torch.Tensor]:
        """Every tensor that the cores are made of, borrowed ones too."""
        for k in range(len(self)):
            held = self.held(k)
            if isinstance(held, Packed):
                yield from held.stored.values()
            else:
                yield held

    @property
    def nbytes(self) -> int:
        """Bytes of this module's own tensors: those on disk, were it saved now."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state_dict().values())

    @torch.no_grad()
    def set(self, cores: Sequence[torch.Tensor]) -> None:
        """Copies new values in, rounded to each core's dtype or format."""
        for k, values in zip(range(len(self)), cores, strict=True):
            held = self.held(k)
            held.set(values) if isinstance(held, Packed) else held.copy_(values)


def as_stored(spec: Spec, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Cores as they come back from disk: those in a format rounded to it (float32), the others as given."""
    found = []
    for k, (core, form) in enumerate(zip(cores, spec.formats, strict=True)):
        if form is not None and form != INDEX:
            core = Format.parse(form).rounded(core.reshape(spec.core_matrix(k))).dense().reshape(core.shape)
        found.append(core)
    return found


class CoresModule(nn.Module):
    """What a linear layer and an embedding have in common: Ŵ held as the cores of `spec`, formed or not."""

    formed: torch.Tensor | None

    def __init__(
        self,
        spec: Spec,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        runtime: str,
        borrowed: Mapping[int, Cores] | None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.cores = Cores(spec, device, dtype, borrowed)
        self.register_buffer("formed", None, persistent=False)
        self._formed_from: tuple = ()
        self.runtime = runtime

    @property
    def runtime(self) -> str:
        return self._runtime

    @runtime.setter
    def runtime(self, value: str) -> None:
        if value not in RUNTIMES:
            raise unknown("Runtime", value, RUNTIMES)
        self._runtime = value
        self.formed = None

    def set_cores(self, cores: Sequence[torch.Tensor]) -> None:
        """Copies new values into the cores, in their dtype or format and on their device."""
        self.cores.set(cores)

    @property
    def weight(self) -> torch.Tensor:
        """Ŵ (out, in), formed anew from the cores."""
        return self.spec.dense(self.cores())

    def _formed_weight(self) -> torch.Tensor:
        """Ŵ as it is kept, formed anew where a core has changed."""
        if torch.compiler.is_compiling():
            # Which core has changed is no matter for a graph. No decorator: it would import torch._dynamo, 1.2 seconds
            # of every start of a program that compiles nothing.
            return torch.compiler.disable(self._kept_weight)()
        return self._kept_weight()

    def _kept_weight(self) -> torch.Tensor:
        if torch.is_grad_enabled() and any(core.requires_grad for core in self.cores.raw()):
            return self.weight
        # A core may be written to (optimizer, load_state_dict) or replaced by another tensor (from_pretrained).
        made_from = tuple((id(tensor), tensor._version) for tensor in self.cores.raw())
        if self.formed is None or self._formed_from != made_from:
            self.formed, self._formed_from = self.weight.detach(), made_from
        return self.formed

    def _sizes(self) -> dict[str, int | float | str]:
        """What `report` says of a layer and of an embedding alike."""
        dense, stored = self.spec.n_out * self.spec.n_in, self.cores.nbytes
        dense_bytes = dense * self.cores.dtype.itemsize
        return {
            "spec": self.spec.describe(),
            "runtime": self._runtime,
            "parameters": self.spec.parameters,
            "dense_parameters": dense,
            "kept": self.spec.parameters / dense,
            "bytes": stored,
            "dense_bytes": dense_bytes,
            "memory_bytes": stored + dense_bytes * (self._runtime == "dense"),
        }
