"""`transformers`: a folder that transformers loads with compressed-tensors and PEFT, every number of it ours.

Integers are stored in one of two ways, those that transformers 5.23, compressed-tensors 0.20.1 and PEFT 0.21.2 read:

- each: as code − zero, a signed number of mostly one bit more, every layer in its own scheme; of 8 bits as they are.
  Scales are 16 bits wide and are made the model's dtype before they are multiplied, so that in float32 nothing is lost.
- together: as they are, with packed zero points. Such weights are only read with "dequantize", by one scheme for the
  whole folder, and multiplied in the dtype of the scales, which is float32 then.

The smaller one is taken; with an adapter the second, as PEFT asks for a layer's weight, which the first has only once
the model ran.
"""

import math
from pathlib import Path

from karipap_core.exports.adapter import FOLDER
from karipap_core.exports.exporter import Wanted, register
from karipap_core.exports.grids import Scheme, signed_bits
from karipap_core.exports.safetensors_folder import Form, SafetensorsFolder, grid_of, modules_of, why_dense
from karipap_core.exports.source import Source

CLASSES = {"causal": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM", "encoder": "AutoModel"}


@register
class Transformers(SafetensorsFolder):
    name = "transformers"
    title = "transformers (compressed-tensors + PEFT)"
    library = "transformers"
    engine = "transformers"
    script = "with_transformers.py"

    def choose(self, source: Source, wanted: Wanted) -> dict[str, Form]:
        modules = modules_of(source)
        forms: dict[str, Form] = {}
        shapes: dict[str, tuple[int, int]] = {}
        ranks: dict[str, int] = {}
        as_they_are: dict[str, Scheme] = {}
        each: dict[str, Scheme] = {}
        for part in source.parts():
            if why := why_dense(source, part, modules):
                forms[part.name] = Form(why=why)
                continue
            grid, columns = grid_of(part), part.shape[1]
            bits, group = signed_bits(grid), None if grid.group == columns else grid.group
            as_they_are[part.name] = Scheme(grid.bits, group, False)
            each[part.name] = Scheme(8, group, False) if bits > 8 else Scheme(bits, group, True)
            shapes[part.name], ranks[part.name] = part.shape, part.rank
        if not shapes:
            return forms
        together = dict.fromkeys(shapes, one_scheme(as_they_are, shapes))
        sizes = [sum(schemes[name].bytes(shapes[name]) for name in shapes) for schemes in (each, together)]
        most = max(ranks.values())
        for name, scheme in (together if most or sizes[1] < sizes[0] else each).items():
            rank = most if wanted.one_rank and ranks[name] else ranks[name]
            wider = scheme is together[name] and (scheme.bits, scheme.group) != (
                as_they_are[name].bits,
                as_they_are[name].group,
            )
            why = "one scheme for all: transformers reads no other beside an adapter" if wider else ""
            forms[name] = Form(scheme, (modules or {})[name], rank, why)
        return forms

    def config(self, source: Source, schemes: dict[str, Scheme]) -> dict:
        config = super().config(source, schemes)
        return (
            config | {"dequantize": True} if any(scheme.scales == "float32" for scheme in schemes.values()) else config
        )

    def commands(self, source: Source, out: Path) -> str:
        kind = CLASSES[source.checkpoint.kind or "encoder"]
        lines = [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f'model = {kind}.from_pretrained("{out.name}", dtype="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{out.name}")',
        ]
        if any(form.rank for form in self.forms(source, Wanted()).values()):
            lines.insert(1, "from peft import PeftModel")
            lines.append(f'model = PeftModel.from_pretrained(model, "{out.name}/{FOLDER}")')
        return "\n".join(lines)


def one_scheme(schemes: dict[str, Scheme], shapes: dict[str, tuple[int, int]]) -> Scheme:
    """The scheme that holds the numbers of all: the most bits, the widest groups that divide theirs."""
    bits = max(scheme.bits for scheme in schemes.values())
    group = None
    if any(scheme.group for scheme in schemes.values()):
        group = math.gcd(*(scheme.group or shapes[name][1] for name, scheme in schemes.items()))
    return Scheme(bits, group, False, "float32")
