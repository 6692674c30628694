"""Another program's module with compressed folders known to transformers: for tools that import transformers, not us.

python -m karipap_core.using lm_eval --model hf --model_args pretrained=compressed/ --tasks arc_easy
"""

import runpy
import sys

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(f"usage: python -m karipap_core.using MODULE [ARGUMENTS]\n\n{__doc__.strip()}")
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
