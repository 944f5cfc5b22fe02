"""Train a small digit classifier and export it to ONNX with its BatchNorms kept.

The data is scikit-learn's digits set: 1,797 images of 8 by 8 pixels with grey values from 0 to
16. The network has BatchNorm where networks have it: behind a stem convolution, a depthwise and a
pointwise one, a transposed convolution that brings the encoder's output back to full size, and
the hidden linear layer of the head. It trains in a few seconds on a CPU, from a fixed seed;
machines may still differ in the last digits.

Writes ``digits.onnx`` (see ``--output``) and, beside it, ``digits.npz``: a few held-out images
under the model's input name, for ``bnfold digits.onnx --inputs digits.npz``.

Needs torch, scikit-learn and onnx::

    python examples/train_digits.py
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED = 0
EPOCHS = 30
BATCH = 64
OPSET = 17
SAMPLES = 16
INPUT, OUTPUT = "image", "logits"


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias, its BatchNorm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class DigitNet(nn.Module):
    """An encoder, a decoder with a skip connection, and a classifier head."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.stem = conv_bn_relu(1, 16, 3)
        self.encoder = nn.Sequential(
            conv_bn_relu(16, 16, 3, stride=2, groups=16),
            conv_bn_relu(16, 32, 1),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 2, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.merge = conv_bn_relu(16, 16, 3, stride=2)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 48),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(48, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Grey values from 0 to 16, of shape [N, 1, 8, 8], to ten logits."""
        stem = self.stem((image - self.mean) / self.std)
        logits: Tensor = self.head(self.merge(stem + self.decoder(self.encoder(stem))))
        return logits


def train(model: DigitNet, images: Tensor, labels: Tensor) -> None:
    """Fit `model` in place and leave it in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))[: len(images) // BATCH * BATCH]
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: DigitNet, images: Tensor, labels: Tensor) -> float:
    """The share of `images` that `model` classifies correctly."""
    with torch.inference_mode():
        return float((model(images).argmax(1) == labels).float().mean())


def export(model: DigitNet, path: Path, metadata: dict[str, str]) -> None:
    """Write `model` to `path` with every BatchNormalization node and the given metadata."""
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but it is the one that can be told to keep
        # BatchNormalization without expanding its parameters into chains of operators.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 1, 8, 8),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    proto = onnx.load(path)
    proto.doc_string = "Handwritten digits, 8 by 8 pixels: see train_digits.py"
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    """Train, measure, export, and save sample inputs."""
    parser = argparse.ArgumentParser(description="Train and export the digits example.")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).with_name("digits.onnx")
    )
    path: Path = parser.parse_args().output

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    pixels = digits.images.astype(np.float32)[:, np.newaxis]
    train_x, test_x, train_y, test_y = (
        torch.from_numpy(part)
        for part in train_test_split(
            pixels, digits.target, test_size=0.2, random_state=SEED, stratify=digits.target
        )
    )

    mean, std = float(train_x.mean()), float(train_x.std())
    model = DigitNet(mean, std)
    train(model, train_x, train_y)
    score = accuracy(model, test_x, test_y)
    print(f"accuracy on {len(test_x)} held-out images: {score:.2%}")

    normalization = {"mean": round(mean, 6), "std": round(std, 6), "range": [0, 16]}
    metadata = {
        "classes": json.dumps([str(name) for name in digits.target_names]),
        "normalization": json.dumps(normalization),
        "accuracy": f"{score:.4f}",
    }
    export(model, path, metadata)
    samples: dict[str, Any] = {INPUT: test_x[:SAMPLES].numpy()}
    np.savez_compressed(path.with_suffix(".npz"), **samples)
    for file in (path, path.with_suffix(".npz")):
        print(f"wrote {file} ({file.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
