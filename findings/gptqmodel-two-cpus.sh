#!/bin/sh
# GPTQModel 7.6.0 (and 7.7.0) cannot quantize on a machine with one or two CPUs: it allows itself half of them as
# threads, (2 + 1) // 2 = 1, and then asks for two to load the model. Expected: it quantizes, with the threads that there
# are. Seen: "ValueError: Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1", after the model
# and the calibration text have been read. GPTQMODEL_CPU_WORKERS=2 in the environment is the way around it.
# (gptqmodel/__init__.py, _default_cpu_workers and _build_device_thread_pool.)
# Karipap sets that when it measures GPTQModel beside its own (bench/packages/gptq_model.py).
#
#     sh findings/gptqmodel-two-cpus.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet setuptools==84.2.1 torch==2.13.0 transformers==5.17.0 gptqmodel==7.6.0
cd "$folder"
cat > probe.py <<'PYTHON'
import os
import sys

os.cpu_count = lambda: 2  # as on a machine of two CPUs; on one that has two it changes nothing

import gptqmodel


def pool():
    """The pool of threads that every quantization begins with: "made", or what it ends with."""
    gptqmodel._DEVICE_THREAD_POOL = None
    try:
        gptqmodel.get_device_thread_pool()
        return "made"
    except ValueError as error:
        return f"ValueError: {error}"


seen = pool()
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
around = pool()
print("two CPUs:                    ", seen)
print("and GPTQMODEL_CPU_WORKERS=2: ", around)
same = seen == "ValueError: Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1"
sys.exit(0 if same and around == "made" else "This has changed: look at findings/ and at bench/packages/gptq_model.py.")
PYTHON
"$folder/venv/bin/python" probe.py 2> errors || { cat errors; exit 1; }
