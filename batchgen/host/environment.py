"""The environment of engine processes: the variables that engines need, by name, and no keys. An engine connects to
nothing, so it needs none of the secrets that a shell, a cluster or a container holds for other programs.
"""

import os
import socket
from collections.abc import Iterable, Mapping

from .credentials import is_secret_name

# Names of further variables to pass on, separated by commas, for a site that needs one that is not listed here.
PASS = "BATCHGEN_PASS"

_NAMES = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH LD_PRELOAD LIBRARY_PATH
    CPATH CC CXX XDG_CACHE_HOME XDG_CONFIG_HOME HF_HOME MAX_JOBS DO_NOT_TRACK SAFETENSORS_FAST_GPU GPU_DEVICE_ORDINAL
    SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID
    """.split()
)
_PREFIXES = tuple(
    """
    LC_ PYTHON BATCHGEN_ VLLM_ TORCH PYTORCH_ TRITON_ TRANSFORMERS_ TOKENIZERS_ HF_HUB_ HUGGINGFACE_HUB_CACHE
    CUDA CUDNN_ CUBLAS NVIDIA_ NVCC_ NCCL_ GLOO_ FLASHINFER_ XFORMERS_ DG_ ROCM_ HIP_ HSA_ ROCR_ AMD_
    OMP_ GOMP_ KMP_ MKL_ DNNL_ ONEDNN_ OPENBLAS_ NUMEXPR_ RAYON_ MALLOC_
    """.split()
)
# vLLM's switch that makes its sockets accept pickle.
_DANGEROUS = frozenset(["VLLM_ALLOW_INSECURE_SERIALIZATION"])

# A prepared model is complete on disk, so no engine needs the hub.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

# Workers read the input and write the output, so for those in a bucket they get the keys to it.
_OF_ANY_REMOTE = tuple("SSL_CERT_ REQUESTS_CA_BUNDLE CURL_CA_BUNDLE FSSPEC_".split())
_OF_SCHEME = {
    **dict.fromkeys(("s3", "s3a"), ("AWS_",)),
    **dict.fromkeys(("gs", "gcs"), ("GOOGLE_", "GCLOUD_", "CLOUDSDK_", "GCE_", "STORAGE_EMULATOR_")),
    **dict.fromkeys(("abfs", "abfss", "az"), ("AZURE_",)),
    **dict.fromkeys(("hdfs", "viewfs"), ("HADOOP_", "JAVA_", "CLASSPATH", "ARROW_LIBHDFS_", "KRB5")),
    "hf": ("HF_", "HUGGING_FACE_", "HUGGINGFACE_"),
}


def of_worker(places: Iterable[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of our environment (or of `given`) that a worker gets which uses these paths and URIs."""
    given = os.environ if given is None else given
    schemes = {path.partition("://")[0].lower() for path in places if "://" in path} - {"file"}
    keys = tuple(prefix for scheme in schemes for prefix in (*_OF_SCHEME.get(scheme, ()), *_OF_ANY_REMOTE))
    named = {name.strip() for name in given.get(PASS, "").split(",")}

    def is_passed(name: str) -> bool:
        if name in named or name.startswith(keys) or (schemes and name.lower().endswith("_proxy")):
            return True
        is_needed = name in _NAMES or name.startswith(_PREFIXES)
        return is_needed and name not in _DANGEROUS and not is_secret_name(name)

    return {name: value for name, value in given.items() if is_passed(name)}


def of_engine() -> dict[str, str]:
    """Variables that are always set for an engine, whatever was exported.

    A worker never spans hosts, so its processes connect over loopback only and nothing leaves the machine. By default
    gloo and vLLM listen on the address that the host name resolves to, on 13 ports per engine (vLLM 0.31).
    """
    local = {"VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
    if loopback := {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}:  # Linux, macOS
        local |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback.pop())
    quiet = dict.fromkeys(("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"), "1")
    return local | quiet
