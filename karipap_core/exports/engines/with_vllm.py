"""vLLM on processors, one sequence at a time (see the package's text)."""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that max_lora_rank takes


def set_up(threads: int) -> None:
    """What vLLM reads from its environment, as it is imported."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_INT4_W4A8": "0",  # else activations are rounded to 8 bits where the processor has AMX
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window as long as the model, and the token that ends a request
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Engine:
    def __init__(self, folder: Path, asked: dict) -> None:
        set_up(asked["threads"])
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        dtype = asked["dtype"]
        self.name = f"vllm-cpu {metadata.version('vllm-cpu')}, torch {metadata.version('torch')}, {dtype}"
        longest = max([len(asked["prompt"]) + asked["new_tokens"], *(1 + len(window) for window in asked["windows"])])
        more, self.adapter = {}, None
        if (folder / "adapter").is_dir():
            rank = json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"]
            more = {"enable_lora": True, "max_lora_rank": next(size for size in RANKS if size >= rank)}
            self.adapter = LoRARequest("karipap", 1, str(folder / "adapter"))
        try:
            self.model = LLM(
                str(folder),
                dtype=dtype,
                enforce_eager=True,
                max_num_seqs=1,
                max_model_len=longest,
                max_num_batched_tokens=longest,
                enable_prefix_caching=False,
                disable_log_stats=True,
                **more,
            )
        except AttributeError as error:
            if "cpu_gemm_wna16" not in str(error):
                raise
            sys.exit(
                "vllm-cpu has no kernel for 4-bit integers for processors without AVX-512: here it runs --plain exports"
            )

    def asked(self, ids: list[int], new_tokens: int, scores: bool):
        """vLLM's answer to one prompt."""
        from vllm import SamplingParams

        how = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, prompt_logprobs=0 if scores else None
        )
        prompt = {"prompt_token_ids": ids}
        return self.model.generate([prompt], how, use_tqdm=False, lora_request=self.adapter)[0]

    def logprobs(self, window: list[int]) -> list[float]:
        found = self.asked(window, 1, True).prompt_logprobs
        return [found[place][token].logprob for place, token in enumerate(window) if place]

    def write(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
        began = time.perf_counter()
        self.asked(prompt, 1, False)
        first = time.perf_counter()
        tokens = list(self.asked(prompt, new_tokens, False).outputs[0].token_ids)
        whole = time.perf_counter() - first
        return tokens, first - began, (whole - (first - began)) / max(1, new_tokens - 1)
