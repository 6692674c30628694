"""How fast models run and how much memory they take, measured side by side in one process."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.models import running
from karipap_core.progress import Progress, silent

PROMPT, NEW_TOKENS, REPEATS, SECONDS = 256, 16, 5, 60.0


@dataclass(frozen=True)
class Took:
    """What something took: `wall` seconds by the clock, and `cpu` seconds of this process's threads together. On a
    machine that others use as well the second is the steadier one; what an accelerator does is not in it."""

    wall: float
    cpu: float

    def over(self, parts: int) -> "Took":
        """The same for one of so many equal parts."""
        return Took(self.wall / parts, self.cpu / parts)

    @classmethod
    def median(cls, several: "list[Took]") -> "Took":
        return cls(statistics.median(each.wall for each in several), statistics.median(each.cpu for each in several))


def took(device: torch.device, run: Callable[[], object]) -> Took:
    """What one call of `run` takes, with all that it starts on `device`."""
    wall, cpu = _now(device), time.process_time()
    run()
    return Took(_now(device) - wall, time.process_time() - cpu)


def measure_speed(
    models: dict, prompt=PROMPT, new_tokens=NEW_TOKENS, repeats=REPEATS, seconds=SECONDS, progress: Progress = silent
) -> dict:
    """For each of {name: causal model or encoder}: {"prefill_tokens_per_second", "decode_ms_per_token", ...}, and of
    both the processor's time ("prefill_cpu_seconds", "decode_cpu_ms_per_token").

    One sequence. Prefill: one forward pass over `prompt` random tokens. Decode: `new_tokens` greedy steps of one
    token each with the KV cache behind that prompt (None for models without one). After one pass each to warm up, the
    models take turns, so that a machine that gets slower gets slower for all; the median of `repeats` rounds is given,
    fewer where they take longer than `seconds` in all. Prompt and steps are cut to the model's positions.
    """
    limits = [_positions(model) for model in models.values()]
    new_tokens = min(new_tokens, max(1, min(limits) // 4))
    prompt = max(1, min(prompt, min(limits) - new_tokens))
    prefills: dict[str, list[Took]] = {name: [] for name in models}
    decodes: dict[str, list[Took]] = {name: [] for name in models}  # stays empty for encoders
    cached = {name: running.without_cache(model) is None for name, model in models.items()}
    for name, model in models.items():
        _one_round(model, prompt, new_tokens, cached[name])
        progress("speed", 0, repeats, name)
    began = time.perf_counter()
    for i in range(repeats):
        for name, model in models.items():
            prefill, decode = _one_round(model, prompt, new_tokens, cached[name])
            prefills[name].append(prefill)
            decodes[name] += [] if decode is None else [decode]
        progress("speed", i + 1, repeats)
        if time.perf_counter() - began > seconds:
            progress("speed", repeats, repeats)
            break
    read = {name: Took.median(prefills[name]) for name in models}
    written = {name: Took.median(decodes[name]) if decodes[name] else None for name in models}
    return {
        name: {
            "prefill_tokens_per_second": prompt / read[name].wall,
            "prefill_cpu_seconds": read[name].cpu,
            "decode_ms_per_token": None if (each := written[name]) is None else 1e3 * each.wall,
            "decode_cpu_ms_per_token": None if each is None else 1e3 * each.cpu,
            "prompt": prompt,
            "new_tokens": new_tokens,
            "repeats": len(prefills[name]),
            "threads": torch.get_num_threads(),
        }
        for name in models
    }


def measure_memory(model, prompt: int = PROMPT, new_tokens: int = NEW_TOKENS) -> dict:
    """{"weights_bytes", "peak_bytes", "peak_is"}: what the model holds, and that plus what a run of it adds at most.

    weights_bytes: parameters and buffers as they lie in memory, shared ones once. CUDA: what
    `torch.cuda.max_memory_allocated` adds to the memory allocated before the run. CPU: what the peak resident memory
    of the process adds to its resident memory before the run; memory that the process had already set aside is not
    seen, so that is a lower bound. The same prompt and steps as `measure_speed`.
    """
    weights = weights_bytes(model)
    limit, cached = _positions(model), running.without_cache(model) is None
    new_tokens = min(new_tokens, max(1, limit // 4))
    prompt = max(1, min(prompt, limit - new_tokens))
    device = next(model.parameters()).device
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _one_round(model, prompt, new_tokens, cached)
        grown, how = torch.cuda.max_memory_allocated(device) - before, "weights + growth of CUDA memory allocated"
    else:
        _reset_peak()
        before = psutil.Process().memory_info().rss
        _one_round(model, prompt, new_tokens, cached)
        grown, how = max(0, _peak_resident() - before), "weights + growth of the process's peak resident memory"
    return {"weights_bytes": weights, "peak_bytes": weights + grown, "peak_is": how}


def weights_bytes(model) -> int:
    """Bytes of all parameters and buffers in memory, a storage that several share counted once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@torch.no_grad()
def _one_round(model, prompt: int, new_tokens: int, cached: bool) -> tuple[Took, Took | None]:
    """What one prefill takes, and one token of the decoding behind it (None where there is none)."""
    device = next(model.parameters()).device
    model.eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, prompt), generator=generator).to(device)
    inputs = {"input_ids": ids, "use_cache": True} if cached else running.inputs_of(model, ids)
    seen: dict = {}

    def read() -> None:
        seen["output"] = model(**inputs)

    def write() -> None:
        output = seen["output"]
        for _ in range(new_tokens):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)

    prefill = took(device, read)
    return prefill, took(device, write).over(new_tokens) if cached else None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _positions(model) -> int:
    return positions_of(model.config.get_text_config(decoder=True)) or PROMPT + NEW_TOKENS


def _reset_peak() -> None:
    """Linux: let the peak of resident memory start again from what is resident now."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def _peak_resident() -> int:
    """Peak resident bytes since `_reset_peak` (Linux), or the resident bytes now."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return psutil.Process().memory_info().rss
