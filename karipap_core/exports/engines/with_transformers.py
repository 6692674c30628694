"""transformers, with compressed-tensors and PEFT (see the package's text)."""

import time
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

PACKAGES = ("transformers", "compressed-tensors", "peft", "torch")


class Engine:
    name = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)

    def __init__(self, folder: Path, asked: dict) -> None:
        torch.set_num_threads(asked["threads"])
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, asked["dtype"])).eval()
        if (folder / "adapter").is_dir():
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, folder / "adapter").eval()

    @torch.no_grad()
    def logprobs(self, window: list[int]) -> list[float]:
        ids = torch.tensor([window])
        found = self.model(ids).logits[0, :-1].float().log_softmax(-1)
        return found.gather(1, ids[0, 1:, None])[:, 0].tolist()

    @torch.no_grad()
    def write(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
        began = time.perf_counter()
        out = self.model(torch.tensor([prompt]), use_cache=True)
        tokens = [out.logits[0, -1].argmax().item()]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            out = self.model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            tokens.append(out.logits[0, -1].argmax().item())
        return tokens, first - began, (time.perf_counter() - first) / max(1, new_tokens - 1)
