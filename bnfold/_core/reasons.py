"""Why an affine map stays: stable codes, each with what it means and what a user can do."""

from __future__ import annotations

from dataclasses import field

from bnfold._system.records import record


@record(frozen=True)
class Reason:
    """One reason, found at one place.

    ``code`` is a key of `CODES`. ``at`` names the node or tensor that stopped the fold; it is ""
    if only the caller knows the name. ``message`` is a sentence about this case. If the map stays
    only because it follows another map that stays, ``cause`` is the message of the other map.
    ``brief`` says in fewer words why the map stays, where the message says more than that.
    """

    code: str
    at: str
    message: str
    cause: str = ""
    brief: str = field(default="", compare=False)

    def behind(self, label: str) -> Reason:
        """The reason of a map that follows ``label``, which stays for this reason."""
        cause = self.cause or self.message
        told = f"it follows {label}, which stays: {cause}"
        return Reason(self.code, self.at, told, cause, f"it follows {label}, which stays")

    @property
    def advice(self) -> str:
        """What the user could do about it."""
        return CODES[self.code].advice


def past_padding(op: str, label: str) -> str:
    """Why a shift does not move past an operator that pads with zeros, in few words."""
    named = label if op.lower() in label.lower() else f"{op} {label}"
    return f"moving it past {named} would change the border that zero padding makes"


class Refusal(Exception):
    """A law, an absorber or the reading of an operator says no, for this ``reason``.

    ``numbers``: that depends on the numbers of a map, so one with other numbers may pass. Else it
    holds for every map that has the same axis, the same signs, and a shift at the same places.
    """

    def __init__(self, reason: Reason, numbers: bool = False) -> None:
        super().__init__(reason.message)
        self.reason = reason
        self.numbers = numbers

    @classmethod
    def of(cls, code: str, at: str, message: str, numbers: bool = False) -> Refusal:
        """A refusal whose reason has this code, place and message."""
        return cls(Reason(code, at, message), numbers)


@record(frozen=True)
class Code:
    """What a reason code means in general, and what to do about it."""

    meaning: str
    advice: str


CODES: dict[str, Code] = {
    "shared-output": Code(
        "Something else reads the tensor between the layer and the affine operator, too: another "
        "node, or the body of an If, Loop or Scan. Folding would change what it gets.",
        "If the other reader is not needed, remove it from the model before folding.",
    ),
    "graph-output": Code(
        "The tensor between the layer and the affine operator is an output of its graph. Folding "
        "would change that output.",
        "Remove the intermediate output before folding if nobody uses it.",
    ),
    "kept-value": Code(
        "keep= names this parameter, or the module or operator that gives this value: it is not "
        "to change. Folding would change it.",
        "Leave the name out of keep if nobody reads it but the network itself.",
    ),
    "overridable-weight": Code(
        "A parameter is an initializer that is listed as a graph input, too, or that the model's "
        "training information binds. A caller may replace it at run time.",
        "If nobody overrides it, --freeze-initializers takes it from the graph's inputs and folds.",
    ),
    "dynamic-weight": Code(
        "A parameter is computed at run time: there is no constant to fold into or from.",
        "Export with parameters as initializers, or run constant folding first.",
    ),
    "quantized-weight": Code(
        "The weight is stored as integers and scales, which cannot take the operator in. One scale "
        "holds for channels that the operator tells apart, an integer whose sign would turn has no "
        "negative in its type, or something else reads the weight. Folding into floats would undo "
        "the quantization.",
        "Fold before quantizing.",
    ),
    "quantizer-between": Code(
        "Between the layer and the operator a quantizer rounds the data to integers. Nothing "
        "passes that exactly; behind it, a positive number that multiplies all of the data goes "
        "into its DequantizeLinear.",
        "Fold the float model first, then quantize it: bnfold model.onnx -o folded.onnx, and give "
        "folded.onnx to the quantizer.",
    ),
    "blocked-layout": Code(
        "The operator is in onnxruntime's blocked layout (domain com.microsoft.nchwc). A file that "
        "onnxruntime saved with all of its optimizations has its convolutions so, with weights "
        "reordered and padded for one kind of processor.",
        "Fold the file from which onnxruntime made this one, and let it optimize the result; or "
        "let it save at the level extended, which bnfold reads.",
    ),
    "function-parameter": Code(
        "A parameter is an input or attribute of a local function: each call may pass another one, "
        "and the function has one body for all of them. Calls with constants are inlined where "
        "something folds then; this one passes none, or cannot be inlined.",
        "Inline the function first, for instance with onnx.inliner.inline_local_functions.",
    ),
    "training-mode": Code(
        "The BatchNormalization normalizes by the statistics of the batch it is given, or asks "
        "for them as outputs; it is not a fixed map.",
        "Export the model in inference mode: model.eval() and training=TrainingMode.EVAL.",
    ),
    "training-mode-untracked": Code(
        "The norm is in training mode and tracks no statistics, so there are none to fold.",
        "Train it with track_running_stats=True, then call .eval().",
    ),
    "untracked-statistics": Code(
        "The norm tracks no running statistics (track_running_stats=False), so that it normalizes "
        "by the statistics of each batch even in eval mode; it is not a fixed map.",
        "Train it with track_running_stats=True, or collect statistics for it.",
    ),
    "shared-weight": Code(
        "A parameter is used in several places, of which each would take in something else: by a "
        "module that is called more than once, or by modules whose weights are tied. Changing it "
        "for one would change the others.",
        "Pass clone=True to give each place that a fold changes its own; where one place calls a "
        "module several times, fold after torch.export, or give each call a module of its own.",
    ),
    "not-a-module": Code(
        "The map is written in a module's own code (x * self.gamma), or what would be left of it "
        "is; or that code adds up linear operators that could be one. Replacing submodules cannot "
        "express it.",
        "Fold after torch.export or export to ONNX, or give a map a module of its own.",
    ),
    "constant-norm": Code(
        "The norm is computed from weights alone (weight standardization), so that it is no map of "
        "data. A program stores its result. Here it is in a module's own code, or the program puts "
        "it out.",
        "Give merge=True, which puts a Conv2d or Linear with the computed weight in the place of a "
        "submodule, or fold after torch.export.",
    ),
    "unread-code": Code(
        "The norm is in code that an operator of an exported program calls (a branch, a part that "
        "runs without gradients or with autocast), or it is an operator of another library. "
        "Nothing folds there.",
        "program.run_decompositions() puts code inline that is no branch; then fold.",
    ),
    "non-finite": Code(
        "A constant of the map or a weight it would go into is NaN or infinite.",
        "Look at the checkpoint: the values named are not usable numbers.",
    ),
    "non-positive-variance": Code(
        "variance + epsilon is not positive, so its square root is not a usable number.",
        "Look at the checkpoint's running variance and at epsilon.",
    ),
    "not-per-channel": Code(
        "The constant is not one number for each channel: it varies along more than one axis, it "
        "makes the tensor larger, or the normalization is per element.",
        "Nothing, if that is what the model means.",
    ),
    "axis-mismatch": Code(
        "The operator varies along another axis than the one on which the layer has its channels.",
        "Nothing, if that is what the model means; a transposed layout may be the cause.",
    ),
    "unknown-shape": Code(
        "The rank or a size that decides along which axis the constant lies is not known.",
        "Give the model's inputs their ranks and fixed sizes, or re-export with shapes; "
        "--assume-equal-dims says that sizes of one name are equal in every run.",
    ),
    "overflow": Code(
        "A folded value would be too large for the dtype it is stored in, although the original "
        "model stays finite.",
        "Fold the model in a wider dtype, then convert.",
    ),
    "underflow": Code(
        "All of a channel's folded weights would fall below the smallest normal number of their "
        "dtype and lose precision.",
        "Fold the model in a wider dtype, then convert.",
    ),
    "no-linear-operator": Code(
        "Neither what stands ahead of the operator nor what stands behind it can take it in or let "
        "it pass: no convolution, linear layer or norm is in reach.",
        "Nothing; the message names the operator in the way.",
    ),
    "not-carried": Code(
        "An operator in the way lets some affine ones pass, but not this one: a negative scale "
        "does not pass a maximum, nor a shift a Relu. The message names the operator and the law.",
        "Nothing, if that is what the model means.",
    ),
    "zero-padding": Code(
        "The operator adds a number to each channel, and the layer that would take this in pads "
        "with zeros: inside the image that would be right, and at the border wrong. Nothing is "
        "added to the zeros of padding.",
        "Nothing, if that is what the model means; training with padding 0 or a shift of 0 helps.",
    ),
    "fused-operator": Code(
        "The operator is part of a GELU, a normalization or a dynamically quantized product, which "
        "runtimes put together and run as one. Without it they would run the other parts one by "
        "one. Or a Gemm that runtimes run on integers would get a bias of floats, and would no "
        "more.",
        "Nothing: the model runs faster this way.",
    ),
    "no-gain": Code(
        "Folding is possible, and would leave as many operators as before.",
        "Nothing: the model is as small as this fold could make it.",
    ),
    "not-mergeable": Code(
        "Linear operators that are added up, or follow each other, are not one linear operator: "
        "their strides or output sizes differ, or something in between is not linear. The message "
        "says which.",
        "Nothing, if that is what the model means.",
    ),
    "merge-cost": Code(
        "Linear operators could become one, but that one would do more work than they do together. "
        "The message says by how much.",
        "Nothing: the model runs faster this way.",
    ),
    "unsupported-dtype": Code(
        "The weight's dtype is not one of float16, bfloat16, float32 and float64.",
        "Convert the model to a floating-point dtype first.",
    ),
    "unsupported-opset": Code(
        "The operator's version is older than those whose meaning bnfold knows.",
        "Convert the model to opset 7 or later, for instance with onnx.version_converter.",
    ),
}
