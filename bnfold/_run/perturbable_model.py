"""A model as the judge sees it: it runs, with its own weights or with moved ones.

There are two: a session of onnxruntime (`onnx_model`), and a module or program of PyTorch
(`torch_model`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from bnfold._run.noise import Array


class Layer(NamedTuple):
    """An operator with weights: its label, its most important weight, and that weight's axis of
    output channels.
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
        """The weights that can be moved, by name, with the model's own numbers."""

    def run(
        self, feeds: Mapping[str, Array], moved: Mapping[str, Array] | None = None
    ) -> list[Any]:
        """The outputs in order. ``moved`` holds other numbers for some weights.

        Raises as `RunnableModel.run` does.
        """

    def layers(self, touched: Collection[str]) -> list[Layer]:
        """The operators that read the named weights, in the order of the model.

        If no weight is named, these are all operators with weights. If an operator has several
        weights, the one of the highest rank counts.
        """

    def reached(self, weights: Collection[str]) -> set[int]:
        """The numbers of the outputs that depend on any of some weights."""

    def set_aside(self) -> None:
        """Give back the memory of weights that can be read again: all are moved in the next run."""

    def release(self) -> None:
        """Give memory back. The model is loaded again when it runs again."""
