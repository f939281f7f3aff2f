#!/usr/bin/env bash
# From nothing to translations: installs batchgen, runs the demo job on the demo model, shows the results.
# Run it again: everything is done already, and nothing is done twice. Usage: bash jobs/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

bash jobs/install.sh
[ -e .demo/job.toml ] || .venv/bin/batchgen demo .demo
.venv/bin/batchgen run .demo/job.toml
.venv/bin/python -m batchgen.demo.score .demo/out
