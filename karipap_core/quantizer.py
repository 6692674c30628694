"""How transformers loads a compressed folder: a quantizer that puts `TensorNetworkLinear`s where the plan says.

Registered when transformers' own registry is imported (see `karipap_core/__init__.py`), so that
`import karipap_core` is all that `from_pretrained` needs. Nothing of transformers beyond its registry is imported here
at the top: this runs while transformers itself is still being imported.
"""

from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from karipap_core.errors import InputError

METHOD = "karipap"


class KaripapConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed folder.

    `plan` is the plan (its JSON form); `original` says how the weights were stored: {"dtype", "dtypes" (of weights with
    another one), "transposed", "stacks" (stacked expert tensors: name → whether its slices are (in, out))}.
    """

    def __init__(self, plan: dict | None = None, original: dict | None = None, **unused):
        if not isinstance(plan, dict) or not isinstance(plan.get("weights"), dict):
            raise InputError("quantization_config of this model holds no Karipap plan: write the folder anew.")
        self.quant_method = METHOD
        self.plan = plan
        self.original = original or {}


class KaripapQuantizer(HfQuantizer):
    """Swaps modules before the weights are loaded; the loading itself is transformers'."""

    unstacked = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        from karipap_core.modules import Names
        from karipap_core.networks import spec_from_json
        from karipap_core.networks.linear import TensorNetworkLinear

        entries = self.quantization_config.plan["weights"]
        entries = {name: entry for name, entry in entries.items() if entry.get("network") != "dense"}
        names = Names(model)
        if any(".experts." in name for name in entries) or self.quantization_config.original.get("stacks"):
            names.unstack(bool(self.quantization_config.original.get("stacks")))
            self.unstacked = True
        for name, entry in entries.items():
            path = names.path(name)
            module = model.get_submodule(path)
            try:
                spec = spec_from_json(entry)
            except InputError as error:
                raise InputError(f"Plan, weight {name}: {error}") from None
            shape = _shape(module)
            if shape != (spec.n_out, spec.n_in):
                raise InputError(f"Plan, weight {name}: the network is {spec.n_out} x {spec.n_in}, the layer {shape}.")
            weight, bias = module.weight, getattr(module, "bias", None) is not None
            model.set_submodule(path, TensorNetworkLinear(spec, bias, weight.device, weight.dtype))

    def update_weight_conversions(self, weight_conversions, model):
        from karipap_core.modules import merges_experts

        if not self.unstacked:
            return weight_conversions
        return [conversion for conversion in weight_conversions if not merges_experts(conversion)]

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _shape(module) -> tuple[int, int] | None:
    """(out, in) of a linear layer, None of anything else."""
    from karipap_core.modules import Conv1D, is_linear

    if not is_linear(module):
        return None
    return tuple(module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape)


def register() -> None:
    """Makes the quantizer known to transformers, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(KaripapConfig)
        register_quantizer(METHOD)(KaripapQuantizer)
