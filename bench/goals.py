"""How fast the heavy jobs are beside what others do them with, and beside what the arithmetic alone would take.

    make bench [ONLY=goals]    or    python -m bench.goals [--rows NAME …] [--against FOLDER] [--seconds 1]

Every row is one function that gives its sides, ours first, which take turns in one process with one BLAS thread. The
figure of a side is the median of its processor's seconds, which a busy machine stretches least; wall time stands in the
JSON beside it, in `bench/goals.json` of the workspace. A row's goal is ours over the named side. Rows that compare with
another checkout of this project are left out without --against; those that take minutes (plan-…) run when named.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from karipap_core.networks import NETWORKS
from karipap_core.networks.dense import Dense
from karipap_core.search import largest
from karipap_core.spectra.spectrum import singular_values
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import environment

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (1024, 4096)
ROWS: dict[str, Callable] = {}
SLOW: set[str] = set()

Sides = dict[str, Callable[[], object]]


def row(name: str, slow: bool = False):
    """Registers a function (options) → rows (job, sides, goals {side: most that ours may take of its time})."""

    def decorator(function: Callable) -> Callable:
        ROWS[name] = function
        SLOW.update({name} if slow else ())
        return function

    return decorator


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mpo_within(kept: float, sites: int | None = None):
    spec = NETWORKS["mpo"].for_shape(*SHAPE, 1, sites=sites)
    most = kept * SHAPE[0] * SHAPE[1]
    return spec.with_chi(largest(lambda chi: spec.with_chi(chi).parameters <= most, 1, spec.max_chi + 1))


@row("mpo-forward")
def mpo_forward(options):
    import tltorch

    from karipap_core.layers.linear import TensorNetworkLinear

    W = weight(*SHAPE)
    for kept, sites in ((0.2, None), (0.5, None), (0.1, 4)):
        spec = mpo_within(kept, sites)
        layer = TensorNetworkLinear.from_spec(spec, seed=0)
        theirs = tltorch.TensorizedTensor.new((spec.out, spec.in_), rank=[1, *spec.chi, 1], factorization="blocktt")
        for factor, core in zip(theirs.factors, layer.cores, strict=True):
            factor.data.copy_(core)
        for batch in (1, 32, 512):
            x = torch.randn(batch, SHAPE[1])
            rank = max(1, round(spec.multiply_adds(batch) / batch / sum(SHAPE)))
            L, R = torch.randn(SHAPE[0], rank), torch.randn(rank, SHAPE[1])

            def tltorch_side(x=x, theirs=theirs):
                return tltorch.functional.factorized_linear(x, theirs, in_features=SHAPE[1])

            torch.testing.assert_close(layer(x), tltorch_side(), rtol=1e-3, atol=1e-3)
            sides = {
                "ours": lambda x=x, layer=layer: layer(x),
                "tensorly-torch": tltorch_side,
                "two GEMMs": lambda x=x, L=L, R=R: x @ R.T @ L.T,
                "dense": lambda x=x: x @ W.T,
            }
            job = f"mpo forward, {spec.describe().split(',')[0].removeprefix('mpo ')}, kept {kept}, batch {batch}"
            yield job, sides, {"tensorly-torch": 1.0, "two GEMMs": 1.15}


@row("decode")
def decode(options):
    """Both kept in few bits; torchao's keeps 8 bits a number."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    from karipap_core.layers.linear import TensorNetworkLinear

    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    theirs = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0], bias=False))
    theirs[0].load_state_dict(linear.state_dict())
    quantize_(theirs, Int8WeightOnlyConfig())
    x = torch.randn(1, SHAPE[1])
    for form in ("int8", "int4", "int2"):
        layer = TensorNetworkLinear.from_spec(Dense.for_shape(*SHAPE, quantize=form), seed=0)
        sides = {"ours": lambda layer=layer: layer(x), "torchao int8": lambda: theirs(x), "dense": lambda: linear(x)}
        yield f"decode, 1024 × 4096, {form}, batch 1", sides, {"torchao int8": 1.0} if form != "int2" else {}
    spec = NETWORKS["qlr"].for_shape(*SHAPE, 64, quantize="int4", bits="int4")
    layer = TensorNetworkLinear.from_spec(spec, seed=0)
    sides = {"ours": lambda: layer(x), "torchao int8": lambda: theirs(x), "dense": lambda: linear(x)}
    yield "decode, 1024 × 4096, qlr int4 + rank 64, batch 1", sides, {}


@row("spectrum")
def spectrum(options):
    from weightwatcher import RMT_Util

    for shape, times in (((2048, 2048), 5), ((4096, 1024), 4)):
        W = weight(*shape)
        sides = {
            "ours": lambda W=W: singular_values(W),
            "WeightWatcher": lambda W=W: RMT_Util.svd_vals(W.numpy().astype(float)),  # as it does
            "torch svdvals": lambda W=W: torch.linalg.svdvals(W),
        }
        yield f"σ of {shape[0]} × {shape[1]}", sides, {"WeightWatcher": 1 / times}


@row("mpo-decomposition")
def mpo_decomposition(options):
    import tensorly
    import tntorch
    import torchtt
    from tensorly.decomposition import tensor_train

    from karipap_core.networks.mpo import to_sites

    tensorly.set_backend("pytorch")
    spec = NETWORKS["mpo"].for_shape(*SHAPE, 64)
    W = weight(*SHAPE)
    target = to_sites(W, spec.out, spec.in_).contiguous()  # in float32: the error is as small
    sides = {
        "ours": lambda: spec.decompose(W),
        "torchTT": lambda: torchtt.TT(target, eps=0, rmax=64).cores,
        "tntorch": lambda: tntorch.Tensor(target, ranks_tt=64).cores,
        "tensorly": lambda: tensor_train(target, rank=[1, 64, 1]).factors,
        "plain svd": lambda: torch.linalg.svd(target, full_matrices=False),
        "Gram floor": lambda: torch.linalg.eigvalsh(target.double() @ target.double().T),
    }

    def error(cores) -> float:
        return (target - cores[0].reshape(-1, 64) @ cores[1].reshape(64, -1)).double().square().sum().item()

    ours = spec.dense([core.double() for core in spec.decompose(W)])
    least = (W.double() - ours).square().sum().item()
    assert abs(error(sides["torchTT"]()) / least - 1) < 1e-6
    peers = dict.fromkeys(("torchTT", "tntorch", "tensorly", "plain svd"), 0.5)
    yield "mpo decomposition, 1024 × 4096, χ 64, equal error", sides, peers


ROUNDED = """
import hashlib, json, statistics, time, torch
from karipap_core.quantization.rounding import inverse_factor, quantize_by_factor, quantize_rtn
torch.set_num_threads(1)
W = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
X = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
U, found = inverse_factor(X.T @ X / len(X), 0.01), {}
for bits, group in ((8, None), (4, 64), (3, 64), (2, 32)):
    jobs = {"search of ranges": lambda: quantize_rtn(W, bits, group)}
    if bits < 8:  # 8 bits are rounded to nearest
        jobs["GPTQ"] = lambda: quantize_by_factor(W, bits, group, U)
    for name, job in jobs.items():
        cpu, wall = [], []
        for _ in range(4):
            began, clock = time.process_time(), time.monotonic()
            codes = job().codes
            cpu.append(time.process_time() - began)
            wall.append(time.monotonic() - clock)
        codes = hashlib.sha256(codes.numpy().tobytes()).hexdigest()
        times = {"cpu": statistics.median(cpu[1:]), "wall": statistics.median(wall[1:])}
        found[f"{name}, 1024 × 1024, int{bits}"] = {"codes": codes} | times
print(json.dumps(found))
"""


@row("rounding")
def rounding(options):
    """Each checkout in processes of its own, which take turns; the codes have to be the same."""
    if options.against is None:
        print("rounding: left out, it compares with another checkout (--against FOLDER)")
        return
    found: dict[str, list] = {"ours": [], "other checkout": []}
    for _ in range(3):
        for name, folder in (("ours", ROOT), ("other checkout", options.against.resolve())):
            settings = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
            ran = subprocess.run(
                [sys.executable, "-c", ROUNDED], check=True, cwd=folder, env=settings, stdout=subprocess.PIPE
            )
            found[name].append(json.loads(ran.stdout))
    for job in found["ours"][0]:
        assert len({each[job]["codes"] for side in found.values() for each in side}) == 1, job
        took = {
            name: {clock: statistics.median(each[job][clock] for each in side) for clock in ("cpu", "wall")}
            for name, side in found.items()
        }
        yield f"{job}, same codes", took, {"other checkout": 0.5 if job.startswith("GPTQ") else 1 / 3}


PLAN = """
import json, os, sys, time
from pathlib import Path
from karipap_core.models.load import load_model
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.planner import Planner
from karipap_core.plan.probe import Probe
from karipap_core.plan import on_text, onepass
from karipap_core.plan.study import Study
from karipap_core.profiles import blockpass
from karipap_core.profiles.activations import calibration_windows
from karipap_core.text import read_text, standard_library

model, text, heldout, measure, where, *budgets = sys.argv[1:]
if where == "apart":
    blockpass.IN_MEMORY = on_text.HELD = onepass.KEPT_MOMENTS = 0
study = Study(model, text or None, measure=measure)
planner = Planner(study, Choice("lowrank"), "loss")
plans = {kept: planner.make(Budget(kept=float(kept), scope="blocks"), "calibrated") for kept in budgets}
found = {"cpu": time.process_time(), "rises": {}}
Path(os.environ["KARIPAP_WORKSPACE"], "planned").touch()
if heldout != "none":
    live, tokenizer = load_model(study.checkpoint)
    seen = read_text(heldout) if heldout else standard_library("heldout")
    windows = calibration_windows(tokenizer, seen, study.settings, live.config.get_text_config().vocab_size)
    probe, decompositions = Probe(live, study.checkpoint, windows.moments[:64]), study.decompositions("loss")
    for kept, plan in plans.items():
        specs = {name: plan.spec(name) for name in plan.weights}
        cut = {n: (lambda n=n, s=s: decompositions.matrix(n, s)) for n, s in specs.items() if s}
        found["rises"][kept] = probe.measured([cut])[0].loss - probe.dense.loss
print(json.dumps(found))
"""


def plan_of(
    model: Path, text: str, measure: str, budgets=(0.8,), heldout: str = "none", apart: bool = False
) -> tuple[dict, dict]:
    """({"cpu": seconds, "wall": seconds, "memory": bytes that are not of files, at the peak}, {budget: measured rise})
    of calibrated plans in a process of their own, with nothing measured before; apart: block by block, however small
    the model is."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "model"
        shutil.copytree(model, bare, ignore=shutil.ignore_patterns("karipap"))
        settings = os.environ | {"KARIPAP_WORKSPACE": folder, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        clock = time.monotonic()
        where = "apart" if apart else "as it comes"
        command = [sys.executable, "-c", PLAN, str(bare), text, heldout, measure, where, *map(str, budgets)]
        run = subprocess.Popen(command, cwd=ROOT, env=settings | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
        memory = 0
        while run.poll() is None:
            if not Path(folder, "planned").exists():  # what measures the plans afterwards is no part of it
                memory = max(memory, anonymous(run.pid))
            time.sleep(0.02)
        if run.returncode:
            raise SystemExit(f"error: the plan of {model} ended with status {run.returncode}")
    assert run.stdout is not None
    found = json.loads(run.stdout.read().splitlines()[-1])
    return {"cpu": found["cpu"], "wall": time.monotonic() - clock, "memory": memory}, found["rises"]


def anonymous(pid: int) -> int:
    """Bytes of memory of a process that are not of files, 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])
    except (OSError, IndexError):
        return 0


@row("plan-demo", slow=True)
def plan_demo(options):
    yield from both_ways(ROOT / "assets" / "demo_model", "", "", 1 / 6)


@row("plan-model", slow=True)
def plan_model(options):
    """Of --model, by gradients alone; by forward passes too with --all, which may take hours."""
    if options.model is None:
        raise SystemExit("error: plan-model needs --model FOLDER")
    yield from both_ways(options.model, options.text or "", options.heldout or "none", 1 / 25, options.all)


def both_ways(model: Path, text: str, heldout: str, goal: float, other: bool = True):
    """Time and memory of a plan, and what plans of two sizes are measured to lose on held-out text, from gradients and
    by forward passes."""
    ways = {"ours": "gradients"} | ({"forward passes": "all"} if other else {})
    took, rises = {}, {}
    for side, measure in ways.items():
        took[side], rises[side] = plan_of(model, text, measure, (0.8, 0.5), heldout)
    yield f"calibrated low-rank plans of {model.name} from nothing", took, {"forward passes": goal}
    memory = {side: {"bytes": each["memory"]} for side, each in took.items()}
    yield "    memory at its peak", memory, {}
    for kept in rises["ours"]:
        found = {side: {"nats": each[kept]} for side, each in rises.items()}
        yield f"    rise on held-out text, {float(kept):.0%} of the blocks kept", found, {"forward passes": 1.03}


@row("blocks", slow=True)
def blocks(options):
    """Random Llamas with 4, 8 and 16 blocks: time and memory of a plan from nothing when their number doubles, in
    memory as far as they are small enough for that, and block by block, which takes half as long again."""
    from transformers import LlamaConfig, LlamaForCausalLM

    demo, took = ROOT / "assets" / "demo_model", {}
    for count in (4, 8, 16):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            config = LlamaConfig.from_pretrained(demo, num_hidden_layers=count, hidden_size=512, intermediate_size=1408)
            config.num_attention_heads = config.num_key_value_heads = 8
            config.head_dim = 64
            with torch.device("cpu"):
                LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(demo / name, folder)
            for apart in (False, True) if count < 16 else (True,):
                took[count, apart], _ = plan_of(Path(folder), "", "gradients", apart=apart)
    for few, many, apart in ((4, 8, False), (4, 8, True), (8, 16, True)):
        sides = {"ours": took[many, apart], f"{few} blocks": took[few, apart]}
        where = "block by block" if apart else "in memory"
        yield f"plan of {many} blocks of width 512 from nothing, {where}", sides, {f"{few} blocks": 2.1}
        memory = {side: {"bytes": each["memory"]} for side, each in sides.items()}
        yield "    memory at its peak", memory, {f"{few} blocks": 1.05}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default: all but the slow ones")
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--model", type=Path, help="of plan-model")
    parser.add_argument("--text", help="that plan-model calibrates on")
    parser.add_argument("--heldout", help="text that plan-model measures plans on")
    parser.add_argument("--all", action="store_true", help="plan-model by forward passes too")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least so long for each side")
    options = parser.parse_args()
    print(f"{'job':66}{'ours':>10}      {'beside':16}{'its':>10}{'ratio':>8}{'goal':>7}  met")
    kept = []
    for name in options.rows or [name for name in ROWS if name not in SLOW]:
        for job, sides, goals in ROWS[name](options):
            took = measured(sides, options.seconds) if callable(sides["ours"]) else sides
            kept.append({"row": name, "job": job, "sides": took, "goals": goals})
            show(job, took, goals)
    file = Workspace().root / "bench" / "goals.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"environment": environment(), "rows": kept}, indent=1))
    print(f"kept in {file}")
    return 0


def measured(sides: Sides, seconds: float) -> dict[str, dict[str, float]]:
    """Median seconds of processor and wall of every side, which take turns; short ones are repeated in a turn."""
    repeats = {}
    for name, side in sides.items():
        side()
        began = time.process_time()
        side()
        repeats[name] = max(1, int(0.01 / max(time.process_time() - began, 1e-6)))
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    end = time.monotonic() + seconds * len(sides)
    while time.monotonic() < end or len(next(iter(cpu.values()))) < 3:
        for name, side in sides.items():
            began, clock = time.process_time(), time.monotonic()
            for _ in range(repeats[name]):
                side()
            cpu[name].append((time.process_time() - began) / repeats[name])
            wall[name].append((time.monotonic() - clock) / repeats[name])
    return {name: {"cpu": statistics.median(cpu[name]), "wall": statistics.median(wall[name])} for name in sides}


UNITS = {"cpu": (1000, "ms"), "nats": (1, "nats"), "bytes": (1e-6, "MB")}


def show(job: str, took: dict[str, dict[str, float]], goals: dict[str, float]) -> None:
    """A side's figure is its processor's seconds, or what it has in their place."""
    [key] = [key for key in UNITS if key in took["ours"]]
    factor, unit = UNITS[key]
    ours = took["ours"][key]
    for name, figures in [each for each in took.items() if each[0] != "ours"] or [("", took["ours"])]:
        ratio, goal = ours / figures[key], goals.get(name)
        met = "" if goal is None else "yes" if ratio <= goal else "NO"
        wanted = "" if goal is None else f"{goal:.2f}"
        text = f"{factor * ours:10.3f} {unit:5}{name:16}{factor * figures[key]:10.3f}{ratio:8.2f}{wanted:>7}  {met}"
        print(f"{job:66}{text}", flush=True)
        job = ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    sys.exit(main())
