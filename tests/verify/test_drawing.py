from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold._errors import UsageError
from bnfold._run import drawing
from bnfold._run.drawing import USUAL, InputSource, UndrawableError, WantedInputs
from bnfold._run.input_sets import ONLY, InputSet, load_inputs


def source(arguments: str, body: str = "{ y = Identity(x) }", more: str = "") -> InputSource:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({arguments}) => (float[n] y){more}{body}'
    return InputSource(onnx.parser.parse_model(text), seed=0)


def first(drawn: InputSource) -> InputSet:
    return next(drawn.first())


def shapes(inputs: InputSet) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in inputs.feeds.items()}


def test_two_distributions_from_a_fixed_seed() -> None:
    drawn = source("float[50,40] x")
    signed, unsigned = first(drawn), next(drawn.further(1, first(drawn)))
    assert (signed.label, unsigned.label) == ("signed", "unsigned")
    assert abs(signed.feeds["x"].std() - 1) < 0.1
    assert abs(signed.feeds["x"].mean()) < 0.1
    assert unsigned.feeds["x"].min() >= 0
    assert abs(unsigned.feeds["x"].mean() - 0.5) < 0.05
    assert np.array_equal(first(source("float[50,40] x")).feeds["x"], signed.feeds["x"])


def test_a_symbol_has_one_size_everywhere_and_changes_for_the_second_set() -> None:
    drawn = source("float[N,3,H,W] x, float[N,H] z")
    one = first(drawn)
    two = next(drawn.further(1, one))
    assert shapes(one) == {"x": (1, 3, 64, 64), "z": (1, 64)}
    assert shapes(two) == {"x": (2, 3, 96, 64), "z": (2, 96)}


@pytest.mark.parametrize(
    "fixed, changing",
    [
        ("height", {"batch", "length"}),
        ("length", {"batch", "height"}),
        ("batch", {"length", "height"}),
    ],
)
def test_a_size_that_is_not_free_after_all_stops_no_other(fixed: str, changing: set[str]) -> None:
    """The first proposal in which that size stays has all others changed."""
    text = "float[batch,3,height,width] image, int64[batch,length] tokens"
    drawn = source(text, "{ y = Identity(image) }")

    def sizes(inputs: InputSet) -> dict[str, int]:
        batch, _, height, _ = inputs.feeds["image"].shape
        return {"batch": batch, "height": height, "length": inputs.feeds["tokens"].shape[1]}

    before = first(drawn)
    known = sizes(before)
    proposals = map(sizes, drawn.further(1, before))
    found = next(found for found in proposals if found[fixed] == known[fixed])
    assert {name for name in known if found[name] != known[name]} == changing


def test_fixed_sizes_stay_and_the_last_proposals_return_to_the_first_sizes() -> None:
    drawn = source("float[N,3,48,W] x")
    one = first(drawn)
    proposals = [shapes(two)["x"] for two in drawn.further(1, one)]
    assert proposals[0] == (2, 3, 48, 96)
    assert proposals[-1] == shapes(one)["x"] == (1, 3, 48, 64)


def test_no_shape_at_all_takes_rank_and_channels_from_the_convolution() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float x) => (float y)'
        "<float[4,3,1] w = {1,1,1,1,1,1,1,1,1,1,1,1}> { y = Conv<group = 2>(x, w) }"
    )
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert shapes(first(InputSource(model, 0)))["x"] == (1, 6, 16)


def test_indices_stay_within_the_table_they_address() -> None:
    body = "{ e = Gather(t, x) y = Identity(e) }"
    drawn = source("int64[N,L] x", body, "<float[5,1] t = {1,2,3,4,5}>")
    for inputs in (first(drawn), next(drawn.further(1, first(drawn)))):
        assert inputs.feeds["x"].dtype == np.int64
        assert set(inputs.feeds["x"].flat) <= set(range(5))
        assert inputs.feeds["x"].max() > 1


def test_an_integer_takes_the_values_it_is_compared_with() -> None:
    body = "{ a = Equal(x, p) b = Equal(q, x) y = Cast<to = 1>(a) }"
    drawn = source("int64 x", body, "<int64 p = {16000}, int64 q = {8000}>")
    assert first(drawn).feeds["x"] == 16000
    assert next(drawn.further(1, first(drawn))).feeds["x"] == 8000


def test_booleans_are_seen_both_ways_and_masks_keep_a_one() -> None:
    drawn = source("bool x, int64[2,L] mask")
    one = first(drawn)
    two = next(drawn.further(1, one))
    assert one.feeds["x"]
    assert not two.feeds["x"]
    assert (one.feeds["mask"] == 1).all()
    assert set(two.feeds["mask"].flat) == {0, 1}
    assert (two.feeds["mask"][:, 0] == 1).all()


@pytest.mark.parametrize("kind", ["float16", "double", "uint8", "int8"])
def test_other_types_keep_their_type(kind: str) -> None:
    array = first(source(f"{kind}[1,3,8,8] x")).feeds["x"]
    assert array.dtype == {"double": np.float64}.get(kind, np.dtype(kind.replace("double", "f8")))
    assert np.unique(array).size > 50


def test_initializers_listed_as_inputs_are_not_fed() -> None:
    drawn = source("float[2] x, float[2] w", "{ y = Mul(x, w) }", "<float[2] w = {1, 2}>")
    assert set(first(drawn).feeds) == {"x"}


@pytest.mark.parametrize(
    "kind", ["string[2]", "seq(float[2])", "bfloat16[2]", "optional(float[2])"]
)
def test_what_cannot_be_drawn_says_which_input(kind: str) -> None:
    with pytest.raises(UndrawableError, match="input x"):
        source(f"{kind} x")


def test_arrays_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "real.npz"
    np.savez(path, x=np.ones(3, np.float32))
    (inputs,) = load_inputs(path)
    assert inputs.label == "real.npz"
    assert inputs.feeds["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        lambda path: path.write_text("text"),
        lambda path: np.savez(path),
        lambda path: np.savez(path, x=np.array([{}], dtype=object)),
        lambda path: np.save(path.open("wb"), np.ones(3)),
    ],
    ids=["missing", "empty", "broken", "text", "no arrays", "pickled", "npy"],
)
def test_unreadable_files_are_a_usage_error(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "inputs.npz"
    spoil(path)
    with pytest.raises(UsageError, match=r"inputs\.npz"):
        load_inputs(path)


def wanted(arguments: str, *kinds: str, **dims: Any) -> list[InputSet]:
    """All sets that are drawn, each by its first proposal."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({arguments}) => (float[n] y)'
    model = onnx.parser.parse_model(text + "{ y = Identity(x) }")
    drawn = InputSource(model, 0, WantedInputs.of(kinds or USUAL.flavours, dims))
    sets = [next(drawn.first())]
    return sets + [next(drawn.further(number, sets[0])) for number in range(1, len(drawn))]


def test_every_kind_of_inputs() -> None:
    kinds = ("signed", "unsigned", "structured", "large")
    sets = wanted("float[4,64,64] x", *kinds)
    assert tuple(each.label for each in sets) == kinds
    signed, unsigned, structured, large = (each.feeds["x"] for each in sets)
    assert 0.9 < signed.std() < 1.1
    assert 0 <= unsigned.min() < unsigned.max() < 1
    assert 90 < large.std() < 110
    assert set(np.unique(structured)) == {-2, 2}
    assert (structured == structured[0]).all()  # of an image, all channels show the same
    flat = np.diff(structured, axis=2) == 0
    assert 0.8 < flat.mean() < 1
    (blocks,) = (each.feeds["x"] for each in wanted("float[64,64] x", "structured"))
    assert set(np.unique(blocks)) == {-2, 0, 2}
    assert structured.shape == (4, 64, 64)
    assert structured.dtype == np.float32


def test_sizes_by_name_are_taken_in_turn() -> None:
    sets = wanted("float[batch,3,H,W] x", batch=(1, 4, 2), H=48)
    assert [each.feeds["x"].shape[:3] for each in sets] == [(1, 3, 48), (4, 3, 48), (2, 3, 48)]
    assert [each.label for each in sets] == [
        "signed batch=1 H=48",
        "unsigned batch=4 H=48",
        "structured batch=2 H=48",
    ]
    assert len({each.feeds["x"].tobytes() for each in sets}) == 3


@pytest.mark.parametrize(
    "kinds, dims, words",
    [
        (("signed", "odd"), {}, "no 'odd' inputs"),
        ((), {"batch": 0}, "sizes of 1 or more"),
        ((), {"batch": ()}, "sizes of 1 or more"),
        ((), {"length": 3}, "no free dimension 'length'; it has H, batch"),
    ],
)
def test_wishes_that_cannot_be_met(kinds: Any, dims: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        wanted("float[batch,3,H,5] x", *kinds, **dims)


def test_a_folder_of_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.ones(3))
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    (tmp_path / "notes.txt").write_text("no sample")
    one, two = load_inputs(tmp_path)
    assert (one.label, two.label) == ("a.npz", "b.npy")
    assert list(one.feeds) == ["x"]
    assert list(two.feeds) == [ONLY]


def test_a_folder_without_samples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.npz and no \.npy"):
        load_inputs(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04"])
def test_an_npy_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.npy is not an \.npy file"):
        load_inputs(tmp_path / "x.npy")


PIXELS = {
    "NominalRange_0_255": (0, 255),
    "NominalRange_16_235": (16, 235),
    "Normalized_0_1": (0, 1),
    "Normalized_1_1": (-1, 1),
}


def pictured(value: str | None, *, denoted: bool = True) -> onnx.ModelProto:
    """An image and a vector beside it; the metadata of ONNX knows which is which."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,32,32] image, float[1,3,32,32] map) '
    )
    model = onnx.parser.parse_model(text + "=> (float[1,3,32,32] y) { y = Add(image, map) }")
    if value is not None:
        model.metadata_props.add(key="Image.NominalPixelRange", value=value)
    if denoted:
        model.graph.input[0].type.denotation = "IMAGE"
    return model


@pytest.mark.parametrize("value, limits", PIXELS.items())
def test_pixels_are_drawn_from_the_range_that_metadata_gives(
    value: str, limits: tuple[float, float]
) -> None:
    low, high = limits
    for spelled in (value, value.lower()):
        source = InputSource(
            pictured(spelled), 0, WantedInputs(("signed", "unsigned", "structured"))
        )
        first = next(source.first())
        sets = [first, *(next(source.further(n, first)) for n in (1, 2))]
        for drawn in sets:
            image, other = drawn.feeds["image"], drawn.feeds["map"]
            assert low <= image.min() < image.max() <= high
            assert np.ptp(image) > 0.9 * (high - low)
            assert np.abs(other).max() < 10
        assert set(np.unique(sets[2].feeds["image"])) == {low, high}


def test_a_range_without_denotations_is_that_of_every_image() -> None:
    source = InputSource(pictured("NominalRange_0_255", denoted=False), 0)
    assert all(feed.max() > 200 for feed in next(source.first()).feeds.values())


@pytest.mark.parametrize("value", [None, "Linear", ""])
def test_no_range_that_is_known_changes_nothing(value: str | None) -> None:
    plain, made = (next(InputSource(pictured(v), 0).first()) for v in (None, value))
    assert np.array_equal(plain.feeds["image"], made.feeds["image"])


def test_sizes_that_fill_the_memory_are_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five free dimensions of which nothing is known: 4096 in each would be 1e18 numbers."""
    assert drawing._LARGEST <= 1 << 24
    monkeypatch.setattr(drawing, "_LARGEST", 1 << 20)
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[a,b,c,d,e] x) => (float[m] y) '
    model = onnx.parser.parse_model(text + "{ y = Abs(x) }")
    for proposal in InputSource(model, 0).first():
        assert proposal.feeds["x"].size <= 1 << 20


@pytest.mark.parametrize("shape", ["100000,100000", "a,b,c,d,e,f,g,h", "1099511627776,n"])
def test_inputs_that_fill_the_memory_are_not_drawn(shape: str) -> None:
    """The model says so itself, or leaves so many sizes free: neither takes the machine down."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[m] y) '
    model = onnx.parser.parse_model(text + "{ y = Abs(x) }")
    with pytest.raises(MemoryError, match=r"numbers are not drawn; pass real inputs"):
        next(InputSource(model, 0).first())
    result = bnfold.verify(model, model, prove=False)
    assert result.status == "inconclusive"
    assert any("are not drawn; pass real inputs" in note for note in result.notes)
