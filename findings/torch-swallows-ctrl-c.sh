#!/bin/sh
# torch 2.13.0 turns a Ctrl-C into a ValueError. Expected: an interrupt (KeyboardInterrupt) that comes while torch.asarray,
# torch.tensor or torch.as_tensor reads an item of a Python sequence goes on to the caller, as from numpy.asarray. Seen: it
# is dropped, and "could not determine the shape of object type …" is raised in its place, with no cause and no context.
# safetensors 0.8.0 makes each tensor that it reads for torch through torch.asarray of an UntypedStorage, whose items are
# read in Python: of 2,000 loads of small tensors that Ctrl-C stopped, 885 ended with that ValueError (a SIGTERM whose handler
# raises fares the same). `except KeyboardInterrupt` does not see it, and `except Exception: try again` goes on with what was
# to be stopped. (karipap_core/cli/frame.py, _Stops: a verb that was asked to stop was cancelled, whatever error came of it.)
#
#     sh findings/torch-swallows-ctrl-c.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
cat > probe.py <<'PYTHON'
import collections
import signal
import sys

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background has it ignored


class Row:
    """A sequence of three numbers; somebody presses Ctrl-C while the first is read."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        signal.raise_signal(signal.SIGINT)
        return 1.0


def ends(act):
    try:
        act()
    except BaseException as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return "no error"


seen = {make.__name__: ends(lambda make=make: make(Row())) for make in (torch.asarray, torch.tensor, torch.as_tensor)}
seen["numpy"] = ends(lambda: numpy.asarray(Row()))
for name, end in seen.items():
    print(f"{name}: {end}")

# A real load: a file of 200 small tensors is read again and again, with a Ctrl-C after a time that differs.
save_file({str(number): torch.ones(4, 4) for number in range(200)}, "rows.safetensors")


def load():
    while True:
        with safe_open("rows.safetensors", "pt") as file:
            for name in file.keys():
                file.get_tensor(name)


signal.signal(signal.SIGALRM, signal.default_int_handler)
loads = collections.Counter()
for number in range(2000):
    signal.setitimer(signal.ITIMER_REAL, 0.001 + number * 1e-6)
    loads[ends(load)] += 1
print("2,000 loads that were interrupted:", dict(loads))
swallowed = all(seen[name].startswith("ValueError: could not determine the shape") for name in seen if name != "numpy")
real = sum(count for end, count in loads.items() if end.startswith("ValueError: could not determine the shape"))
sys.exit(0 if swallowed and seen["numpy"] == "KeyboardInterrupt" and real else 1)
PYTHON
"$folder/venv/bin/python" probe.py
