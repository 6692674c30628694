"""Karipap: compress language models with tensor networks.

    import karipap_core as kp

    model = kp.open_checkpoint("assets/demo_model")
    profile = kp.profile(model, metrics=("weight",))
    plan = kp.make_plan(model, kp.Budget(kept=0.7), network="lowrank", rule="uniform", metric="weight")
    made = kp.compress(model, plan, out="compressed")
    print(profile.rows()[0]["entropy"], plan.kept, made.kept, kp.evaluate(made, max_tokens=2000).perplexity)

The public names are those of `__all__`; each is imported when it is first used. `import karipap_core` imports neither
torch nor transformers, yet from then on transformers loads compressed folders: Karipap's quantizer joins transformers'
registry at once where that is imported, and else the moment it is. PEFT learns of Karipap's layers in the same way.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karipap_core.api import autopilot, heal, tradeoff
    from karipap_core.checkpoint.model import Checkpoint
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.errors import Cancelled, InputError
    from karipap_core.layers.linear import TensorNetworkLinear, check_layer
    from karipap_core.networks import NETWORKS, Spec
    from karipap_core.plan.budget import Budget
    from karipap_core.plan.document import Plan
    from karipap_core.plan.study import Study
    from karipap_core.profiles.document import Profile
    from karipap_core.spectra.metric import Metric
    from karipap_core.story import compress, densify, evaluate, make_plan, profile, verify
    from karipap_core.text import Text
    from karipap_core.version import __version__

__all__ = [
    "NETWORKS",
    "Budget",
    "Cancelled",
    "Checkpoint",
    "InputError",
    "Metric",
    "Plan",
    "Profile",
    "Spec",
    "Study",
    "TensorNetworkLinear",
    "Text",
    "__version__",
    "autopilot",
    "check_layer",
    "compress",
    "densify",
    "evaluate",
    "heal",
    "make_plan",
    "open_checkpoint",
    "profile",
    "tradeoff",
    "verify",
]

_MODULES = {  # where the public names live; a test holds this against the imports above
    "api": ("autopilot", "heal", "tradeoff"),
    "checkpoint.model": ("Checkpoint",),
    "checkpoint.open": ("open_checkpoint",),
    "errors": ("Cancelled", "InputError"),
    "layers.linear": ("TensorNetworkLinear", "check_layer"),
    "networks": ("NETWORKS", "Spec"),
    "plan.budget": ("Budget",),
    "plan.document": ("Plan",),
    "plan.study": ("Study",),
    "profiles.document": ("Profile",),
    "spectra.metric": ("Metric",),
    "story": ("compress", "densify", "evaluate", "make_plan", "profile", "verify"),
    "text": ("Text",),
    "version": ("__version__",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

_JOINED = {  # module of others → what registers Karipap there when it is imported
    "transformers.quantizers.auto": "karipap_core.models.quantizer",
    "peft.tuners.lora.model": "karipap_core.models.adapters",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _WhenImported(importlib.abc.MetaPathFinder):
    """Imports a module of ours, which registers itself, right after a module of others has been imported; finds nothing
    itself."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.theirs:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            importlib.import_module(self.ours)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]  # this one loader, used this once
        return spec


for _theirs, _ours in _JOINED.items():
    if _theirs in sys.modules:
        importlib.import_module(_ours)
    else:
        sys.meta_path.insert(0, _WhenImported(_theirs, _ours))
