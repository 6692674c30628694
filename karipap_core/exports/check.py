"""An export measured in its own engine, beside Karipap's folder: the same tokens in the same windows.

The engine runs in a process of its own (`engines/`), in this environment or that of another Python, and never sees
Karipap. Windows are cut alike for both and each starts without memory of the one before, so that the two conventions
are one: the loss is the mean of −ln p over every token of a window but its first.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.errors import InputError
from karipap_core.exports import TOKENS
from karipap_core.exports.exporter import Exporter, Wanted
from karipap_core.exports.source import Source
from karipap_core.progress import Progress, silent
from karipap_core.text import Text

if TYPE_CHECKING:  # torch takes a second to import
    import torch

WINDOW = 512
PROMPT, NEW_TOKENS, REPEATS = 64, 32, 3
SECONDS = 3600  # that an engine may take


@dataclass(frozen=True)
class Asked:
    """What both sides are asked: windows of token ids, a prompt, how many tokens to write behind it."""

    windows: list[list[int]]
    prompt: list[int]
    new_tokens: int = NEW_TOKENS
    repeats: int = REPEATS
    dtype: str = "float32"
    threads: int = 1


def can_be_measured(exporter: Exporter, source: Source, python: str | Path | None = None) -> None:
    """Raises InputError where the engine is not in this environment and no other was named, or the model is none that
    predicts the next token."""
    if python is None and not exporter.runs_here():
        raise InputError(
            f"{exporter.engine} is not installed here: name the Python that has it (--python), or leave --check away."
        )
    if source.checkpoint.kind != "causal":
        raise InputError(f"{source.folder} predicts no next token, which is what --check measures: leave it away.")


def questions(folder: str | Path, text: Text, tokens: int = TOKENS, window: int = WINDOW) -> Asked:
    """The first `tokens` tokens of `text`, cut into windows that the model has positions for.

    Raises InputError where the folder has no tokenizer or the text is too short for one window.
    """
    from karipap_core.checkpoint.kinds import positions_of
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.evaluation.tokens import encode
    from karipap_core.models.load import load_tokenizer

    checkpoint = open_checkpoint(folder, compressed=True)
    window = min(window, positions_of(checkpoint.config) or window)
    ids = encode(load_tokenizer(folder), text, checkpoint.config["vocab_size"])[:tokens].tolist()
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    if not windows:
        raise InputError(f"The text has {len(ids)} tokens, and one window takes {window}: give a longer one.")
    prompt = windows[0][: min(PROMPT, window // 2)]
    return Asked(windows, prompt, min(NEW_TOKENS, window - len(prompt)))


def answered(exporter: Exporter, out: Path, asked: Asked, python: str | Path | None = None) -> dict:
    """What the engine answers (`engines/__init__.py`). python : the interpreter of the environment that it is in.

    Raises InputError with the engine's last words where it fails.
    """
    engines = Path(__file__).parent / "engines"
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch) / "asked.json", Path(scratch) / "answer.json"
        question.write_text(json.dumps(asked.__dict__))
        command = [str(python or sys.executable), "-I", str(engines / "ask.py"), str(engines / exporter.script)]
        command += [str(out), str(question), str(answer)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise InputError(f"{command[0]} cannot be run: {error.strerror}.") from None
        except subprocess.TimeoutExpired:
            raise InputError(f"{exporter.title} took longer than {SECONDS:,} s and was stopped.") from None
        if run.returncode or not answer.is_file():
            words = [line for line in run.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise InputError(f"{exporter.title} did not run the export: {words[-1].strip()}")
        return json.loads(answer.read_text())


def ours(folder: str | Path, asked: Asked) -> "torch.Tensor":
    """ln p of Karipap's own folder in float32, (windows, window − 1)."""
    import torch

    from karipap_core.models.load import load_model
    from karipap_core.models.running import logits

    model, _ = load_model(folder)
    found = []
    with torch.no_grad():
        for window in asked.windows:
            ids = torch.tensor([window])
            scores = logits(model, ids)[0, :-1].float().log_softmax(-1)
            found.append(scores.gather(1, ids[0, 1:, None])[:, 0])
    return torch.stack(found)


def compared(
    exporter: Exporter,
    source: Source,
    wanted: Wanted,
    out: Path,
    text: Text,
    python: str | Path | None = None,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> dict:
    """Engine (in `exporter.dtype`) and Karipap (in float32) side by side: {"engine", "tokens", "windows", "loss" (the
    engine's), "karipap_loss", "difference" (of the two), "difference_error" (standard error over windows), "largest"
    (|Δ ln p| of a token), "prefill_tokens_per_second", "decode_tokens_per_second"}; losses in nats a token."""
    asked = replace(questions(source.folder, text, tokens), dtype=exporter.dtype(source, wanted))
    progress("check", 0, 2, "karipap")
    own = ours(source.folder, asked)
    progress("check", 1, 2, exporter.engine)
    answer = answered(exporter, out, asked, python)
    progress("check", 2, 2)
    return figures(own, answer, asked) | {"text": text.name}


def figures(own: "torch.Tensor", answer: dict, asked: Asked) -> dict:
    """What `compared` returns but for the text, of `ours` and `answered`."""
    import torch

    own, theirs = own.double(), torch.tensor(answer["logprobs"], dtype=torch.float64)
    apart = own - theirs  # of losses: −ln p
    spread = apart.mean(1).std().item() / len(apart) ** 0.5 if len(apart) > 1 else None
    return {
        "engine": answer["engine"],
        "tokens": apart.numel(),
        "windows": len(apart),
        "loss": -theirs.mean().item(),
        "karipap_loss": -own.mean().item(),
        "difference": apart.mean().item(),
        "difference_error": spread,
        "largest": apart.abs().max().item(),
        **speeds(answer, asked),
    }


def speeds(answer: dict, asked: Asked) -> dict[str, float | None]:
    """Tokens a second that the engine read of the prompt, and that it wrote behind it; None where it was not timed."""
    prefill, decode = answer["prefill_seconds"], answer["decode_seconds"]
    return {
        "prefill_tokens_per_second": len(asked.prompt) / prefill if prefill else None,
        "decode_tokens_per_second": 1 / decode if decode else None,
    }
