"""Each operator of ATen, written as one of ONNX for the proof, computes what PyTorch computes.

onnxruntime runs what the translation writes. An operator that is left as it is has no case here:
its arguments are compared as they are.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from onnx import ModelProto, NodeProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from bnfold._aten.reading import Reader, functional  # noqa: E402
from bnfold._aten.writer import Writer  # noqa: E402
from bnfold._relation.table import OWN  # noqa: E402

from .folding import rand  # noqa: E402

F32, F64 = torch.float32, torch.float64
_TEXTS = ("sizes", "told", "own", "places")


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.c = nn.Parameter(rand(4, 1, 1, dtype=F32, seed=7))
        self.v = nn.Parameter(rand(6, dtype=F32, seed=8))
        self.w = nn.Parameter(rand(5, 6, dtype=F32, seed=9))
        self.k = nn.Parameter(rand(8, 2, 3, 3, dtype=F32, seed=10))
        self.i = nn.Buffer(torch.tensor([3, 0, 1]))
        self.requires_grad_(False)

    def forward(self, *x):
        return self.function(self, *x)


def written(module, *args) -> Reader:
    program = torch.export.export(module.eval(), args)
    (program,) = functional([program])
    reader = Reader(program)
    reader.read()
    return reader


def as_file(writer: Writer) -> ModelProto:
    """What a writer wrote, with its numbers, as a model that runs."""
    model = ModelProto()
    model.CopyFrom(writer.model)
    model.opset_import.append(helper.make_opsetid("", 23))
    model.graph.name = "written"
    del model.graph.initializer[:]
    for tensor in writer.model.graph.initializer:
        constant = writer.constant(tensor.name)
        values = constant.load().astype(constant.dtype)
        model.graph.initializer.append(numpy_helper.from_array(values, tensor.name))
    for number, node in enumerate(model.graph.node):
        sizes = [a.s.decode() for a in node.attribute if a.name == "sizes"]
        kept = [a for a in node.attribute if a.name not in _TEXTS and "exact_" not in a.name]
        inputs = list(node.input)
        if sizes:
            name = f"sizes {number}"
            shape = np.asarray(eval(sizes[0]), np.int64)
            model.graph.initializer.append(numpy_helper.from_array(shape, name))
            inputs[1] = name
        node.CopyFrom(NodeProto(op_type=node.op_type, input=inputs, output=node.output))
        node.attribute.extend(kept)
    return model


def computed(reader: Reader, args) -> list[np.ndarray]:
    assert not [n for n in reader.writer.model.graph.node if n.domain.startswith(OWN)]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    model = as_file(reader.writer).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    return session.run(None, {f"input {k}": x.numpy() for k, x in enumerate(tensors)})


def assert_computes(module, *args) -> None:
    with torch.no_grad():
        wanted = module.eval()(*args)
    wanted = wanted if isinstance(wanted, (tuple, list)) else [wanted]
    found = computed(written(module, *args), args)
    assert len(found) == len(wanted)
    for a, b in zip(wanted, found, strict=True):
        assert tuple(a.shape) == b.shape
        assert a.numpy().dtype == b.dtype
        assert np.allclose(a.numpy(), b, rtol=1e-5, atol=1e-5, equal_nan=True)


X = rand(2, 4, 6, 6, dtype=F32)  # As many positions in each row as in each column.
Y = rand(2, 4, 6, 6, dtype=F32, seed=2)
Z = rand(2, 1, 6, dtype=F32, seed=3)
N = torch.arange(-12, 12).reshape(2, 1, 12)[..., ::2].contiguous()
FUNCTIONS = {
    "add": lambda m, x: x + m.c,
    "add a number": lambda m, x: 0.1 + x,
    "add alpha": lambda m, x, y: torch.add(x, y, alpha=3),
    "add alpha of a constant": lambda m, x: torch.add(x, m.c, alpha=-0.7),
    "add to a constant": lambda m, x: torch.add(m.c, x, alpha=-0.7),
    "sub": lambda m, x: m.c - x,
    "sub alpha": lambda m, x, y: torch.sub(x, y, alpha=0.3),
    "rsub": lambda m, x: torch.rsub(x, 1.5, alpha=2),
    "rsub of data": lambda m, x, y: torch.rsub(x, y, alpha=2),
    "mul": lambda m, x, y: x * y * 2,
    "div": lambda m, x, y: x / (y * y + 1) / 3 / m.c,
    "reciprocal": lambda m, x: 1 / (x * x + 1),
    "addcmul": lambda m, x, y: torch.addcmul(x, y, m.c, value=0.3),
    "integers and numbers": lambda m, x: (N * 0.5 + x, N / 4 * x, x * True),
    "integers": lambda m, x: x + m.i[0] + (N + x),
    "types": lambda m, x: (x.double() * m.v, x.double() + x, x.int().float(), x.bool().float()),
    "a double beside floats": lambda m, x: x * torch.tensor(0.1, dtype=F64),
    "relu": lambda m, x: F.relu(x) + x.clamp(min=0) + (x + 1).relu_(),
    "clamp": lambda m, x: (x.clamp(-0.3, 0.7), x.clamp(max=0.2), F.relu6(x * 9)),
    "clamp_min": lambda m, x: (x.clamp_min(-0.3), x.clamp_max(0.2), F.hardtanh(x, -0.2, 0.4)),
    "hard": lambda m, x: (F.hardsigmoid(x * 4), F.hardswish(x * 4), F.hardtanh(x)),
    "smooth": lambda m, x: (F.silu(x), F.gelu(x), x.sigmoid(), x.tanh(), x.erf(), F.mish(x)),
    "bent": lambda m, x: (F.leaky_relu(x), F.leaky_relu(x, 0.3), F.elu(x, 0.7), F.celu(x, 0.7)),
    "prelu": lambda m, x: F.prelu(x, m.c.reshape(4)),
    "prelu of one": lambda m, x: F.prelu(x, m.v[:1]),
    "parts of numbers": lambda m, x: (x.abs().sqrt(), x.exp().log(), x.floor() + x.ceil(), -x),
    "linear": lambda m, x: (F.linear(x, m.w), F.linear(x, m.w, m.w[:, 0])),
    "linear of a row": lambda m, x: F.linear(x[0, 0, 0], m.w, m.w[:, 0]),
    "linear of data": lambda m, x, y: F.linear(x[0, 0], y[0, 0], m.v),
    "matmul": lambda m, x, y: (x @ y, x @ m.w.T, m.w @ x, x @ m.v, m.v @ x),
    "addmm": lambda m, x: torch.addmm(m.w[:, 0], x[0, 0], m.w.T, beta=0.5, alpha=2),
    "addmm of data": lambda m, x, y: torch.addmm(y[0, 0], x[0, 0], y[0, 1], beta=-3, alpha=0.1),
    "baddbmm": lambda m, x, y: torch.baddbmm(y[0], x[0], y[1], beta=0.2, alpha=3),
    "bmm": lambda m, x, y: x[0].bmm(y[1]) + x[0, 0].mm(y[0, 0]),
    "mv": lambda m, x: torch.addmv(m.v, x[0, 0], m.v, beta=2, alpha=3) + x[0, 0].mv(m.v),
    "conv": lambda m, x: F.conv2d(x, m.k, groups=2, stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
    "conv of one": lambda m, x: F.conv2d(x[0], m.k, m.k[:, 0, 0, 0], groups=2),
    "conv by channel": lambda m, x: (
        F.conv2d(x, m.k[:4, :1, :1, :1], m.v[:4], groups=4),
        F.conv_transpose2d(x, m.k[:4, :1, :1, :1], groups=4),
        F.conv2d(x, m.k[:4, :1, :1, :1], groups=4, stride=2),
        F.conv2d(x, m.k[:4, :1, :1, :1], groups=4, padding=1),
    ),
    "conv same": lambda m, x: F.conv2d(x, m.k, groups=2, padding="same", dilation=(1, 2)),
    "conv same, even": lambda m, x: F.conv2d(x, m.k[..., :2], groups=2, padding="same"),
    "conv valid": lambda m, x: F.conv2d(x, m.k, groups=2, padding="valid"),
    "conv1d": lambda m, x: F.conv1d(x[:, :, 0], m.k[..., 0], groups=2, stride=2, padding=1),
    "conv3d": lambda m, x: F.conv3d(x[:, :, None], m.k[:, :, None], groups=2),
    "conv of data": lambda m, x, y: F.conv2d(x, y[..., :3, :3]),
    "transposed": lambda m, x: F.conv_transpose2d(
        x, m.k[:4], stride=(2, 3), padding=1, output_padding=(1, 2), groups=2
    ),
    "transposed, dilated": lambda m, x: F.conv_transpose2d(x, m.k[:4], m.v[:2], dilation=2),
    "convolution": lambda m, x: (
        torch.ops.aten.convolution(x, m.k, None, [2, 1], [1, 0], [1, 2], False, [0, 0], 2),
        torch.ops.aten.convolution(x, m.k[:4], None, [2], [1], [1], True, [1], 2),
    ),
    "norms": lambda m, x: (
        F.batch_norm(x, m.v[:4], m.v[:4].abs(), m.c.reshape(4), m.v[2:], False, eps=0.3),
        F.batch_norm(x, m.v[:4], m.v[:4].abs() + 1),
        F.instance_norm(x, m.v[:4], m.v[1:5].abs(), m.v[2:], m.c.reshape(4), False),
    ),
    "layer_norm": lambda m, x: (F.layer_norm(x, (6,)), F.layer_norm(x, (6,), m.v, m.w[0], 0.1)),
    "layer_norm of two axes": lambda m, x: F.layer_norm(x, (6, 6), m.w[:1].T * m.w[1:2], x[0, 0]),
    "group_norm": lambda m, x: (F.group_norm(x, 2), F.group_norm(x, 4, m.v[:4], m.v[2:], 0.1)),
    "instance_norm": lambda m, x: F.instance_norm(x, None, None, m.v[:4], m.v[2:], True, eps=0.1),
    "rms_norm": lambda m, x: (F.rms_norm(x, (6,), m.v, 0.1),),
    "max_pool": lambda m, x: (
        F.max_pool2d(x, 3, (2, 1), (1, 0), (1, 2)),
        F.max_pool2d(x, 3, 2, ceil_mode=True),
        F.max_pool1d(x[0], 2),
        F.max_pool3d(x[:, :, None], (1, 2, 3)),
    ),
    "avg_pool": lambda m, x: (
        F.avg_pool2d(x, (3, 2), 2, 1),
        F.avg_pool2d(x, 3, (2, 1), 1, count_include_pad=False),
        F.avg_pool1d(x[0], 2),
    ),
    "adaptive": lambda m, x: (
        F.adaptive_avg_pool2d(x, 1),
        F.adaptive_max_pool2d(x, (1, 1)),
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_max_pool2d(x, (2, 6)),
    ),
    "reduced": lambda m, x: (
        x.mean((-1, 2)),
        x.mean(1, keepdim=True),
        x.mean(),
        x.sum((0, -2), keepdim=True),
        x.sum(),
        x.amax((1, 3)),
        x.amin(-1, keepdim=True),
        x.max(1)[0],
        x.min(-1, keepdim=True)[0],
    ),
    "compared": lambda m, x, y: (x > 0.1, x < y, y.flip(1) >= y, x <= m.c),
    "the same": lambda m, x: (x.floor() == 0, x.double() >= 0.1, m.c > x),
    "compared with itself": lambda m, x: (x >= x, x > x, x <= x, x < x, x == x),
    "rounded": lambda m, x: ((x * 4).floor() / 2).round(),
    "argmax": lambda m, x: (x.argmax(1), x.argmin(-1, keepdim=True)),
    "softmax": lambda m, x: (x.softmax(1), x.log_softmax(-1), x[0, 0, 0].softmax(0)),
    "padded": lambda m, x: (
        F.pad(x, (1, 2, 0, 3)),
        F.pad(x, (1, -2), value=0.5),
        F.pad(x, (2, 1, 0, 3), mode="reflect"),
        F.pad(x, (2, 1, 0, 3), mode="replicate"),
        F.pad(x[0], (2, 1), mode="circular"),
    ),
    "axes": lambda m, x: (
        x.flatten(1),
        x.view(2, 2, 2, -1),
        x[:1].squeeze(0),
        x.unsqueeze(-1),
        x.reshape(-1),
        x.unflatten(1, (2, 2)),
        x.view(4, 2, 36).view_as(m.c.expand(4, 6, 12)[:, :, :]),
    ),
    "transposed axes": lambda m, x: (
        x.permute(0, -1, 1, 2),
        x.transpose(1, -1),
        x[0, 0].t(),
        x.mT,
        x.swapaxes(0, 2),
        x.movedim(1, -1),
        x.movedim((0, 3), (2, 1)),
        x.T if x.ndim == 2 else x,
    ),
    "expanded": lambda m, x: (x[:, :1].expand(-1, 4, -1, -1), x[0].expand(3, -1, -1, -1)),
    "joined": lambda m, x, y: (
        torch.cat([x, y, x], 1),
        torch.cat([x, m.c.expand(2, 4, 6, 6)], -1),
        torch.stack([x, y], -2),
        torch.cat([x, N.reshape(2, 1, 1, 6).expand(2, 4, 6, 6)], 0),
    ),
    "parts": lambda m, x: (
        *x.split(4, 2),
        *x.split([1, 3], 1),
        *x.chunk(3, -1),
        *x.unbind(1),
        *x.tensor_split(4, -1),
    ),
    "slices": lambda m, x: (x[:, 1:], x[..., :-1, 1::2], x[:, -3:-1], x[:, 2:9], x[:, :, 5:2]),
    "ranges": lambda m, x: (
        x.narrow(2, 1, 3),
        x.narrow(1, -3, 3),
        x.narrow(1, 0, 0),
        x.flip(1, -1),
        x.flip(2),
    ),
    "picked": lambda m, x: (x[:, -1], x.select(2, 1), x.index_select(1, m.i)),
    "shuffled": lambda m, x: F.pixel_shuffle(x, 2),
    "handed": lambda m, x: (F.dropout(x, training=False).contiguous().clone().detach(), x.cpu()),
    "an input itself": lambda m, x: (x, m.c, m.c * 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operator_computes_what_it_did(name):
    function = FUNCTIONS[name]
    count = function.__code__.co_argcount - 1
    if name.startswith("integers"):
        assert_computes(Function(function), Z)
    else:
        assert_computes(Function(function), *(X.clone(), Y.clone())[:count])
