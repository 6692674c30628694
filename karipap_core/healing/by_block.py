"""Healing of scales and factors alone: a compressed folder's codes stay, bit for bit, and so do its bytes.

See blocks.py for how a block is trained. Here are the text, the folder's numbers, what is kept between two runs, and
the last word: the healed whole is compared with the incoming one by loss on the validation windows, and the folder
comes back as it was where it is not better.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.records import report_of
from karipap_core.compressed.saved_again import names_on_disk
from karipap_core.errors import InputError
from karipap_core.evaluation.perplexity import check_window
from karipap_core.evaluation.tokens import encode
from karipap_core.healing.blocks import Block, BlockHealing, Judged
from karipap_core.healing.data import SIGNS_A_TOKEN, VALIDATION_TOKENS, part_of, split
from karipap_core.healing.loop import Rows
from karipap_core.healing.patient import WORK, Patient
from karipap_core.healing.scales import Moving
from karipap_core.healing.settings import ScaleSettings
from karipap_core.layers.cores import stored_tensors
from karipap_core.models.sites import tied_tables
from karipap_core.models.streamed import Streamed
from karipap_core.plan.document import Plan
from karipap_core.profiles.blockpass import runs_apart
from karipap_core.progress import Progress, silent
from karipap_core.spectra.spectrum import pick_device
from karipap_core.text import Text
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_tensors, kept_tensors
from karipap_core.workspace.locks import only_writer

NOT_BETTER = "Healing did not lower the loss on the validation text: the folder holds the incoming model."


def heal_scales(
    folder: str | Path,
    out: str | Path,
    settings: ScaleSettings,
    text: Text,
    distill: str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict:
    """Heal the scales of what the compressed model in `folder` stores in few bits, and its cores that are floats, and
    write it to `out`: the same plan, codes and bytes.

    text: what is learnt from, an eighth of it kept aside for validation; distill: the dense model (default: the one
    that the folder was made from). A run that was killed goes on behind the last block that it was through with.

    Returns what `heal.heal` does, "objective" being "block outputs", "curve" empty and "steps" those of all blocks
    together, and besides "blocks": [{"block", "before", "after" (mean over validation tokens of ‖ŷ − y‖² / ‖y‖², ŷ the
    compressed block's outputs behind the healed prefix, y the dense model's), "rate", "trained", "steps"}], "kl_before"
    and "kl_after" (KL(dense ‖ model), nats a token of the validation text). Raises InputError where the dense model is
    not here, does not run block by block, the text is too short, or nothing can move.
    """
    patient = Patient(Path(folder), distill, taught=True)
    assert patient.source is not None  # it is learnt from
    dense, device = open_checkpoint(patient.source), pick_device(device)
    if (report_of(patient.folder).get("healing") or {}).get("settings", {}).get("norms"):
        raise InputError(
            f"The norms of {folder} were healed: heal the scales of the folder before that, then the norms."
        )
    what = {"folder": patient.checkpoint.identity, "text": text.sha256, "teacher": patient.teacher}
    key, out = settings_key(asdict(settings) | what), Path(out).absolute()
    with only_writer(out, "heal"):
        found = patient.kept(key, out)
        if found is None:
            found = _healed(patient, dense, text, settings, key, out, device, progress)
        return patient.verified(found, out, progress)


def _healed(
    patient: Patient,
    dense: Checkpoint,
    text: Text,
    settings: ScaleSettings,
    key: str,
    out: Path,
    device: str,
    progress: Progress,
) -> dict:
    if not runs_apart(dense, device):
        raise InputError(f"{dense.name} does not run block by block: heal it as a whole, with --steps.")
    began = time.monotonic()
    numbers = _Numbers(patient, device)
    streamed = Streamed(dense, device=device)
    windows, kept = _windows(streamed.model, patient.tokenizer, text, settings)
    shelf = _Shelf(out / WORK, key)
    untied = tied_tables(dense) if numbers.plan.unties(dense) else {}
    healing = BlockHealing(
        dense,
        streamed,
        (windows, kept[1]),
        numbers.moving,
        settings,
        [head for heads in untied.values() for head in heads],
        shelf.known,
        shelf.keep,
        progress,
    )
    blocks, judged = healing.heal()
    trained = sum(block.trained for block in blocks)
    if not trained:
        raise InputError("Nothing in the blocks of this folder can move: no scales, and no cores that are floats.")
    new = {
        f"{numbers.disk[name]}.{tensor}": value.cpu()
        for block in blocks
        for name, stored in block.stored.items()
        for tensor, value in stored.items()
    }
    improved = judged.healed < judged.before and bool(new)
    result = _result(blocks, judged, improved) | {
        "seconds": round(time.monotonic() - began + shelf.seconds, 3),
        "trained": trained,
        "trained_share": trained / sum(math.prod(info.shape) for info in patient.checkpoint.tensors.values()),
        "text": {"name": text.name, "sha256": text.sha256, "path": text.path},
        "validation": {"name": kept[0].name, "sha256": kept[0].sha256, "tokens": judged.tokens},
        "folder": str(out),
        "notes": patient.notes + ([] if improved else [NOT_BETTER]),
    }
    patient.write(key, {"scales": True} | asdict(settings), result, new if improved else {}, out, progress)
    return result


class _Numbers:
    """What a folder stores of its compressed weights, and what of it may move."""

    def __init__(self, patient: Patient, device: str) -> None:
        self.checkpoint, self.device = patient.checkpoint, device
        self.plan = Plan.from_json(patient.plan, str(patient.folder))
        settings = self.checkpoint.config["quantization_config"]
        self.disk = names_on_disk(self.checkpoint, settings)  # the plan's name of a weight → its name in the folder

    def moving(self, name: str, new: Mapping[str, torch.Tensor] | None = None) -> Moving | None:
        """The numbers of one weight, with `new` in the place of some; None of a weight that stays as it is. Cores that
        several layers share stay: no block may move what others use."""
        if (spec := self.plan.spec(name)) is None:
            return None
        lender = spec.members[0] if spec.members else name
        tensors = {
            tensor: self.checkpoint.read_tensor(f"{self.disk[name]}.{tensor}") for tensor in stored_tensors(spec)
        }
        if not all(spec.owned):
            lent = self.plan.spec(lender)
            assert lent is not None, lender  # a plan whose lender is dense is refused
            for tensor in stored_tensors(lent).keys() - tensors.keys():
                tensors[tensor] = self.checkpoint.read_tensor(f"{self.disk[lender]}.{tensor}")
        shared = [k for mate in spec.mates for k, own in enumerate(mate.owned) if not own] if spec.members else ()
        only = [k for k in range(len(spec.core_shapes)) if k not in shared]
        return Moving(spec, tensors | dict(new or {}), self.device, only)


class _Shelf:
    """Where what came of a block is kept until all are done: files in `folder`, a block each."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.seconds = 0.0  # that earlier runs took for what is known

    def _file(self, path: str) -> Path:
        return self.folder / f"{self.key}-{settings_key({'block': path})}.safetensors"

    def keep(self, block: Block) -> None:
        tensors = {
            f"{name}|{tensor}": value.cpu().contiguous()
            for name, stored in block.stored.items()
            for tensor, value in stored.items()
        }
        facts = {key: value for key, value in vars(block).items() if key != "stored"}
        keep_tensors(self._file(block.path), tensors, {"block": json.dumps(facts)})

    def known(self, path: str) -> Block | None:
        if (found := kept_tensors(self._file(path))) is None:
            return None
        block = Block(**json.loads(found[1]["block"]))
        for name, value in found[0].items():
            weight, _, tensor = name.partition("|")
            block.stored.setdefault(weight, {})[tensor] = value
        self.seconds += block.seconds
        return block


def _windows(model, tokenizer, text: Text, settings: ScaleSettings) -> tuple[torch.Tensor, tuple[Text, torch.Tensor]]:
    """(windows (count, window) to learn from, (the text that is kept for validation, windows of it)), from different
    documents. Raises InputError for a text that is too short for one window of each."""
    config = model.config.get_text_config()
    window = check_window(config, settings.window)
    learnt, kept = split(text)
    found = []
    sides = ((learnt, settings.windows, settings.seed), (kept, max(1, VALIDATION_TOKENS // window), 0))
    for side, count, seed in sides:
        ids = encode(tokenizer, part_of(side, count * window * SIGNS_A_TOKEN, seed), config.vocab_size)
        rows = Rows(ids, window, 1, seed)
        if not rows.count:
            raise InputError(f"{side.name} has {len(ids)} tokens, one window needs {window + 1}: give a longer text.")
        count = min(count, rows.count)
        found.append(torch.cat([rows.batch(number)[:, :-1] for number in range(count)]))
    table = model.get_input_embeddings().weight
    if max(int(each.max()) for each in found) >= len(table):
        raise InputError("The tokenizer gives ids that the model does not know: wrong tokenizer.")
    return found[0], (kept, found[1])


def _result(blocks: list[Block], judged: Judged, improved: bool) -> dict:
    rates = [block.rate for block in blocks if block.rate is not None]
    return {
        "loss_before": judged.before,
        "loss_after": judged.healed if improved else judged.before,
        "dense_loss": judged.dense,
        "kl_before": judged.kl_before,
        "kl_after": judged.kl_healed if improved else judged.kl_before,
        "steps": sum(block.steps for block in blocks),
        "learning_rate": max(rates, default=None),
        "curve": [],
        "improved": improved,
        "objective": "block outputs",
        "search": {},
        "dense_trained": None,
        "blocks": [
            {
                "block": block.path,
                "before": block.before,
                "after": block.after,
                "rate": block.rate,
                "trained": block.trained,
                "steps": block.steps,
            }
            for block in blocks
        ],
    }
