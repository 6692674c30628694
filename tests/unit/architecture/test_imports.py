"""What importing a module costs: transformers' models take six seconds, which only who builds one should wait for."""

import pkgutil
import subprocess
import sys

import karipap_core
from tests.helpers.paths import REPOSITORY

# These define classes of transformers', PEFT's or onnxscript's, and are imported where a model is built.
BUILD = {
    "karipap_core.models.adapters",
    "karipap_core.models.quantizer",
    "karipap_core.exports.onnx_graph",
    "karipap_core.exports.onnx_model",
}


def test_no_verb_waits_for_the_models_of_transformers_before_it_builds_one():
    found = {each.name for each in pkgutil.walk_packages(karipap_core.__path__, "karipap_core.")}
    names = sorted(name for name in found - BUILD if ".engines." not in name and not name.endswith("__main__"))
    assert len(names) > 200 and found >= BUILD
    program = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    program += "    assert 'transformers.core_model_loading' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
