"""Karipap: compress language models with tensor networks.

`import karipap_core` imports neither torch nor transformers, yet from then on transformers loads compressed folders:
Karipap's quantizer joins transformers' registry at once where that is imported, and else the moment it is.
"""

import importlib.abc
import importlib.util
import sys

from karipap_core.errors import Cancelled, InputError

__all__ = ["Cancelled", "InputError"]
__version__ = "0.1.0"

_REGISTRY = "transformers.quantizers.auto"


def _register() -> None:
    from karipap_core.models.quantizer import register

    register()


class _WhenImported(importlib.abc.MetaPathFinder):
    """Runs `_register` right after transformers' registry has been imported; finds nothing itself."""

    def find_spec(self, name, path=None, target=None):
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_register(module) -> None:
            run(module)
            _register()

        spec.loader.exec_module = run_and_register
        return spec


if _REGISTRY in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenImported())
