"""`vllm`: a folder that vLLM serves, its kernels for integers included.

Written for what they hold in vLLM 0.32 on every processor: 4 bits with zero points, in matrices whose sides 32 divides.
Codes of 3 and 2 bits are stored as 4-bit codes of the same values; of 8 bits the CPU's kernels take none without
rounding the activations too, so that those are dense. Layers that the engine fuses (q, k and v; gate and up) have to be
in one scheme: the groups of all are those of the finest, and all are dense where one is. Low-rank pairs are a LoRA.
The kernel computes in 16 bits: in float16 scales stay what they are.
"""

import json
import math
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.checkpoint.roles import role_of
from karipap_core.exports.adapter import FOLDER
from karipap_core.exports.exporter import Wanted, register
from karipap_core.exports.grids import Scheme
from karipap_core.exports.safetensors_folder import Form, SafetensorsFolder, grid_of, modules_of, why_dense
from karipap_core.exports.source import Part, Source

if TYPE_CHECKING:  # torch takes a second to import
    import torch

BITS, SIDE = 4, 32
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that `--max-lora-rank` takes, but for 1
FUSED = {"q": "q, k and v", "k": "q, k and v", "v": "q, k and v", "gate": "gate and up", "up": "gate and up"}
NO_HALF = ("gemma2", "gemma3", "gemma3_text", "glm4")  # types of models that vLLM does not run in float16
TOKENS = 4096  # of context in the commands, where the model has positions for so many


@register
class Vllm(SafetensorsFolder):
    name = "vllm"
    title = "vLLM"
    library = "vllm"
    engine = "vllm"
    script = "with_vllm.py"

    def choose(self, source: Source, wanted: Wanted) -> dict[str, Form]:
        modules = modules_of(source)
        forms: dict[str, Form] = {}
        for part in source.parts():
            why = why_dense(source, part, modules) or why_not_packed(part)
            if why:
                forms[part.name] = Form(why=why)
                continue
            grid = grid_of(part)
            scheme = Scheme(BITS, None if grid.group == part.shape[1] else grid.group, False)
            why = "" if grid.bits == BITS else f"its kernels take no {grid.bits} bits: the same values in {BITS}"
            forms[part.name] = Form(scheme, part.name, part.rank, why)
        for members in fused(source):
            forms |= alike(source, {name: forms.get(name) for name in members})
        if wanted.one_rank and (most := largest_rank(forms)):
            forms |= {name: replace(form, rank=most) for name, form in forms.items() if form.rank}
        return forms

    def held(self, source: Source, part: Part, scheme: Scheme) -> "torch.Tensor":
        import torch

        grid = grid_of(part)
        return replace(grid, scales=grid.scales.to(getattr(torch, half_of(source))).float()).dense()

    def dtype(self, source: Source, wanted: Wanted) -> str:
        return half_of(source) if self.packs(source, wanted) else "float32"

    def packs(self, source: Source, wanted: Wanted) -> bool:
        """Whether any weight is stored in few bits."""
        return any(form.scheme for form in self.forms(source, wanted).values())

    def commands(self, source: Source, out: Path) -> str:
        from karipap_core.checkpoint.kinds import positions_of

        positions = min(positions_of(source.config) or TOKENS, TOKENS)
        rank = largest_rank(self.forms(source, Wanted()))
        dtype = f" --dtype {half_of(source)}" if self.packs(source, Wanted()) else ""
        lora = f" \\\n  --enable-lora --max-lora-rank {rank} --lora-modules karipap={out.name}/{FOLDER}" if rank else ""
        return (
            "# On a processor; on a GPU without the two variables and --enforce-eager.\n"
            "VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_INT4_W4A8=0 \\\n"
            f"vllm serve {out.name} --enforce-eager --max-num-seqs 1 --max-model-len {positions}{dtype}{lora}"
        )

    def notes(self, source: Source, wanted: Wanted) -> list[str]:
        notes = []
        names = source.config.get("architectures") or ["an architecture without a name"]
        if not set(names) & set(served()["architectures"]):
            release = served()["source"].partition(",")[0]
            notes.append(f"{release} does not list {names[0]} among the models that it serves.")
        if self.packs(source, wanted):
            notes.append(
                "On processors vLLM has a kernel for 4-bit integers where they have AVX-512, and none without it."
            )
            notes.append(
                "vLLM rounds activations to 8 bits in 4-bit layers, on processors with AMX and in bfloat16, unless "
                "VLLM_CPU_INT4_W4A8=0: what is measured here is measured with that."
            )
            notes.append(
                "Its kernel for 4-bit integers computes in float16 or bfloat16, and scales become what it computes in: "
                + (
                    "--dtype float16 keeps them as they are, bfloat16 rounds them to 8 bits."
                    if half_of(source) == "float16"
                    else "vLLM runs this type of model in bfloat16 alone, which rounds them to 8 bits."
                )
            )
        if largest_rank(self.forms(source, wanted)):
            notes.append(
                "Ask for the model `karipap`: that is the base with its adapter; by its folder's name it lacks it."
            )
        return notes


@lru_cache
def served() -> dict:
    """{"source", "architectures": those that vLLM itself lists} of the release that exports are written for."""
    return json.loads(Path(__file__).with_name("vllm_models.json").read_text("utf-8"))


def half_of(source: Source) -> str:
    """The dtype of 16 bits in which vLLM runs a model of integers: that of their scales, but where it refuses that."""
    return "bfloat16" if source.config.get("model_type") in NO_HALF else "float16"


def why_not_packed(part: Part) -> str:
    """Why vLLM's kernels hold a weight of integers not, "" where they do."""
    grid = part.grid
    assert grid is not None
    if grid.bits > BITS:
        return f"its kernels for processors hold {BITS} bits, not {grid.bits}"
    if any(side % SIDE for side in part.shape):
        return f"its kernels want sides that {SIDE} divides, and this has {part.shape[0]} × {part.shape[1]}"
    if part.rank > RANKS[-1]:
        return f"it takes adapters of rank {RANKS[-1]} at most, and this has {part.rank}"
    return ""


def largest_rank(forms: dict[str, Form]) -> int:
    """The smallest `--max-lora-rank` that takes the adapter, 0 where there is none."""
    most = max((form.rank for form in forms.values()), default=0)
    return next(rank for rank in (0, *RANKS) if rank >= most)


def fused(source: Source) -> list[list[str]]:
    """Names of weights, dense ones too, that vLLM holds as one matrix: those of one module, with one input."""
    weights = {tensor.removesuffix(".weight") for tensor in source.pieces() if tensor.endswith(".weight")}
    found = defaultdict(list)
    for name in sorted(weights | set(source.names)):
        if together := FUSED.get(role_of(name, mixture=False)):
            found[name.rpartition(".")[0], together].append(name)
    return [members for members in found.values() if len(members) > 1]


def alike(source: Source, forms: dict[str, Form | None]) -> dict[str, Form]:
    """The forms of layers that are fused, None for one that is no compressed weight: all in the finest groups, or all
    dense."""
    schemes = {name: form.scheme for name, form in forms.items() if form and form.scheme}
    known = {name: form for name, form in forms.items() if form}
    if len(schemes) < len(forms):
        why = f"vLLM fuses {FUSED[role_of(next(iter(forms)), mixture=False)]}, and not all of them fit"
        return known | {name: Form(why=why) for name in schemes}
    if len(set(schemes.values())) == 1:
        return known
    group = math.gcd(*(scheme.group or source.spec(name).n_in for name, scheme in schemes.items()))
    why = "vLLM fuses it with one of finer groups"
    return {
        name: form if form.scheme.group == group else replace(form, scheme=Scheme(BITS, group, False), why=why)
        for name, form in known.items()
        if form.scheme
    }
