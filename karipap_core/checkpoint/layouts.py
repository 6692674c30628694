"""How a stored tensor holds matrices that multiply activations: one or several, as they are or turned."""

import math
import re
from dataclasses import dataclass

from karipap_core.checkpoint.roles import CONV1D, PATCHES, place

# Models that stack experts as (E, in, out).
EXPERTS_IN_OUT = {"gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "qwen3_vl_moe", "qwen3_vl_moe_text"}
# Three-dimensional tensors that stack matrices, one for each expert.
EXPERT_STACK = re.compile(r"(?:experts?\.\w+(?:\.weight)?|(?:block_sparse_moe|mlp)\.(?:input|output)_linear\.weight)$")
FLAT_STACK = re.compile(r"experts\.mlp\.[wv][12]$")  # DBRX's: experts' (inner, hidden) slices below one another
GROUPED = re.compile(r"(?:\.wo_a|\.o_a_proj)\.weight$")  # DeepSeek-V4's: a matrix for each group of heads, likewise

# Parameters that a model multiplies activations by itself, without a linear layer around them, by the ends of their
# names and their dimensions: one matrix (`OPERANDS`), or one for each head (`HEADS`); `True` where they are (in, out).
# A side of several dimensions is one side.
OPERANDS: tuple[tuple[re.Pattern[str], int, bool], ...] = tuple(
    (re.compile(rf"(?:^|\.){pattern}$"), dimensions, turned)
    for pattern, dimensions, turned in (
        (r"rel_attn\.[qkvr]", 3, True),  # XLNet's
        (r"rel_attn\.o", 3, False),
        (r"r_kernel", 3, True),  # Funnel's
        (r"(?:hc_\w*fn|\w+_hc\.fn)", 2, False),  # of hyper-connections: DeepSeek-V4's, HunYuan-V4's
        (r"rel_logits_proj\.proj", 2, True),  # Inkling's
        (r"mm_input_projection_weight", 2, True),  # Gemma 3's
    )
)
PACKED = re.compile(r"(?:^|\.)in_proj_weight$")  # of torch's attention: queries', keys' and values' below one another
HEADS: tuple[tuple[re.Pattern[str], bool], ...] = tuple(
    (re.compile(rf"(?:^|\.){pattern}$"), turned)
    for pattern, turned in (
        (r"mamba\.(?:x|dt)_proj_weight", False),  # Zamba's
        (r"rg_lru\.(?:input|recurrent)_gate_weight", True),  # RecurrentGemma's
    )
)


@dataclass(frozen=True)
class Layout:
    """shape: (out, in) of a matrix; count: how many there are, None for one that is no slice; transposed: whether they
    are stored (in, out); experts: whether each is an expert's."""

    shape: tuple[int, int]
    count: int | None = None
    transposed: bool = False
    experts: bool = False


def operand(name: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout of a parameter that its model multiplies by itself, None where the name is of no such parameter."""
    for pattern, dimensions, turned in OPERANDS:
        if len(shape) == dimensions and pattern.search(name):
            sides = shape[0], math.prod(shape[1:])
            return Layout(sides[::-1] if turned else sides, None, turned)
    for pattern, turned in HEADS:
        if len(shape) == 3 and pattern.search(name):
            return Layout((shape[2], shape[1]) if turned else (shape[1], shape[2]), shape[0], turned)
    if PACKED.search(name) and len(shape) == 2 and shape[0] == 3 * shape[1]:
        return Layout((shape[1], shape[1]), 3)
    return None


def patchwise(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor looks like a convolution whose windows do not overlap, of one place or a patch each: a matrix.
    The model says whether it is one."""
    module = name.removesuffix(".weight")
    if module == name or len(shape) < 3 or shape[1] < 2:
        return False
    return set(shape[2:]) == {1} or PATCHES.search(module) is not None


class Layouts:
    """The layouts of one model's tensors, by their names and its config.

    shapes: of all its tensors, by name.
    """

    def __init__(self, config: dict, shapes: dict[str, tuple[int, ...]]):
        text = config.get("text_config")
        self.config, self._text = config, text if isinstance(text, dict) and text else config
        self._conv1d = config["model_type"] in CONV1D if "model_type" in config else _like_conv1d(shapes)

    def of(self, tensor: str, shape: tuple[int, ...], role: str, ready: bool) -> Layout | None:
        """The layout of a tensor of such a role, None where it holds no matrices. ready: whether its role may become a
        network."""
        if (found := operand(tensor, shape)) is not None:
            return found
        if len(shape) == 3 and EXPERT_STACK.search(tensor) and not tensor.endswith("bias"):
            transposed = self._stack_in_out(role, shape)
            rows, columns = shape[:0:-1] if transposed else shape[1:]
            return Layout((rows, columns), shape[0], transposed, experts=True)
        if experts := self._flat(tensor, shape, FLAT_STACK, self.config.get("ffn_config"), "moe_num_experts"):
            inner, hidden, down = shape[0] // experts, shape[1], role == "down"
            return Layout((hidden, inner) if down else (inner, hidden), experts, down, experts=True)
        if groups := self._flat(tensor, shape, GROUPED, self._text, "o_groups"):
            return Layout((shape[0] // groups, shape[1]), groups)
        if patchwise(tensor, shape):
            return Layout((shape[0], math.prod(shape[1:])))
        if not tensor.endswith(".weight") or len(shape) != 2:
            return None
        transposed = self._conv1d and ready and place(tensor)[0] is not None
        return Layout((shape[1], shape[0]) if transposed else (shape[0], shape[1]), None, transposed)

    def _flat(self, tensor: str, shape: tuple[int, ...], pattern: re.Pattern, settings: object, field: str) -> int:
        """How many slices stand below one another in a tensor of two dimensions, 0 where it is no such."""
        count = settings.get(field) if isinstance(settings, dict) else None
        if not isinstance(count, int) or count <= 0 or not pattern.search(tensor):
            return 0
        return count if len(shape) == 2 and shape[0] % count == 0 else 0

    def _stack_in_out(self, role: str, shape: tuple[int, ...]) -> bool:
        """Whether a stack of experts holds (in, out) slices: read off the hidden size where the shape tells."""
        hidden = self._text.get("hidden_size")
        if shape[1] != shape[2] and hidden in shape[1:]:
            return shape[2 if role.endswith(("down", "fc2", "o")) else 1] == hidden
        return self._text.get("model_type") in EXPERTS_IN_OUT


def _like_conv1d(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether linear maps are stored (in, out): without a config, a `c_attn` thrice as wide as high says so."""
    found = [shape for name, shape in shapes.items() if name.endswith("attn.c_attn.weight")]
    return any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in found)
