#!/bin/sh
# torch 2.13.0 draws the same numbers on the CPU for seeds that differ above their lower 32 bits. Expected: a seed of up to
# 64 bits, which manual_seed takes and initial_seed gives back whole, decides the stream. Seen: torch.manual_seed and
# Generator.manual_seed begin the Mersenne twister with the lower 32 bits alone, without a word, so that
# `(run << 32) | step`, or a hash of 64 bits of which the upper half differs, is the same run every time.
# (ATen/core/MT19937RNGEngine.h: init_with_uint32.) Seeds of other things than numbers of runs are mixed into 32 bits here
# (karipap_core/profiles/blockpass.py, generator_of): three calibrations by three seeds had been one.
#
#     sh findings/torch-seeds-of-64-bits.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
cat > probe.py <<'PYTHON'
import sys

import torch

drawn = {}
for run in (0, 1, 2):
    generator = torch.Generator().manual_seed((run << 32) | 7)
    drawn[run] = generator.initial_seed(), torch.rand(3, generator=generator)
    print(f"run {run}: initial_seed {drawn[run][0]}, first numbers {drawn[run][1].tolist()}")
same = all(torch.equal(drawn[0][1], numbers) for _, numbers in drawn.values())
told_apart = len({seed for seed, _ in drawn.values()}) == 3
lower = torch.rand(3, generator=torch.Generator().manual_seed(8))
print("the three runs are one:", same, "| their seeds are told apart:", told_apart)
sys.exit(0 if same and told_apart and not torch.equal(lower, drawn[0][1]) else 1)
PYTHON
"$folder/venv/bin/python" probe.py
