"""How transformers loads a compressed folder: a quantizer that puts `TensorNetworkLinear`s where the plan says.

Registered when transformers' own registry is imported (see `karipap_core/__init__.py`), so that
`import karipap_core` is all that `from_pretrained` needs. Nothing of transformers beyond its registry is imported here
at the top: this runs while transformers itself is still being imported.
"""

import re
from types import MethodType
from typing import TYPE_CHECKING

from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from karipap_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.core_model_loading import WeightRenaming

    from karipap_core.layers.cores import CoresModule

METHOD = "karipap"
PACKED = re.compile(r"cores\\?\.\d+\\?\.[a-z]+$")  # a tensor of a core in a format: codes, scales …


class KaripapConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed folder.

    `plan` is the plan (its JSON form); `original` says how the weights were stored: {"dtype", "dtypes" (of weights with
    another one), "transposed", "stacks" (stacked expert tensors: name → whether its slices are (in, out)), "tables"
    (embeddings and heads, which are never transposed), "config" (settings that writing the folder added), "others"
    (weights that are no two-dimensional `.weight`: name → {"tensor", "shape", "transposed"})}.
    """

    def __init__(self, plan: dict | None = None, original: dict | None = None, **unused):
        if not isinstance(plan, dict) or not isinstance(plan.get("weights"), dict):
            raise InputError("quantization_config of this model holds no Karipap plan: write the folder anew.")
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers lists its own methods alone
        self.plan = plan
        self.original = original or {}


class KaripapQuantizer(HfQuantizer):
    """Swaps modules before the weights are loaded; the loading itself is transformers'."""

    quantization_config: KaripapConfig
    merged = False  # whether experts that the files store one by one are held so
    moved: "Sequence[WeightRenaming]" = ()

    def _process_model_before_weight_loading(self, model, **kwargs):
        from karipap_core.checkpoint.roles import place as place_of
        from karipap_core.models.names import Names
        from karipap_core.models.sites import place

        specs = _specs(self.quantization_config.plan["weights"])
        names = Names(model, [f"{name}.weight" for name in self.quantization_config.plan["weights"]])
        stacks = self.quantization_config.original.get("stacks") or {}
        bases = [stack.removesuffix(".weight") for stack in stacks]
        whole = [name for name in specs if name.rpartition(".")[0] not in bases]
        self.merged = any(place_of(name)[1] is not None for name in whole)
        names.unstack(stacks, self.merged)
        paths = {name: names.path(name) for name in specs}
        self.moved = names.renamings_of([*(base for base in bases if base in names.moved), *whole])
        placed: dict[str, CoresModule] = {}
        for name in sorted(specs, key=lambda name: not all(specs[name].owned)):  # lenders before borrowers
            spec, borrowed = specs[name], {}
            if not all(spec.owned):
                if spec.members[0] not in placed:
                    raise InputError(
                        f"Plan, weight {name}: it shares cores with {spec.members[0]}, which has no entry."
                    )
                lender = placed[spec.members[0]].cores
                borrowed = {k: lender for k, own in enumerate(spec.owned) if not own}
            try:
                placed[name] = place(model, paths[name], spec, borrowed)
            except InputError as error:
                raise InputError(f"Plan, weight {name}: {error}") from None

    def _process_model_after_weight_loading(self, model, **kwargs):
        from karipap_core.layers.cores import CoresModule

        if any(isinstance(table, CoresModule) for table in _tables(model)):
            model.resize_token_embeddings = MethodType(_resize_token_embeddings, model)
        return model

    def _dequantize(self, model, dtype=None):
        raise InputError(
            "A compressed model is made dense on the disk: `karipap densify FOLDER --out DENSE`, and load that folder."
        )

    def get_new_dtype(self, converter, param, dtype):
        """Packed cores keep their types, whatever dtype the model is loaded in."""
        packed = any(PACKED.search(str(name)) for name in getattr(converter, "target_patterns", ()))
        return None if packed else super().get_new_dtype(converter, param, dtype)

    def update_weight_conversions(self, weight_conversions, model):
        from karipap_core.models.names import merges_experts

        kept = [each for each in weight_conversions if not (self.merged and merges_experts(each))]
        return [*kept, *self.moved]

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether transformers' Trainer may train the model itself: where all cores are floats, as any other weights.
        Numbers packed in few bits have no gradients; with those among them an adapter learns, or `heal`."""
        from karipap_core.layers.cores import INDEX

        specs = _specs(self.quantization_config.plan["weights"]).values()
        return all(form in (None, INDEX) for spec in specs for form in spec.formats)


def _tables(model) -> list:
    """The embedding and the head of a model, those that it has."""
    found = []
    for get in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            found.append(get())
        except (NotImplementedError, AttributeError):  # how transformers says that there is none
            continue
    return found


def _resize_token_embeddings(model, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing: bool = True):
    """transformers' method of that name, for a model with a compressed embedding or head: another size is refused
    before anything is changed."""
    table, pad = model.get_input_embeddings(), pad_to_multiple_of or 1
    rows = getattr(table, "num_embeddings", None) or table.weight.shape[0]
    if -(-(new_num_tokens or rows) // pad) * pad != rows:
        raise InputError(
            f"The embedding or the head of this model is compressed, and a network has no rows to add or to take away: "
            f"it keeps its {rows:,} tokens. Resize the dense model and compress that, or compress it with --embedding "
            "dense."
        )
    return type(model).resize_token_embeddings(model, new_num_tokens, pad_to_multiple_of, mean_resizing)


def _specs(entries: dict) -> dict:
    """The networks of a plan's entries by name; a plain dense weight is none."""
    from karipap_core.networks import spec_from_json

    found = {}
    for name, entry in entries.items():
        if entry.get("network") != "dense" or entry.get("quantize"):
            try:
                found[name] = spec_from_json(entry)
            except InputError as error:
                raise InputError(f"Plan, weight {name}: {error}") from None
    return found


def register() -> None:
    """Makes the quantizer known to transformers, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(KaripapConfig)
        register_quantizer(METHOD)(KaripapQuantizer)


register()  # importing this is registering: also where this file itself is what first imports the registry
