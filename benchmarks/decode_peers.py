"""The peers of `decode_cpu`: a virtual environment for each, made once, in the cache."""

import hashlib
import os
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

_LLAMA_CPP_OPTIONS = {
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX512": "avx512bw",
    "GGML_AVX512_VBMI": "avx512_vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
}
"""llama.cpp's options, and the features of a CPU, as Linux calls them, that they make use of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A system to install.

    Attributes:
        requirement: as pip takes it.
        note: what the person who waits should know.
        environment: variables while it is installed.
    """

    requirement: str
    note: str
    environment: dict[str, str] = field(default_factory=dict)


def peers() -> dict[str, Peer]:
    """Return the systems that are installed, by their names. transformers is not: it is what Baton itself builds on."""
    return {
        "llama_cpp": Peer(
            requirement="llama-cpp-python==0.3.36",
            note="compiled for this CPU, which takes ten minutes and more, and a C++ compiler",
            # Its own choice, `native`, ends in an illegal instruction on virtual machines that hide a part of their CPU.
            environment={
                "CMAKE_ARGS": " ".join(f"-D{name}=ON" for name in _llama_cpp_options()) + " -DGGML_NATIVE=OFF"
            },
        ),
        "openvino_genai": Peer(requirement="openvino-genai==2026.4.1.0", note="some 300 MB"),
    }


def python_of(peer: Peer, cache: Path) -> Path:
    """Return the interpreter of the peer's environment, having made that if need be.

    Raises:
        subprocess.CalledProcessError: it cannot be installed; pip has said why.
    """
    built_for = hashlib.sha256(repr(peer.environment).encode()).hexdigest()[:8] if peer.environment else ""
    folder = cache / "bench" / "-".join(filter(None, (peer.requirement.replace("==", "-"), built_for)))
    folder.mkdir(parents=True, exist_ok=True)
    installed = folder / ".installed"
    with FileLock(folder / ".lock"):
        if not installed.exists():
            print(f"Installing {peer.requirement} into {folder}: once; {peer.note}.", flush=True)
            venv.create(folder, with_pip=True, clear=False)
            pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
            environment = {**os.environ, **peer.environment}
            subprocess.run([*pip, peer.requirement, "numpy"], check=True, stdout=sys.stdout, env=environment)
            installed.touch()
    return folder / "bin" / "python"


def _llama_cpp_options() -> list[str]:
    features = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return [name for name, feature in _LLAMA_CPP_OPTIONS.items() if feature in features]
