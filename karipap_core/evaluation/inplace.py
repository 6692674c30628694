"""A dense model in memory, measured with some of its weights replaced: plans and baselines without writing a folder."""

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from karipap_core import cluster
from karipap_core.errors import InputError
from karipap_core.evaluation.fidelity import EncoderSample, hidden_states, keep_logits, measure, output_fidelity
from karipap_core.evaluation.perplexity import Sample
from karipap_core.evaluation.scoring import WHOLE_TEXT, Scoring
from karipap_core.evaluation.spread import scored_elsewhere
from karipap_core.progress import Progress, silent
from karipap_core.text import Text

if TYPE_CHECKING:
    from karipap_core.evaluation.tasks.suite import Suite

LOGITS_BYTES = 4 << 30  # of the dense model, kept to compare with


class InPlace:
    """model: dense, float32, loaded from `checkpoint`; text: what to measure on, cut as by `perplexity.Sample`.

    The dense model's logits are kept: 4 · vocabulary bytes a token, so `max_tokens` is lowered until they fit into
    `LOGITS_BYTES`. `dense` holds the dense model's own figures. suite: benchmark tasks that every measurement has
    besides.
    """

    def __init__(
        self,
        model,
        tokenizer,
        checkpoint,
        text: Text,
        scoring: Scoring = WHOLE_TEXT,
        suite: "Suite | None" = None,
        progress: Progress = silent,
    ) -> None:
        from karipap_core.models.sites import sites

        self.model, self.checkpoint, self.sites = model, checkpoint, sites(model, checkpoint, tables=True)
        self.sample: Sample | EncoderSample
        if checkpoint.predicts:
            fitting = LOGITS_BYTES // (4 * model.config.get_text_config().vocab_size)
            most = fitting if scoring.max_tokens is None else min(scoring.max_tokens, fitting)
            sample = self.sample = Sample.of(model, tokenizer, text, replace(scoring, max_tokens=most))
            self._reference = keep_logits(model, sample, progress)
            self.dense = measure(model, sample, self._reference)["dense"]
        else:
            rows = self.sample = EncoderSample.of(model, tokenizer, text, scoring)
            self._reference = list(hidden_states(model, rows))
            self.dense = {"relative_error": 0.0}
        self.suite, self._tokenizer = suite, tokenizer
        if suite is not None:
            from karipap_core.evaluation.tasks import suite as tasks

            self._identity = tasks.causal(checkpoint).identity
            self.dense["tasks"] = self._tasks(suite, self._identity, progress)

    @property
    def settings(self) -> dict:
        """How it is measured: {"text": {"name", "sha256"}, "window", "stride"}."""
        text = self.sample.text
        stride = getattr(self.sample, "stride", self.sample.window)
        return {"text": {"name": text.name, "sha256": text.sha256}, "window": self.sample.window, "stride": stride}

    def measure(self, matrices: Iterable[tuple[str, torch.Tensor]], progress: Progress = silent) -> dict:
        """The model with these weights (name, Ŵ (out, in)) in place: `fidelity.measure` against the dense model, or
        `fidelity.output_fidelity` for an encoder. Every weight is as before when this returns or raises. With a suite
        also "tasks", with the difference to the dense model, whose own are in "dense".

        Raises InputError for a weight that the model does not compute with as one linear layer.
        """
        seen = hashlib.sha256()
        spread = cluster.crew() is not None and isinstance(self.sample, Sample)
        sent: dict[str, torch.Tensor] = {}
        with ExitStack() as stack:
            for name, matrix in matrices:
                if spread:
                    sent[name] = matrix
                if name not in self.sites:
                    raise InputError(f"Weight {name} cannot be replaced in a {type(self.model).__name__}.")
                stack.enter_context(self.sites[name].replaced(matrix))
                if self.suite is not None:  # finished tasks are found again by the very weights
                    seen.update(name.encode() + matrix.detach().float().cpu().contiguous().numpy().tobytes())
            if isinstance(self.sample, EncoderSample):
                return output_fidelity(self.model, self.sample, self._reference, progress)
            elsewhere = scored_elsewhere(self.model, self.sample, self.checkpoint, sent) if spread else None
            found = measure(self.model, self.sample, self._reference, progress, found=elsewhere)
            if self.suite is not None:
                from karipap_core.evaluation.tasks.suite import with_difference

                ours = self._tasks(self.suite, f"{self._identity} with {seen.hexdigest()}", progress)
                found["tasks"] = with_difference(ours, self.dense["tasks"])
                found["dense"]["tasks"] = self.dense["tasks"]
            return found

    def _tasks(self, suite: "Suite", identity: str, progress: Progress) -> dict:
        from karipap_core.evaluation.tasks.suite import dtype_of

        return suite.measure(lambda: (self.model, self._tokenizer), identity, dtype_of(self.model), progress)
