"""The training loop of healing: deterministic batches, a search for the step size, checkpoints, an early stop.

All that a step depends on besides the parameters and the optimizer's moments is a function of the step's number: its
rows of text, its step size, and the state of the random generators. So a checkpoint is the parameters, the moments and
the number, in one safetensors file that is written whole.
"""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional

from karipap_core.errors import InputError
from karipap_core.evaluation.perplexity import Sample, losses
from karipap_core.progress import Progress, silent
from karipap_core.workspace.kept import keep_tensors, kept_tensors

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
WARM_UP = 0.05  # of the steps
SEARCH_SHARE, MOST_SEARCH_STEPS = 1 / 16, 20


@dataclass(frozen=True)
class Course:
    """How long and how to train. `rate` None: found by `search`; `every`: steps between two looks at the validation
    text, each followed by a checkpoint; `patience`: looks without improvement before it stops."""

    steps: int
    rate: float | None
    every: int
    patience: int
    accumulate: int
    seed: int


def schedule(step: int, steps: int) -> float:
    """The step size of step 0 … steps − 1 over the largest one: a linear rise over the first `WARM_UP` of the steps,
    then a linear fall that would reach zero one step behind the last."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm + 1)


class Rows:
    """A row of token ids cut into windows of `window` + 1, dealt out `batch` at a time in an order that depends on the
    seed alone: every window once, then every window again in another order."""

    def __init__(self, ids: torch.Tensor, window: int, batch: int, seed: int) -> None:
        self.ids, self.window, self.size, self.seed = ids, window, batch, seed
        self.count = (len(ids) - 1) // window
        self._order = lru_cache(maxsize=2)(self._order_of)

    def _order_of(self, epoch: int) -> torch.Tensor:
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))

    def batch(self, step: int) -> torch.Tensor:
        """(batch, window + 1) int64: the rows of step `step`, counted from 0."""
        places = range(step * self.size, (step + 1) * self.size)
        starts = [int(self._order(place // self.count)[place % self.count]) * self.window for place in places]
        return torch.stack([self.ids[start : start + self.window + 1] for start in starts])


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of −ln q(target), nats a token; logits (batch, n, vocabulary), targets (batch, n)."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def distillation_loss(logits: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of −Σ p ln q, p the dense model's probabilities: KL(p ‖ q) plus a constant. Nats a token."""
    return functional.cross_entropy(logits.float().flatten(0, 1), dense.float().flatten(0, 1).softmax(-1))


@dataclass
class State:
    """Where a training stands; all of it but the tensors, as JSON."""

    step: int = 0
    before: float = math.nan
    rate: float | None = None
    search: dict[str, float | None] = field(default_factory=dict)
    curve: list[dict] = field(default_factory=list)
    best: float = math.nan
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    scaler: dict | None = None
    stopped: str | None = None


class Training:
    """One training of some parameters of a model. `run()` goes on from the checkpoint `file` where there is one."""

    def __init__(
        self,
        model: "PreTrainedModel",
        rows: Rows,
        validation: Sample,
        course: Course,
        accelerator,
        file: Path,
        teacher: "PreTrainedModel | None" = None,
        stage: str = "heal",
        progress: Progress = silent,
    ) -> None:
        """Trains what `model` has with requires_grad, by distillation from `teacher` or, without one, by next-token
        loss; everything else costs no gradient and no moments."""
        self.rows, self.validation, self.course, self.accelerator = rows, validation, course, accelerator
        self.file, self.teacher, self.stage, self.progress = file, teacher, stage, progress
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(wanted, lr=RATES[0], weight_decay=0.0)
        self.model, self.wrapped = accelerator.prepare(model, optimizer)
        self.optimizer = self.wrapped.optimizer
        self.bare = accelerator.unwrap_model(self.model, keep_fp32_wrapper=True)
        self.parameters = {name: each for name, each in self.bare.named_parameters() if each.requires_grad}
        self.incoming = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.best = self.incoming
        self.state = State()

    def run(self) -> State:
        """Search, train, keep the best; the model is left with the parameters of the best look (perhaps the first)."""
        self._load()
        state, course = self.state, self.course
        self.began = time.monotonic() - state.seconds
        if math.isnan(state.before):
            state.before = state.best = self.validate()
            if not math.isfinite(state.before):
                raise InputError("The model's loss on the validation text is not finite: check the model and the text.")
        if state.rate is None:
            state.rate = course.rate or self.search()
            self._save()
        while state.step < course.steps and state.stopped is None:
            rate = state.rate * schedule(state.step, course.steps)
            loss = self.step(state.step, rate)
            state.step += 1
            state.curve.append({"step": state.step, "loss": loss, "rate": rate})
            if not math.isfinite(loss):
                state.stopped = f"The loss of step {state.step} is not finite: training stopped there."
                state.curve.pop()
                self._save()
                break
            looks = state.step % course.every == 0 or state.step == course.steps
            message = f"loss {loss:.6f}" + (f", validation {self._look():.6f}" if looks else "")
            if looks:
                self._save()
            self.progress(self.stage, state.step, course.steps, f"step size {rate:.2g}", message)
        self.progress(self.stage, course.steps, course.steps, "", state.stopped or "")
        self.put(self.best)
        state.seconds = time.monotonic() - self.began
        return state

    def _look(self) -> float:
        """The validation loss after a step; keeps the best parameters and says when to stop."""
        state, found = self.state, self.validate()
        if math.isfinite(found):
            state.curve[-1]["validation"] = found
        if found < state.best:
            state.best, state.best_step, state.waited = found, state.step, 0
            self.best = {name: each.detach().clone() for name, each in self.parameters.items()}
        else:
            state.waited += 1
        if state.waited >= self.course.patience and state.step < self.course.steps:
            state.stopped = f"The validation loss did not fall in {state.waited} looks: stopped at step {state.step}."
        return found

    def search(self) -> float:
        """The step size of `RATES` with the lowest validation loss after a short training of its own, each from the
        parameters that came in. The losses are kept in `state.search`."""
        state = self.state
        trial = max(2, min(MOST_SEARCH_STEPS, round(self.course.steps * SEARCH_SHARE)))
        for number, rate in enumerate(RATES):
            if str(rate) in state.search:
                continue
            self.progress("step size", number, len(RATES), f"{rate:g}")
            self.put(self.incoming)
            for step in range(trial):
                self.step(step, rate * schedule(step, trial))
            found = self.validate()
            state.search[str(rate)] = found if math.isfinite(found) else None
            self.put(self.incoming)
            self._save()
        self.progress("step size", len(RATES), len(RATES))
        losses = {rate: state.search[str(rate)] for rate in RATES}
        return min(RATES, key=lambda rate: math.inf if (loss := losses[rate]) is None else loss)

    def step(self, number: int, rate: float) -> float:
        """One step of the optimizer on the rows of step `number`; returns the mean loss before it, nats a token."""
        torch.manual_seed(self.course.seed * 1_000_003 + number)  # for models with dropout
        accelerator = self.accelerator
        mine = self.rows.batch(number)[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=accelerator.device)
        for part in mine.chunk(self.course.accumulate):
            with accelerator.accumulate(self.model):
                loss = self._loss(part)
                total += loss.detach() * len(part) / len(mine)
                accelerator.backward(loss)
                self.wrapped.step()
                self.wrapped.zero_grad()
        return accelerator.reduce(total, "mean").item()

    def _loss(self, part: torch.Tensor) -> torch.Tensor:
        inputs, targets = part[:, :-1], part[:, 1:]
        dense = None
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                dense = self.teacher(input_ids=inputs, use_cache=False).logits
        logits = self.model(input_ids=inputs, use_cache=False).logits
        return next_token_loss(logits, targets) if dense is None else distillation_loss(logits, dense)

    def validate(self) -> float:
        """Next-token loss on the validation text, infinite where the model's output is not finite."""
        return validation_loss(self.bare, self.validation, self.accelerator)

    def put(self, values: dict[str, torch.Tensor]) -> None:
        """Copies values into the parameters and forgets the optimizer's moments."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(like(parameter, values[name]))
        self.optimizer.state.clear()

    def whole_precision(self) -> "PreTrainedModel":
        """The model itself, in eval mode, without the mixed precision that it was trained in."""
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).eval()

    def values(self) -> dict[str, torch.Tensor]:
        """The parameters now, whole, on the CPU."""
        return {name: gathered(parameter) for name, parameter in self.parameters.items()}

    def _save(self) -> None:
        state, tensors = self.state, {}
        state.seconds = time.monotonic() - self.began
        state.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if state.step:
            for name, parameter in self.parameters.items():
                tensors[f"now|{name}"] = gathered(parameter)
                moments = self.optimizer.state.get(parameter, {})
                tensors |= {f"{key}|{name}": gathered(moment) for key, moment in moments.items()}
                if self.best is not self.incoming:
                    tensors[f"best|{name}"] = gathered(self.best[name])
        if self.accelerator.is_main_process:
            keep_tensors(self.file, tensors, {"state": json.dumps(vars(state))})
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        if (kept := kept_tensors(self.file)) is None:
            return
        tensors, note = kept
        state = self.state = State(**json.loads(note["state"]))
        if not tensors:
            return
        self.put({name: tensors[f"now|{name}"] for name in self.parameters})
        for name, parameter in self.parameters.items():
            stored = {key: f"{key}|{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            found = {key: tensors[place] for key, place in stored.items() if place in tensors}
            if found:  # AdamW keeps its step count on the CPU
                self.optimizer.state[parameter] = {
                    key: each if key == "step" else like(parameter, each) for key, each in found.items()
                }
        if state.best_step:
            self.best = {name: like(parameter, tensors[f"best|{name}"]) for name, parameter in self.parameters.items()}
        if self.accelerator.scaler and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)


def validation_loss(model: torch.nn.Module, sample: Sample, accelerator=None) -> float:
    """Next-token loss of a model on a sample, nats a token; infinite where its output is not finite. In the mixed
    precision of `accelerator`, without one in the model's own: what judges a healing is not rounded."""
    try:
        with accelerator.autocast() if accelerator is not None else nullcontext():
            return sample.summary(losses(model, sample))["loss"]
    except InputError:
        return math.inf


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor on the CPU; one that is spread over several GPUs is gathered from them first."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().cpu().contiguous().clone()


def like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` on the device of `parameter`, spread over GPUs as that is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value
