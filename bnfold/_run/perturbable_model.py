"""What a judge asks of a model: that it runs, with its own weights or others in their place.

A session of onnxruntime is one (`onnx_model`), a module or program of PyTorch another
(`torch_model`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from bnfold._run.noise import Array


class Layer(NamedTuple):
    """An operator with weights: what it is called, that of its weights which matters most, and the
    axis of its output channels.
    """

    label: str
    weight: str
    axis: int


class RunnableModel(Protocol):
    """A model that runs as it is."""

    def run(self, feeds: Mapping[str, Array]) -> list[Any]:
        """The outputs in order.

        Raises:
            EngineError: the model does not run on these inputs.
            Exhausted: time is up, or memory has run out.
        """


class PerturbableModel(RunnableModel, Protocol):
    """A model whose weights may be moved for a run."""

    @property
    def weights(self) -> Mapping[str, Array]:
        """Those that can be, by name, each as the model has it."""

    def run(
        self, feeds: Mapping[str, Array], moved: Mapping[str, Array] | None = None
    ) -> list[Any]:
        """The outputs in order, some weights being others than the model's own; raises as
        `RunnableModel.run` does.
        """

    def layers(self, touched: Collection[str]) -> list[Layer]:
        """The operators whose weights are among those named, all if none is, in the order of the
        model. Of several weights of one operator that of the highest rank counts.
        """

    def reached(self, weights: Collection[str]) -> set[int]:
        """The numbers of the outputs that depend on any of some weights."""

    def release(self) -> None:
        """Give memory back; what is needed again is loaded again."""
