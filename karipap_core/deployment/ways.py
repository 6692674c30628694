"""The four ways to serve a checkpoint, side by side in bytes and dollars, and which of them is right.

dense · quantization alone · the full pipeline (tensor networks and all) · a smaller dense model. The cheapest to
maintain that fits comes first; the full pipeline is right where the checkpoint is fixed and nothing simpler fits.
"""

import math
from dataclasses import asdict, dataclass, replace

from karipap_core.deployment import evidence, kv
from karipap_core.deployment.footprint import Footprint
from karipap_core.deployment.hardware import Gpu, document
from karipap_core.quantization.formats import Format
from karipap_core.search import largest
from karipap_core.terminal import size

RIGHT = {"dense": 0, "quantize": 1, "pipeline": 2, "smaller": 3}  # answer → which of the ways


def recommended(document: dict) -> str | None:
    """The way that the verdict comes to, None where it is none of them alone."""
    at = RIGHT.get(document["answer"])
    return None if at is None else document["ways"][at]["way"]


def ordered(document: dict) -> list[dict]:
    """The four ways, the recommended one first."""
    return sorted(document["ways"], key=lambda row: row["way"] != recommended(document))


def said_of(entry: dict) -> str:
    """Where a published figure is from, and what is to be said of it."""
    address = f" ({entry['source']['url']})" if entry["source"]["url"] else ""
    return f"Source: {entry['source']['name']}{address}. {entry['note']}"


RESERVE = 0.1  # of a GPU's memory that is left to the runtime: vLLM's gpu_memory_utilization is 0.9 by default
WAYS = ("dense", "quantization only", "full pipeline", "smaller dense model")
MAINTAIN = dict(
    zip(
        WAYS,
        (
            "Nothing beyond the engine.",
            "One calibration and one evaluation for each new checkpoint; every engine loads the result.",
            "Profile, plan, compress, heal, verify and shadow again whenever the checkpoint changes. Runs in "
            "transformers with karipap_core; other engines need the densified folder, at the dense memory.",
            "Another model, with its own evaluation, prompts and fine-tunes; the engine as before.",
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class Load:
    """What is to be served. keep: fraction of the tokens whose keys and values stay; sparse: the attention is sparse,
    that is, something says which tokens matter."""

    tokens: int
    batch: int = 1
    kv_dtype: str = "fp16"
    keep: float = 1.0
    sparse: bool = False


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
    """One model, one load, one GPU. usable: bytes of the GPU that may be filled (None without a GPU); price: $ an hour;
    throughput: tokens a second as measured by whoever asks, on the plan if there is one, else on the dense model."""

    foot: Footprint
    cache: kv.Cache
    load: Load
    card: Gpu | None
    usable: int | None
    price: float | None = None
    throughput: float | None = None
    plan: object | None = None
    host_memory: float | None = None

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
        if self.usable is None or not self.cache.layers:
            return []
        load, cache = self.load, self.cache
        whole = cache.bytes(load.tokens, load.batch, load.kv_dtype)
        selected = self.cache_bytes
        if cache.top_k and load.keep == 1:
            selected = cache.bytes(load.tokens, load.batch, load.kv_dtype, min(1.0, cache.top_k / load.tokens))
        places = kv.placements(
            whole,
            self.cache_bytes,
            selected,
            self.foot.active(weights, load.batch),
            self.usable - weights - self.activations,
            self.card.bandwidth,
            self.card.pcie,
            document()["pools"]["cxl"],
            load.sparse,
        )
        room = None if self.host_memory is None else self.host_memory * 1e9
        if room is not None and places[1].available and places[1].pool > room:
            why = f"{size(places[1].pool)} do not fit the host memory of {size(room)}."
            places[1] = replace(places[1], available=False, why=why)
        return places

    def way(self, name: str, weights: int | None, run: dict | None = None, note: str = "") -> dict:
        """One row of the table. run: a measured run of this very way."""
        row = {"way": name, "weights_bytes": weights, "total_bytes": None, "fits": None, "dollars": None}
        row |= {"dollars_are": None, "measured": None, "maintain": MAINTAIN[name], "note": note}
        if run is not None:
            measure, value = evidence.quality(run)
            row["measured"] = {
                "measure": measure,
                "value": value,
                "label": run.get("label") or run.get("id"),
                "text": (run.get("text") or {}).get("name"),
            }
        if weights is None:
            return row
        row |= {"total_bytes": self.total(weights), "fits": self.fits(weights)}
        if self.price is None:
            return row
        if self.throughput and name == ("full pipeline" if self.plan else "dense"):
            return row | {"dollars": dollars(self.price, self.throughput), "dollars_are": "typed throughput"}
        seconds = self._seconds(weights) if row["fits"] else None
        if seconds:
            bound = dollars(self.price, self.load.batch / seconds)
            return row | {"dollars": bound, "dollars_are": "at least: peak bandwidth"}
        return row

    def _seconds(self, weights: int) -> float | None:
        """Least time of a decoding step with everything in the GPU's memory."""
        if self.card.bandwidth is None:
            return None
        return (self.foot.active(weights, self.load.batch) + self.cache_bytes) / self.card.bandwidth

    def ways(self, planned: int | None, runs: list[dict], format_name: str, smaller: Footprint | None) -> list[dict]:
        """The table of the four ways. planned: bytes under the plan (None: no plan); format_name: of node 2."""
        dense = self.way("dense", self.foot.bytes, note=f"{self.foot.parameters:,} parameters in {self.foot.dtype}")
        if runs and (loss := (runs[-1].get("dense") or {}).get("loss")) is not None:
            text = (runs[-1].get("text") or {}).get("name")
            dense["measured"] = {"measure": "rise", "value": 0.0, "label": f"loss {loss:.4f}", "text": text}
        quantized = self._quantized(runs, format_name)
        pipeline = self._pipeline(planned, runs, quantized["weights_bytes"])
        return [dense, quantized, pipeline, self._smaller(smaller)]

    def _quantized(self, runs: list[dict], format_name: str) -> dict:
        """In the format of node 2; in int4 where only that fits, or where the format's weights alone do not."""
        sizes = {name: self.quantized(name) for name in dict.fromkeys((format_name, "int4"))}
        chosen = format_name
        if self.usable is not None and not self.fits(sizes[format_name]):
            alone = sizes[format_name] + self.activations < self.usable
            if self.fits(sizes["int4"]) or not alone:
                chosen = min(sizes, key=sizes.get)
        note = f"{chosen} on the blocks' weights, all else as it is"
        if chosen != format_name:
            note += f"; {format_name} ({size(sizes[format_name])}) does not fit"
        run = evidence.of_quantization(runs, chosen)
        near = next((each for each in ("int8", "int4") if run is None and evidence.of_quantization(runs, each)), None)
        if near:
            measure, value = evidence.quality(evidence.of_quantization(runs, near))
            note += f"; not measured in {chosen}, but {near} was: {measure} {value:.4f}"
        row = self.way("quantization only", sizes[chosen], run, note)
        return row | {"quantize": chosen}

    def quantized(self, name: str) -> int:
        return self.foot.quantized(lambda rows, columns: format_bytes(name, rows, columns))

    def _pipeline(self, planned: int | None, runs: list[dict], quantized: int) -> dict:
        """The plan; without one, of the measured tensor-network runs that fit and are no larger than quantization
        alone, the one that loses least. Where quantization alone was measured to do as well, the row says so."""
        if planned is not None:
            run, note = evidence.of_plan(runs, self.plan), "the plan"
        else:
            measured = evidence.pipelines(runs)
            if not measured:
                return self.way("full pipeline", None, note="no plan given, and no tensor network measured")
            fitting = [run for run in measured if self.fits(run["bytes"])] or measured
            small = [run for run in fitting if run["bytes"] <= quantized]
            run = min(small or fitting, key=lambda run: evidence.quality(run)[1])
            planned, note = run["bytes"], "the measured run that loses least"
            note += " of those no larger than quantization only" if small else ""
        if run is not None and (rival := evidence.cheaper(runs, run)):
            note += f"; {rival['label']} alone is no larger and loses no more"
        return self.way("full pipeline", planned, run, note)

    def _smaller(self, smaller: Footprint | None) -> dict:
        if smaller is None:
            note = "not named: its config.json gives its figures"
            if self.usable is not None and (room := self.usable - self.activations) > 0:
                note += f"; it must leave its KV cache room in {size(room)}"
            return self.way("smaller dense model", None, note=note)
        other = replace(self, foot=smaller, cache=kv.cache_of(smaller.config), plan=None, throughput=None)
        if other.cache.sparse != self.load.sparse:
            other = replace(other, load=replace(self.load, sparse=other.cache.sparse))
        note = f"{smaller.name}, {smaller.parameters:,} parameters in {smaller.dtype}"
        return other.way("smaller dense model", smaller.bytes, note=note)

    def most_sequences(self, weights: int) -> int:
        """The largest batch that fits beside these weights (0: none)."""
        if not self.cache.layers:
            return self.load.batch

        def fits(batch: int) -> bool:
            return replace(self, load=replace(self.load, batch=batch)).fits(weights)

        low, high = 0, 1
        while high <= 1 << 20 and fits(high):
            low, high = high, 2 * high
        return largest(fits, low, high)

    def verdict(self, ways: list[dict], runs: list[dict], fixed: bool | None) -> tuple[str, str, list[str]]:
        """(answer, sentence, reasons) of node 4.

        answer: dense, quantize, cache, pipeline, smaller, ask, none (nothing fits one GPU) or unknown (no GPU).
        """
        dense, quantized, pipeline, smaller = ways
        parts = f"weights {{}}, KV cache {size(self.cache_bytes)}, activations {size(self.activations)}"
        if self.usable is None:
            needs = size(dense["total_bytes"])
            reasons = [f"Dense it takes {needs}: {parts.format(size(self.foot.bytes))}."]
            return "unknown", f"No GPU is named: dense it takes {needs}. Name one with --gpu.", reasons
        card, room = self.card.name, size(self.usable)
        reasons = [
            f"{card}: {size(self.card.memory)}, of which {room} may be filled ({RESERVE:.0%} stay with the runtime)."
        ]
        for row in ways:
            if row["total_bytes"] is not None:
                word = "fits" if row["fits"] else f"does not fit: {size(row['total_bytes'] - self.usable)} too much"
                reasons.append(f"{row['way'].capitalize()}: {size(row['total_bytes'])}, {word}.")
        if dense["fits"]:
            answer = "dense"
            sentence = (
                f"Deploy it dense: {size(dense['total_bytes'])} of {room} on one {card}. Nothing has to be compressed "
                f"to fit; for cost per token try {quantized['quantize']} alone next."
            )
        elif quantized["fits"]:
            answer, sentence = "quantize", self._quantize_sentence(quantized, fixed)
        elif quantized["weights_bytes"] + self.activations < self.usable and self.cache.layers:
            answer, sentence, more = self._cache_verdict(quantized)
            reasons += more
        else:
            answer, sentence, more = self._too_large(quantized, pipeline, smaller, runs, fixed)
            reasons += more
        return answer, sentence, reasons + [self._said_of(fixed)]

    def _quantize_sentence(self, quantized: dict, fixed: bool | None) -> str:
        sentence = f"Quantization alone: {quantized['quantize']} takes {size(quantized['total_bytes'])} and fits."
        if fixed is False:
            sentence += " A smaller dense model is the other simple answer."
        measured = quantized["measured"]
        if measured and measured["measure"] == "rise":
            sentence += f" Measured here, it raises the loss by {measured['value']:.4f} nats a token."
        return sentence + " The full pipeline earns its upkeep only where this is not enough."

    def _cache_verdict(self, quantized: dict) -> tuple[str, str, list[str]]:
        """The weights would fit: it is the cache that does not."""
        weights, load = quantized["weights_bytes"], self.load
        reasons = [f"The KV cache is the larger part: smaller weights alone do not bring {size(self.cache_bytes)} in."]
        for dtype in ("fp8" if self.card.fp8 else "int8", "int4"):
            lighter = replace(self, load=replace(load, kv_dtype=dtype))
            if lighter.cache_bytes < self.cache_bytes and lighter.fits(weights):
                how = f"{quantized['quantize']} weights and a KV cache in {dtype}: {size(lighter.total(weights))}"
                return "cache", f"Quantize weights and cache, nothing more: {how}, which fits.", reasons
        most = self.most_sequences(weights)
        few = f"At most {most} of {load.batch} sequences fit at once" if most else "Not even one sequence fits"
        where = next((place for place in self.placements(weights) if place.available), None)
        if where is None:
            return "cache", f"{few}; the rest needs more GPUs.", reasons
        slow = "" if where.seconds is None else f", at {where.seconds * 1e3:,.0f} ms a step at best"
        return "cache", f"{few} with {quantized['quantize']} weights; for all of them: {where.name}{slow}.", reasons

    def _too_large(self, quantized, pipeline, smaller, runs, fixed) -> tuple[str, str, list[str]]:
        """Not even the quantized weights fit."""
        budget = self.usable - self.activations - self.cache_bytes
        count = math.ceil(quantized["total_bytes"] / self.usable)
        gpus = f"{count:,} such GPUs together would hold the quantized model"
        if budget <= 0 or budget < 0.02 * self.foot.bytes:
            return (
                "none",
                f"One {self.card.name} is too small for this model and this load at any compression: {gpus}.",
                [],
            )
        need = f"a plan of at most {size(budget)} is needed: --budget-bytes {budget / self.foot.bytes:.2f}"
        if fixed is False:
            if smaller["fits"] is False:
                return "none", f"Neither quantization nor the smaller model fits: {gpus}.", []
            return (
                "smaller",
                "A smaller dense model: the checkpoint is not fixed, and quantization alone is not enough.",
                [],
            )
        low = {name: self.quantized(name) for name in ("int3", "int2")}
        rivals = [
            f"Its rival is {name} on every weight, {size(low[name])}, which fits as well: measure both."
            for name in low
            if self.fits(low[name])
        ][:1]
        network = f"The full pipeline: {'the plan fits' if pipeline['fits'] else need}."
        if pipeline["fits"]:
            run = self._run_of(pipeline, runs)
            rival = run and evidence.cheaper(runs, run)
            if rival and self.fits(rival["bytes"]):
                sentence = (
                    f"Quantization alone, further down: {rival['label']} is no larger and loses no more, measured."
                )
                return "quantize", sentence, []
        if fixed is None:
            sentence = (
                "Quantization alone does not fit. If the checkpoint is not fixed, take a smaller dense model; if "
            )
            return "ask", f"{sentence}it is, {network[0].lower()}{network[1:]}", []
        return "pipeline", network + ("" if pipeline["fits"] else f" Or more GPUs: {gpus}."), rivals

    @staticmethod
    def _run_of(pipeline: dict, runs: list[dict]) -> dict | None:
        label = (pipeline["measured"] or {}).get("label")
        return next((run for run in runs if label and label in (run.get("label"), run.get("id"))), None)

    @staticmethod
    def _said_of(fixed: bool | None) -> str:
        if fixed is None:
            return (
                "Not said: whether the checkpoint is fixed (licence, data residency, a fine-tune with no smaller twin, "
                "hardware on site). Only then is the full pipeline worth its upkeep."
            )
        if fixed:
            return "The checkpoint is fixed, so a smaller model is no way out; simpler ways still come first."
        return "The checkpoint is not fixed: a smaller dense model costs less to maintain than the full pipeline."

    def row(self, place: kv.Placement) -> dict:
        """A placement as JSON, with milliseconds a step and tokens a second of the whole batch."""
        speed = None if not place.seconds else self.load.batch / place.seconds
        ms = None if place.seconds is None else place.seconds * 1e3
        return asdict(place) | {"ms_per_step": ms, "tokens_per_second": speed}
