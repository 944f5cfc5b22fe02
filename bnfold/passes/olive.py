"""A pass of Olive: folds an ONNX model of a workflow, between conversion and quantization.

A workflow names it, ``"passes": {"fold": {"type": "BnfoldFold"}}``, and Olive is told where it is::

    from olive import run
    from bnfold.passes.olive import package_config

    run("workflow.json", package_config=package_config())

Needs olive-ai.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from bnfold.passes import fold_and_verify

__all__ = ["BnfoldFold", "package_config"]

_SUPPORTED = ("providers", "accelerators", "precisions", "algorithms", "quantization_encodings")
_OPTIONS = {
    "depthwise": "Write norms that nothing takes in as depthwise convolutions, or Mul and Add.",
    "freeze_initializers": "Initializers that are listed as inputs, too, are fixed.",
    "assume_equal_dims": "Sizes of inputs that have one name (dim_param) are equal in every run.",
}


def package_config() -> dict[str, Any]:
    """Olive's own package configuration, with `BnfoldFold` among its passes."""
    path = Path(OlivePackageConfig.get_default_config_path())
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["passes"][BnfoldFold.__name__] = {
        "module_path": f"{__name__}.{BnfoldFold.__name__}",
        **{f"supported_{what}": ["*"] for what in _SUPPORTED},
    }
    return config


class BnfoldFold(Pass):  # type: ignore[misc]  # Olive has no types
    """Folds BatchNorm and other affine operators; a result that is not verified is an error.

    Raises `bnfold.passes.NotVerified` where the verification fails. External data stays external.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, Any]:
        """The options, as Olive asks for them. All are off."""
        return {
            name: PassConfigParam(type_=bool, default_value=False, description=text)
            for name, text in _OPTIONS.items()
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        """Fold a model's file into the path that Olive gives."""
        source = Path(model.model_path)
        target = resolve_onnx_path(output_model_path, source.name)
        fold_and_verify(source, target, **{name: getattr(config, name) for name in _OPTIONS})
        return ONNXModelHandler(model_path=target)
