"""The GPU's memory bandwidth, which bounds how fast any engine can decode."""

import subprocess
import sys

from ..errors import MachineError


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy on the device. In a process of its own, which gives the memory
    back. Raises MachineError."""
    command = [sys.executable, "-P", "-m", "batchgen.engine.bandwidth"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MachineError(f"torch cannot use the GPU: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def main() -> None:
    import time

    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy(times: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(times):
            target.copy_(source)
        torch.cuda.synchronize()
        return 2 * times * source.numel() / (time.perf_counter() - begin)

    copy(10)
    print(copy(100))


if __name__ == "__main__":
    main()
