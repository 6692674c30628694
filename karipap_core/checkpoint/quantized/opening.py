"""What every reader of a quantized form shares: finding the parts of a weight among the stored tensors, checking them
against each other from their headers, and giving the weight in their place."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.roles import CONV1D, place
from karipap_core.checkpoint.tensorfile import FLOATS, OpenedTensor, TensorInfo, opened, read_stored
from karipap_core.errors import InputError

if TYPE_CHECKING:  # torch takes a second to import
    import torch

WORDS = {name: word for word, name in FLOATS.items()}  # "bfloat16" → "BF16"
QUANTIZATION = ("quantization_config", "quantization")  # fields of a config.json
HALVES = ("F16", "BF16", "F32")


class Opening:
    """A quantized checkpoint while it is opened. A reader takes the parts of every packed weight out of `stored` and
    gives the weight itself; what it leaves is passed on as it is.

    `settings` is its quantization_config, `method` the name that the sentences have; `dtype` is safetensors' word for
    what weights open to: the dtype of its config, bfloat16 where that says none.
    """

    def __init__(self, config: dict[str, Any], settings: dict[str, Any], stored: dict[str, TensorInfo], name: str):
        self.config, self.settings, self.stored, self.name = config, settings, stored, name
        self.method = str(settings.get("quant_method"))
        inner = config.get("text_config") or {}
        tables, fields = (config, inner if isinstance(inner, dict) else {}), ("dtype", "torch_dtype")
        given = next((table[field] for table in tables for field in fields if table.get(field)), None)
        self.dtype = WORDS.get(str(given).removeprefix("torch."), "BF16")
        self.made: dict[str, OpenedTensor] = {}
        self.used: set[str] = set()

    def bases(self, *endings: str) -> list[tuple[str, str]]:
        """(what stands before, the ending) of every stored tensor whose name ends so, in the files' order."""
        return [
            (name.removesuffix(ending), ending)
            for name in self.stored
            for ending in endings
            if name.endswith(ending) and name not in self.used
        ]

    def part(self, name: str, dtypes: Iterable[str], of: str) -> TensorInfo:
        """A stored tensor that `of` needs, in one of these dtypes. Raises InputError where there is none."""
        info = self.maybe(name, dtypes)
        if info is None:
            raise InputError(
                f"{self.name} is quantized ({self.method}) and holds {of} without {name}: fetch it again, whole."
            )
        return info

    def maybe(self, name: str, dtypes: Iterable[str]) -> TensorInfo | None:
        """The same, None where it is not stored."""
        info = self.stored.get(name)
        if info is not None and info.dtype not in dtypes:
            raise self.wrong(name, f"is stored as {info.dtype}, not as {' or '.join(dtypes)}")
        return info

    def shaped(self, name: str, *shapes: tuple[int, ...]) -> None:
        """Raises InputError where a stored tensor has none of these shapes."""
        if self.stored[name].shape not in shapes:
            raise self.wrong(name, f"is {by(self.stored[name].shape)} where {by(shapes[0])} belongs to its weight")

    def wrong(self, name: str, what: str) -> InputError:
        """The error for a stored tensor that does not fit the others."""
        return InputError(
            f"{self.name} is quantized ({self.method}): {name} {what}. Its files and config.json are not of one model."
        )

    def setting(self, field: str, default: Any, *allowed: Any) -> Any:
        """A field of quantization_config, `default` where it is left out. Raises InputError for what is not allowed."""
        value = self.settings.get(field)
        value = default if value is None else value
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise self.unreadable(field, value, f"not one of {', '.join(map(str, allowed))}")
        return value

    def number(self, field: str, default: int | None = None) -> int:
        """A field of quantization_config that is a whole number above 0, or −1. Raises InputError for what is not."""
        value = self.settings.get(field, default)
        if type(value) is not int or not (value > 0 or value == -1):
            raise self.unreadable(field, value, "not a whole number above 0, or -1")
        return value

    def unreadable(self, field: str, value: Any, why: str) -> InputError:
        """The error for a field of quantization_config that cannot be followed."""
        said = "left out" if value is None else str(value)[:40]
        return InputError(
            f"{self.name} is quantized ({self.method}), and its quantization_config.{field} is {said}, {why}: "
            "it is not opened here. Give the model in 16 or 32 bits."
        )

    def give(
        self,
        name: str,
        shape: tuple[int, ...],
        make: "Callable[[int | None], torch.Tensor]",
        parts: Iterable[str],
        linear: bool = False,
        slices: bool = False,
    ) -> None:
        """Puts the tensor `name` in the place of the stored `parts`. `make(index)` makes it, in any floating dtype: it
        is rounded once, to `dtype`.

        `linear`: it is the (out, in) of a linear map, which some models keep as (in, out) where it is not quantized.
        `slices`: a stack, of which `make` reads no more than the slice that is asked for; whole it is made of these, so
        that no more than one of them is ever there in wider numbers. Raises InputError where the files hold it too.
        """
        parts = [part for part in parts if part in self.stored]
        if name in self.made or (name in self.stored and name not in parts):
            raise InputError(
                f"{self.name} is quantized ({self.method}) and holds {name} both packed ({parts[0]}) and as it is: "
                "fetch it again."
            )
        word = self.dtype
        turned = linear and self.config.get("model_type") in CONV1D and place(name)[0] is not None

        def rounded(index: int | None) -> "torch.Tensor":
            import torch

            if slices and index is None:
                return torch.stack([rounded(each) for each in range(shape[0])])
            made = make(index).T if turned else make(index)
            return made.to(getattr(torch, FLOATS[word])).contiguous()

        self.made[name] = opened(self.stored[parts[0]], shape[::-1] if turned else shape, rounded, word)
        self.used.update(parts)

    def drop(self, *endings: str) -> None:
        """Leaves out stored tensors that say something of activations or caches alone."""
        self.used.update(name for name in self.stored if name.endswith(endings))

    def alone(self, *endings: str) -> None:
        """Raises InputError where a packed part is left that no weight was made from."""
        for base, ending in self.bases(*endings):
            raise InputError(
                f"{self.name} is quantized ({self.method}) and holds {base}{ending} without the codes that it belongs "
                "to: fetch it again, whole."
            )

    @property
    def plain_config(self) -> dict[str, Any]:
        """The config of the opened model."""
        config = {key: value for key, value in self.config.items() if key not in QUANTIZATION}
        inner = config.get("text_config")
        if isinstance(inner, dict):
            config["text_config"] = {key: value for key, value in inner.items() if key != "quantization_config"}
        for field in ("dtype", "torch_dtype"):  # of the codes, which no model computes in
            if "float8" in str(config.get(field)) or "int" in str(config.get(field)):
                config[field] = FLOATS[self.dtype]
        return config

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors of the opened model."""
        return {name: info for name, info in self.stored.items() if name not in self.used} | self.made


def by(shape: tuple[int, ...]) -> str:
    return " × ".join(str(side) for side in shape) or "one number"


def read(info: TensorInfo, index: int | None = None) -> "torch.Tensor":
    """A stored tensor, or the slice `index` of its first dimension, of which alone the bytes are read."""
    if index is None:
        return read_stored(info)
    size = info.size // info.shape[0]
    return read_stored(TensorInfo(info.file, info.dtype, info.shape[1:], info.start + index * size, size))


def spread(scales: "torch.Tensor", shape: tuple[int, ...], block: tuple[int, ...]) -> "torch.Tensor":
    """Scales of blocks, one for each of their numbers: (⌈rows / r⌉, ⌈columns / c⌉) → (rows, columns), whatever stands
    before."""
    rows, columns = shape[-2:]
    scales = scales.repeat_interleave(block[0], -2)[..., :rows, :]
    return scales.repeat_interleave(block[1], -1)[..., :columns]


def stream(words: "torch.Tensor", count: int, items: int) -> "torch.Tensor":
    """Integers of `count` bits out of words of 32, which are one stream of bits, the lowest first: one may begin in one
    word and end in the next. (…, words) → (…, items), int32."""
    import torch

    if 32 % count == 0:  # none crosses from one word to the next
        shifts = torch.arange(0, 32, count, dtype=torch.int32)
        return (words.view(torch.int32)[..., None] >> shifts & (1 << count) - 1).flatten(-2)[..., :items]
    plain = words.to(torch.int64) & 0xFFFFFFFF
    plain = torch.cat([plain, torch.zeros_like(plain[..., :1])], -1)
    starts = torch.arange(items) * count
    word, offset = starts // 32, starts % 32
    pairs = plain[..., word] | (plain[..., word + 1] << 32)
    return ((pairs >> offset) & ((1 << count) - 1)).to(torch.int32)
