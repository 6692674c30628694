"""Cores fitted behind a compressed prefix: each weight makes good what the weights before it have lost.

Layers are cut in the order in which the model runs them. What a weight is given behind weights that are cut already is
x̂, where the dense model gives it x. It is fitted to W′ = W E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹, the best linear answer to x̂ for what the
dense weight gives for x, and its errors are weighed by the moment of x̂ (GPTAQ, arXiv:2504.02692; AA-SVD,
arXiv:2604.02119). The plan, its bytes and the moments of gradients stay as they are.

Some windows go through the model twice, side by side, dense and compressed; they meet at every block (abreast.py), and
there the block's weights are fitted before any passes it: in memory are one block, what stands before it, and the
moments of weights with the same input.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

from karipap_core.errors import InputError
from karipap_core.models.abreast import Abreast
from karipap_core.models.sites import Site, observe
from karipap_core.models.streamed import Streamed, give_back
from karipap_core.networks import Spec
from karipap_core.networks.stored import in_dtype, quantize_cores, values
from karipap_core.plan.document import Plan
from karipap_core.plan.outputs import in_batches, put_out
from karipap_core.profiles.blockpass import runs_apart
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Stored
from karipap_core.spectra.metric import Metric

WINDOWS = 128  # of the calibration text, that go through the model
DAMPING = 0.01  # of the moment of x̂, toward W′ = W

Keep = Callable[[str, Spec, list[Stored]], None]
Known = Callable[[str], list[torch.Tensor] | None]


def fit_aligned(study, plan: Plan, keep: Keep, known: Known = lambda name: None, progress: Progress = silent) -> None:
    """Hands the cores of every weight that a plan cuts, as they are stored, to keep(name, spec, cores): those outside
    the blocks first, then block by block. Not fitted behind others but as `Decompositions` has them are weights outside
    the blocks, experts, and those that share their cores with other layers.

    known(name): the values (float32) of cores that an earlier run has fitted and kept: with them it goes on where that
    one stopped, and ends with the same cores. Raises InputError where the model does not run block by block.
    """
    if (why := study.why_not_run) is not None:
        raise InputError(f"A compressed prefix has to be run: {why}")
    if not runs_apart(study.checkpoint, study.device):
        raise InputError(
            f"{study.checkpoint.name} does not run block by block: make the plan without an aligned prefix."
        )
    study.release()
    _Aligned(study, plan, keep, known, progress).fit()


def aligned_matrices(study, plan: Plan, progress: Progress = silent) -> dict[str, torch.Tensor]:
    """Ŵ (out, in), float32, of every weight that a plan cuts, by `fit_aligned`."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, spec: Spec, cores: list[Stored]) -> None:
        found[name] = spec.dense(values(spec, cores))

    fit_aligned(study, plan, keep, progress=progress)
    return found


class _Aligned(Abreast):
    """Batches of windows, each in two passes: number 2k dense, number 2k + 1 behind what is cut."""

    def __init__(self, study, plan: Plan, keep: Keep, known: Known, progress: Progress) -> None:
        super().__init__(Streamed(study.checkpoint, device=study.device))
        self.study, self.plan, self.keep, self.known, self.tell = study, plan, keep, known, progress
        self.decompositions = study.decompositions_of(plan)
        checkpoint, model = study.checkpoint, self.streamed.model
        config: Any = model.config.get_text_config()
        width = config.vocab_size if checkpoint.predicts else config.hidden_size
        self.batches = in_batches(study.windows.moments[:WINDOWS], (), width)
        self.specs = {weight.name: spec for weight in checkpoint.weights if (spec := plan.spec(weight.name))}
        self.arguments: dict[int, tuple[tuple, dict]] = {}  # what each pass gives the block that all wait at
        self.cut: dict[str, torch.Tensor] = {}  # Ŵ of the block that is passed
        self.begun = False
        homes = {weight.name: self.streamed.home_of(weight, self.streamed.blocks) for weight in checkpoint.weights}
        self.apart = [name for name in self.specs if homes[name] is None]  # of the blocks

    def fit(self) -> None:
        for name in self.apart:
            if self.known(name) is None:
                self.keep(name, self.specs[name], self._stored(name))
        if len(self.apart) < len(self.specs):
            self.run([partial(self._through, index) for index in range(len(self.batches)) for _ in range(2)])
            give_back()

    def _through(self, index: int, model: Any) -> None:
        put_out(model, self.batches[index], self.streamed.device)

    # At a block; see `Abreast`.

    def _called(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.arguments[self._mine.number] = args, kwargs
        return super()._called(path, *args, **kwargs)

    @contextmanager
    def block(self, path: str, place: int, places: int) -> Iterator[None]:
        self.tell("fit", place, places, path)
        module, within = self.streamed.block(path)
        self.cut = {}
        for names in self._in_turn(module, within):
            self._fit(module, within, names)
        self.begun = self.begun or bool(self.cut)
        yield

    def passes(self, path: str, number: int, args: Any, kwargs: Any) -> Any:
        module, within = self.streamed.block(path)
        with self._as_cut(within) if number % 2 else ExitStack():
            return module(*args, **kwargs)

    @contextmanager
    def _as_cut(self, within: Mapping[str, Site]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, matrix in self.cut.items():
                stack.enter_context(within[name].replaced(matrix))
            yield

    # Fitting a block.

    def _in_turn(self, module: Any, within: Mapping[str, Site]) -> list[list[str]]:
        """The block's weights that the plan cuts, those with one input together, in the order in which they are used;
        what the first windows do not reach comes last."""
        order: list[list[str]] = []
        inputs: list[torch.Tensor] = []  # kept, so that no other takes their place in memory

        def seen(name: str, x: torch.Tensor) -> None:
            if inputs and (inputs[-1].data_ptr(), inputs[-1].shape) == (x.data_ptr(), x.shape):
                order[-1].append(name)
            else:
                inputs.append(x)
                order.append([name])

        with observe(dict(within), seen):
            self._run(module, 0)
        used = {name for names in order for name in names}
        order.append([name for name in within if name not in used])
        taken: set[str] = set()
        found = []
        for names in order:
            mine = [name for name in dict.fromkeys(names) if name in self.specs and name not in taken]
            taken.update(mine)
            found += [mine] if mine else []
        return found

    def _run(self, module: Any, number: int) -> None:
        """Passes the block once; what it was given stays as it is, should it write into it."""
        args, kwargs = tree_map(_copied, self.arguments[number])
        with torch.no_grad():
            module(*args, **kwargs)

    def _fit(self, module: Any, within: Mapping[str, Site], names: list[str]) -> None:
        """Fits weights with one input, and cuts them."""
        known = {name: self.known(name) for name in names}
        free = [name for name in names if known[name] is None and self._alignable(name)]
        moments = self._moments(module, within, free[0]) if free and (self.begun or self.cut) else None
        for name in names:
            spec, cores = self.specs[name], known[name]
            if cores is None:
                aligned = name in free and moments is not None
                stored = self._aligned(name, spec, *moments) if aligned and moments else self._stored(name)
                self.keep(name, spec, stored)
                cores = values(spec, stored)
            self.cut[name] = spec.dense(cores)

    def _alignable(self, name: str) -> bool:
        """Not a weight that shares its cores with others, nor an expert, which is given other tokens behind others."""
        return not self.specs[name].members and self.study.checkpoint.weight(name).expert is None

    def _moments(self, module: Any, within: Mapping[str, Site], name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(E[x x̂ᵀ], E[x̂ x̂ᵀ]), float64, of the input of a weight; None where it is not given the same tokens in both."""
        pair: list[torch.Tensor] = []
        one = {name: within[name]}
        cross: torch.Tensor | None = None
        own: torch.Tensor | None = None
        tokens = 0
        for number in range(0, 2 * len(self.batches), 2):
            pair.clear()
            with observe(one, lambda _, x: pair.append(x)):
                self._run(module, number)
                with self._as_cut(within):
                    self._run(module, number + 1)
            if len(pair) != 2 or pair[0].shape != pair[1].shape:
                return None
            x, x_hat = (each.float() for each in pair)
            cross = x.T @ x_hat if cross is None else cross.addmm_(x.T, x_hat)
            own = x_hat.T @ x_hat if own is None else own.addmm_(x_hat.T, x_hat)
            tokens += len(x)
        if cross is None or own is None:
            return None
        return cross.double().cpu() / tokens, own.double().cpu() / tokens

    def _aligned(self, name: str, spec: Spec, cross: torch.Tensor, own: torch.Tensor) -> list[Stored]:
        """Cores of W′ = W (E[x x̂ᵀ] + λ) (E[x̂ x̂ᵀ] + λ)⁻¹ under the moment of x̂ and the plan's own of gradients."""
        weight = self.study.checkpoint.weight(name)
        W = self.study.checkpoint.read(name).double()
        damped = own.clone()
        damped.diagonal().add_(DAMPING * own.diagonal().mean())
        cross = cross.clone()
        cross.diagonal().add_(DAMPING * own.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return self._stored(name)
        W = torch.cholesky_solve((W @ cross).T, factor).T
        metric = self.decompositions.metric_of(name)
        if metric.C is not None:
            metric = Metric(metric.name, own, metric.G, metric.damping, metric.rounds_under_G)
        cores = replace(spec, quantize=None).decompose(W, metric)
        return in_dtype(spec, quantize_cores(spec, cores, W, metric), getattr(torch, weight.dtype))

    def _stored(self, name: str) -> list[Stored]:
        return self.decompositions.stored(name, self.specs[name])


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
