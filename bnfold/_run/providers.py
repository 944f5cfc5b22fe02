"""The execution providers of onnxruntime, and whether they are available."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path

from bnfold._errors import UsageError
from bnfold._system.records import record


@record(frozen=True)
class Provider:
    """One provider: its name for users, its name in onnxruntime, its options, and its package.

    Some providers reduce the precision without being asked. The options switch that off: TF32 costs
    a relative error of 1e-3, and OpenVINO's bfloat16 one of 1e-2.
    """

    name: str
    full_name: str
    install: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether this onnxruntime was built with it. Only a session shows whether it works."""
        import onnxruntime as ort  # imported late: the names are checked without it

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
    asked = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in asked:
        if name not in PROVIDERS:
            raise UsageError(f"there is no provider {name!r}; there are {', '.join(PROVIDERS)}")
    return tuple(PROVIDERS[name] for name in asked)


def ran_on(profile: Path) -> Counter[str]:
    """How many operators ran on each provider, according to a profile of onnxruntime."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and "provider" in event.get("args", {}):
            found[event["args"]["provider"]] += 1
    return found
