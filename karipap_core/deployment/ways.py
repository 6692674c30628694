"""The four ways to serve a checkpoint, side by side in bytes and dollars.

dense · quantization alone · the full pipeline (tensor networks and all) · a smaller dense model. Which of them is
right is the business of verdict.py.
"""

from dataclasses import asdict, dataclass, replace
from typing import NotRequired, TypedDict

from karipap_core.deployment import evidence, hardware, kv
from karipap_core.deployment.footprint import Footprint
from karipap_core.deployment.hardware import Gpu
from karipap_core.deployment.request import Load, Machine
from karipap_core.plan.document import Plan
from karipap_core.quantization.formats import Format
from karipap_core.search import largest
from karipap_core.terminal import size

WAYS = ("dense", "quantization only", "full pipeline", "smaller dense model")
MAINTAIN = dict(
    zip(
        WAYS,
        (
            "Nothing beyond the engine.",
            "One calibration and one evaluation for each new checkpoint; every engine loads the result.",
            "Profile, plan, compress, heal, verify and shadow again whenever the checkpoint changes. Runs in "
            "transformers with karipap_core; vLLM, llama.cpp and ONNX Runtime take exports (karipap export), which "
            "are small for integers and their low-rank corrections, and mostly dense for other networks.",
            "Another model, with its own evaluation, prompts and fine-tunes; the engine as before.",
        ),
        strict=True,
    )
)


class Measured(TypedDict):
    """A run's quality: "rise" (nats a token above the dense model) or "relative_error" (of an encoder's outputs)."""

    measure: str
    value: float
    label: str | None
    text: str | None


class Way(TypedDict):
    """One row of the table of the four ways, as it stands in the document; None: not known."""

    way: str
    weights_bytes: int | None
    total_bytes: int | None  # with KV cache and activations
    fits: bool | None
    dollars: float | None  # a million tokens
    dollars_are: str | None  # "typed throughput", or "at least: peak bandwidth"
    measured: Measured | None
    maintain: str
    note: str
    quantize: NotRequired[str]  # of "quantization only": the format


def format_bytes(name: str, rows: int, columns: int) -> int:
    """Bytes of a matrix in a format of `quantize`, or in fp4 (NVFP4: 4 bits and one 8-bit scale for 16 numbers)."""
    if name == "fp4":
        return -(-rows * columns // 2) + rows * -(-columns // 16)
    return Format.parse(name).bytes(rows, columns)


def dollars(price: float, throughput: float) -> float:
    """$ a million tokens at $ an hour and tokens a second."""
    return price / (throughput * 3600) * 1e6


@dataclass(frozen=True)
class Case:
    """One model, one load, one machine. card: the machine's GPU, looked up once (None: none is named)."""

    foot: Footprint
    cache: kv.Cache
    load: Load
    machine: Machine
    card: Gpu | None
    plan: Plan | None = None

    @property
    def usable(self) -> int | None:
        """Bytes of the GPU that may be filled, None without a GPU."""
        return None if self.card is None else self.card.usable

    @property
    def activations(self) -> int:
        return self.foot.activations(self.load.tokens, self.load.batch)

    @property
    def cache_bytes(self) -> int:
        load = self.load
        return self.cache.bytes(load.tokens, load.batch, load.kv_dtype, load.keep)

    def total(self, weights: int) -> int:
        return weights + self.cache_bytes + self.activations

    def fits(self, weights: int) -> bool | None:
        return None if self.usable is None else self.total(weights) <= self.usable

    def placements(self, weights: int) -> list[kv.Placement]:
        """kv.placements under these weights; with host memory given, host memory that is too small is ruled out."""
        load, cache, card = self.load, self.cache, self.card
        if card is None or not cache.layers:
            return []
        whole = cache.bytes(load.tokens, load.batch, load.kv_dtype)
        selected = self.cache_bytes
        if cache.top_k and load.keep == 1:
            selected = cache.bytes(load.tokens, load.batch, load.kv_dtype, min(1.0, cache.top_k / load.tokens))
        places = kv.placements(
            whole,
            self.cache_bytes,
            selected,
            self.foot.active(weights, load.batch),
            card.usable - weights - self.activations,
            card.bandwidth,
            card.pcie,
            hardware.document()["pools"]["cxl"],
            load.sparse,
        )
        room = None if self.machine.host_memory is None else self.machine.host_memory * 1e9
        if room is not None and places[1].available and places[1].pool > room:
            why = f"{size(places[1].pool)} do not fit the host memory of {size(room)}."
            places[1] = replace(places[1], available=False, why=why)
        return places

    def way(self, name: str, weights: int | None, run: dict | None = None, note: str = "") -> Way:
        """One row of the table. run: a measured run of this very way."""
        row: Way = {
            "way": name,
            "weights_bytes": weights,
            "total_bytes": None,
            "fits": None,
            "dollars": None,
            "dollars_are": None,
            "measured": None,
            "maintain": MAINTAIN[name],
            "note": note,
        }
        if run is not None and (quality := evidence.quality(run)) is not None:
            measure, value = quality
            row["measured"] = {
                "measure": measure,
                "value": value,
                "label": run.get("label") or run.get("id"),
                "text": (run.get("text") or {}).get("name"),
            }
        if weights is None:
            return row
        row["total_bytes"], row["fits"] = self.total(weights), self.fits(weights)
        price, throughput = self.machine.price, self.machine.throughput
        if price is None:
            return row
        if throughput and name == ("full pipeline" if self.plan else "dense"):
            row["dollars"], row["dollars_are"] = dollars(price, throughput), "typed throughput"
        elif row["fits"] and (seconds := self._seconds(weights)):
            row["dollars"], row["dollars_are"] = dollars(price, self.load.batch / seconds), "at least: peak bandwidth"
        return row

    def _seconds(self, weights: int) -> float | None:
        """Least time of a decoding step with everything in the GPU's memory."""
        if self.card is None or self.card.bandwidth is None:
            return None
        return (self.foot.active(weights, self.load.batch) + self.cache_bytes) / self.card.bandwidth

    def ways(self, planned: int | None, runs: list[dict], format_name: str, smaller: Footprint | None) -> list[Way]:
        """The table of the four ways. planned: bytes under the plan (None: no plan); format_name: of node 2."""
        dense = self.way("dense", self.foot.bytes, note=f"{self.foot.parameters:,} parameters in {self.foot.dtype}")
        if runs and (loss := (runs[-1].get("dense") or {}).get("loss")) is not None:
            text = (runs[-1].get("text") or {}).get("name")
            dense["measured"] = {"measure": "rise", "value": 0.0, "label": f"loss {loss:.4f}", "text": text}
        quantized = self._quantized(runs, format_name)
        pipeline = self._pipeline(planned, runs, self.quantized(quantized["quantize"]))
        return [dense, quantized, pipeline, self._smaller(smaller)]

    def _quantized(self, runs: list[dict], format_name: str) -> Way:
        """In the format of node 2; in int4 where only that fits, or where the format's weights alone do not."""
        sizes = {name: self.quantized(name) for name in dict.fromkeys((format_name, "int4"))}
        chosen = format_name
        if self.usable is not None and not self.fits(sizes[format_name]):
            alone = sizes[format_name] + self.activations < self.usable
            if self.fits(sizes["int4"]) or not alone:
                chosen = min(sizes, key=lambda name: sizes[name])
        note = f"{chosen} on the blocks' weights, all else as it is"
        if chosen != format_name:
            note += f"; {format_name} ({size(sizes[format_name])}) does not fit"
        run = evidence.of_quantization(runs, chosen)
        for near in ("int8", "int4") if run is None else ():
            other = evidence.of_quantization(runs, near)
            quality = None if other is None else evidence.quality(other)
            if quality is not None:
                note += f"; not measured in {chosen}, but {near} was: {quality[0]} {quality[1]:.4f}"
                break
        row = self.way("quantization only", sizes[chosen], run, note)
        row["quantize"] = chosen
        return row

    def quantized(self, name: str) -> int:
        return self.foot.quantized(lambda rows, columns: format_bytes(name, rows, columns))

    def _pipeline(self, planned: int | None, runs: list[dict], quantized: int) -> Way:
        """The plan; without one, of the measured tensor-network runs that fit and are no larger than quantization
        alone, the one that loses least. Where quantization alone was measured to do as well, the row says so."""
        if planned is not None and self.plan is not None:
            run, note = evidence.of_plan(runs, self.plan), "the plan"
        else:
            measured = evidence.pipelines(runs)
            if not measured:
                return self.way("full pipeline", None, note="no plan given, and no tensor network measured")
            fitting = [run for run in measured if self.fits(run["bytes"])] or measured
            small = [run for run in fitting if run["bytes"] <= quantized]
            run = min(small or fitting, key=evidence.loss_added)
            planned, note = run["bytes"], "the measured run that loses least"
            note += " of those no larger than quantization only" if small else ""
        if run is not None and (rival := evidence.cheaper(runs, run)):
            note += f"; {rival['label']} alone is no larger and loses no more"
        return self.way("full pipeline", planned, run, note)

    def _smaller(self, smaller: Footprint | None) -> Way:
        if smaller is None:
            note = "not named: its config.json gives its figures"
            if self.usable is not None and (room := self.usable - self.activations) > 0:
                note += f"; it must leave its KV cache room in {size(room)}"
            return self.way("smaller dense model", None, note=note)
        other = replace(self, foot=smaller, cache=kv.cache_of(smaller.config), plan=None)
        other = replace(other, machine=replace(self.machine, throughput=None))  # it was measured on another model
        if other.cache.sparse != self.load.sparse:
            other = replace(other, load=replace(self.load, sparse=other.cache.sparse))
        note = f"{smaller.name}, {smaller.parameters:,} parameters in {smaller.dtype}"
        return other.way("smaller dense model", smaller.bytes, note=note)

    def most_sequences(self, weights: int) -> int:
        """The largest batch that fits beside these weights (0: none)."""
        if not self.cache.layers:
            return self.load.batch

        def fits(batch: int) -> bool:
            return replace(self, load=replace(self.load, batch=batch)).fits(weights) is True

        low, high = 0, 1
        while high <= 1 << 20 and fits(high):
            low, high = high, 2 * high
        return largest(fits, low, high)

    def row(self, place: kv.Placement) -> dict:
        """A placement as JSON, with milliseconds a step and tokens a second of the whole batch."""
        speed = None if not place.seconds else self.load.batch / place.seconds
        ms = None if place.seconds is None else place.seconds * 1e3
        return asdict(place) | {"ms_per_step": ms, "tokens_per_second": speed}
