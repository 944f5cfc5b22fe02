"""The execution providers of onnxruntime that a model can be run on, and whether they are there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bnfold._errors import UsageError


@dataclass(frozen=True)
class Provider:
    """One provider: what users call it, its name in onnxruntime, its options, and what to install.

    Reduced precision that a provider uses unasked is switched off: TF32 costs 1e-3 relative, and
    bfloat16, which OpenVINO knows on CPUs that have it, 1e-2.
    """

    name: str
    full_name: str
    install: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether this onnxruntime was built with it. Whether it works, a session shows."""
        import onnxruntime as ort  # not before it is needed: names are checked without it

        return self.full_name in ort.get_available_providers()


CPU = Provider("cpu", "CPUExecutionProvider")
PROVIDERS = {
    provider.name: provider
    for provider in (
        CPU,
        Provider("cuda", "CUDAExecutionProvider", "onnxruntime-gpu", {"use_tf32": "0"}),
        Provider("tensorrt", "TensorrtExecutionProvider", "onnxruntime-gpu and TensorRT"),
        Provider(
            "openvino", "OpenVINOExecutionProvider", "onnxruntime-openvino", {"precision": "FP32"}
        ),
        Provider("dml", "DmlExecutionProvider", "onnxruntime-directml"),
        Provider("coreml", "CoreMLExecutionProvider", "onnxruntime on macOS"),
    )
}


def by_name(names: Iterable[str]) -> tuple[Provider, ...]:
    """Providers by the names that users give them.

    Raises:
        UsageError: there is no such provider.
    """
    asked = tuple(dict.fromkeys(names))
    for name in asked:
        if name not in PROVIDERS:
            raise UsageError(f"there is no provider {name!r}; there are {', '.join(PROVIDERS)}")
    return tuple(PROVIDERS[name] for name in asked)


def ran_on(profile: Path) -> Counter[str]:
    """How many operators ran on each provider, as a profile of onnxruntime has it."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and "provider" in event.get("args", {}):
            found[event["args"]["provider"]] += 1
    return found
