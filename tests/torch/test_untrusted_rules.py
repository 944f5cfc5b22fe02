"""What a .pt2 file may hold, rule by rule: each input here breaks one rule, and no other."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from bnfold._torch.program.expressions import (  # noqa: E402
    Untrusted,
    refuse_more_in_guard,
    refuse_more_in_size,
)
from bnfold._torch.program.untrusted import refuse_code  # noqa: E402

from .archives import changed, in_model, rebuilt, saved  # noqa: E402

CALLS = "which is no operator of a network"
IMPORTS = "a container would import"
NAMED = "a name has characters"
HELD = "a container has characters"
IDENTIFIER = "is no identifier"
NO_TEXT, NO_LIST = "which is no text", "where PyTorch writes a list"
FORM, NO_JSON = "has another form than PyTorch writes", "is no JSON"
SIZE, GUARD = "the size .* is more than arithmetic", "the guard .* is more than arithmetic"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def taking():
    """Operators of PyTorch that take the name of a file, each by another name of its argument."""
    library = torch.library.Library("bnfold_taking", "DEF")
    for name in ("file", "filename", "path", "f"):
        library.define(f"by_{name}(Tensor x, str {name}) -> Tensor")
    library.define("by_size(Tensor x, int size) -> Tensor")
    yield
    library._destroy()


def container(context):
    """A container whose context PyTorch reads when it loads a program."""
    one = {"type": "collections.defaultdict", "context": json.dumps(context), "children_spec": []}
    return json.dumps([1, one])


def filled(module, name):
    """The context of a ``defaultdict`` that is filled by a function."""
    return {"default_factory_module": module, "default_factory_name": name}


CODE = "k=print(1)"
LEAF = {"type": None, "context": None, "children_spec": []}
ARGUMENTS = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]}


def called(context, **call):
    """The tree of a call: one argument, and one keyword, whose container has this context."""
    words = {"type": "builtins.dict", "context": context, "children_spec": [LEAF]}
    both = {"type": "builtins.tuple", "context": "null", "children_spec": [ARGUMENTS, words]}
    return [1, both | call]


def call_tree(context):
    return json.dumps(called(context))


ENUM = {"__enum__": True, "fqn": "os.environ", "name": "A"}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("target", "torch.hub.load", CALLS),
        ("target", "torch.ops.load_library", CALLS),
        ("target", "torch.load", CALLS),
        ("target", "torch_.os.mkdir", CALLS),
        ("target", "torch.sym_max.__globals__.x", CALLS),
        ("target", "x.torch.sym_max", CALLS),
        ("target", "_operator.methodcaller", CALLS),
        ("target", "operators.add", CALLS),
        ("target", "math.__loader__.load_module", CALLS),
        ("target", "torch.ops.aten.from_file", CALLS),
        ("target", "torch.ops.aten.from_file.default", CALLS),
        ("target", "torch.ops.profiler._record_function_enter", CALLS),
        ("target", "torch.ops.debugprims.load_tensor", CALLS),
        ("target", "torch.ops.aten.a b", CALLS),
        ("target", "torch.ops.aten.relu.__call__", CALLS),
        ("name", "x = 1; import this", NAMED),
        ("name", "x\nimport this", NAMED),
        ("name", 'x"', NAMED),
        *(("graph_name", f"a{sign}b", NAMED) for sign in "'\"\\\n"),
        *((f"a{sign}b", 1, NAMED) for sign in "'\"\\\n"),
        ("list", ["a", 'b"'], NAMED),
        ("forward_arg_names", ["x", "more=print(1)"], IDENTIFIER),
        ("guards_code", ["1 == 1", "(lambda: 1)()"], GUARD),
        ("in_spec", container(filled("os", "getcwd")), IMPORTS),
        ("in_spec", container(filled("builtins", "exec")), IMPORTS),
        ("in_spec", container(filled("os", "list")), IMPORTS),
        ("in_spec", container({"default_factory_module": "os"}), IMPORTS),
        ("in_spec", container({"default_factory_name": "exec"}), IMPORTS),
        ("in_spec", container(ENUM), IMPORTS),
        ("in_spec", container([json.dumps(ENUM)]), IMPORTS),
        ("in_spec", container(json.dumps(filled("os", "x"))), HELD),
        ("in_spec", call_tree(json.dumps([ENUM])), IMPORTS),
        ("in_spec", call_tree(" " + json.dumps([ENUM])), IMPORTS),
        ("in_spec", call_tree('["input=print(1)"]'), IDENTIFIER),
        ("out_spec", call_tree(json.dumps([filled("os", "y")])), IMPORTS),
        ("out_spec", call_tree('["a\'b"]'), HELD),
        ("out_spec", container({"a'b": 1}), HELD),
        ("out_spec", ["a'b"], NO_TEXT),
        ("out_spec", None, NO_TEXT),
        ("in_spec", called("[]"), NO_TEXT),
        ("in_spec", {CODE: 1}, NO_TEXT),
        ("out_spec", "[1", "no JSON"),
        ("forward_arg_names", {"x": 1}, NO_LIST),
        ("forward_arg_names", "x", NO_LIST),
        ("forward_arg_names", 1, NO_LIST),
        ("guards_code", {"1 == 1": 1}, NO_LIST),
        ("guards_code", "1", NO_LIST),
        ("guards_code", None, NO_LIST),
    ],
)
def test_what_is_refused(key, value, why, plain, tmp_path):
    with pytest.raises(Untrusted, match=why):
        refuse_code(changed(plain, tmp_path, key, value))


NO_TREE_OF_A_CALL = {
    "keywords as an object": (called(json.dumps({CODE: 1})), NO_LIST),
    "keywords as a text": (called(json.dumps(CODE)), HELD),
    "keywords as a number": (called("1"), NO_LIST),
    "keywords that are no JSON": (called(CODE), NO_JSON),
    "keywords as an object in a list": (called(json.dumps([{CODE: 1}])), IDENTIFIER),
    "keywords in lists": (called(json.dumps([[CODE]])), IDENTIFIER),
    "keywords in a list": (called(json.dumps([CODE])), IDENTIFIER),
    "arguments as an object": (called("[]", children_spec={CODE: LEAF}), FORM),
    "arguments that are texts": (called("[]", children_spec=[json.dumps(CODE)] * 2), FORM),
    "a tree as an object": ({"1": called(json.dumps({CODE: 1}))}, FORM),
    "a tree as a text": (json.dumps(called(json.dumps({CODE: 1}))), FORM),
    "two trees": ([*called("[]"), called(json.dumps({CODE: 1}))], FORM),
}


@pytest.mark.parametrize("what", NO_TREE_OF_A_CALL)
def test_names_that_are_not_where_they_belong(what, plain, tmp_path):
    """PyTorch goes through whatever there is; it writes the keys of an object into source text."""
    value, why = NO_TREE_OF_A_CALL[what]
    with pytest.raises(Untrusted, match=why):
        refuse_code(changed(plain, tmp_path, "in_spec", json.dumps(value)))


def test_a_tree_without_end(plain, tmp_path):
    deep = LEAF
    for _ in range(400):
        deep = {"type": "builtins.tuple", "context": "null", "children_spec": [deep]}
    with pytest.raises(Untrusted, match="nested too deep"):
        refuse_code(changed(plain, tmp_path, "in_spec", json.dumps([1, deep])))


@pytest.mark.parametrize("overload", ["", ".default"])
@pytest.mark.parametrize("name", ["file", "filename", "path", "f"])
def test_an_operator_that_takes_the_name_of_a_file(name, overload, taking, plain, tmp_path):
    target = "torch.ops.bnfold_taking.by_{}" + overload
    refuse_code(changed(plain, tmp_path, "target", target.format("size")))
    with pytest.raises(Untrusted, match=CALLS):
        refuse_code(changed(plain, tmp_path, "target", target.format(name)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "_operator.floordiv"),
        ("target", "math.floor"),
        ("target", "torch.sym_max"),
        ("target", "torch.ops.higher_order.cond"),
        ("target", "torch.ops.nobody.knows.it"),
        ("name", "layer1_0_conv"),
        ("in_spec", container(filled("builtins", "list"))),
        ("in_spec", call_tree('["scale"]')),
        ("in_spec", call_tree("[]")),
        ("in_spec", json.dumps([1, LEAF])),
        ("in_spec", json.dumps([1, ARGUMENTS])),
        ("metadata", {"source_fn_stack": "x,torch.relu';y,torch.relu", "stack_trace": "'"}),
        ("guards_code", ["L['x'].size()[0] >= 2 and L['more']['scale'].stride()[0] == 1"]),
    ],
)
def test_what_a_program_may_hold(key, value, plain, tmp_path):
    refuse_code(changed(plain, tmp_path, key, value))


@pytest.mark.parametrize(
    "text",
    [
        "Max('print(1)', 2)",  # sympy evaluates the text
        "Max('a.__class__', 2)",
        "floor('print(1)')",
        "Max('a\\\n', '+print(1))#', 2)",  # a line that it joins
        "Symbol('a b(')",
        "Max(Symbol('s0'), 'a')",
        "Symbol(2, 'a')",
        "Max(1, evaluate=2)",
        "s0.real",
        "__x__",
        "exec(1)",
        "OpaqueUnaryFn_A(1)",
        "OpaqueUnaryFn_aA(1)",
        "s0.f(1)",
        "[1]",
        "s0[0]",
        "lambda: 1",
        "b'a'",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "PowByNatural(9, 1000)",
        "LShift(2, 1000)",
        "2 << 1000",
        "9 ** 9 ** 9",
        "2 ** (32 + 33)",
        "2 ** -65",
        "2 ** None",
        "s0 #",
        "s0\n",
        "",
        7,
    ],
)
def test_a_size_that_is_refused(text):
    with pytest.raises(Untrusted, match=SIZE if text else "the size"):
        refuse_more_in_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].__class__",
        "L['x'].size",
        "L['x'].size().__reduce__()",
        "L['x'].size(dim=0)",
        "L['x'].item()",
        "max(1, key=2)",
        "exec(1)",
        "(lambda: 1)()",
        "[x for x in L]",
        "L['a b(']",
        "L['x'] == 'x'",
        "L[x:y]",
        "L[x]",
        "__x__ == 1",
        "L['x'].size()[0] == 9 ** 9 ** 9",
        "L['x'].size()[0] == 2 ** 1000",
        "2 << 1000",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "PowByNatural(9, 1000)",
        "2 or b\"+str(1)+'a'+\" == 1",  # bytes that end a message
        "1 == 1 # so",
    ],
)
def test_a_guard_that_is_refused(text):
    with pytest.raises(Untrusted, match=GUARD):
        refuse_more_in_guard(text)


def test_what_sizes_and_guards_may_be():
    for text in (
        "Symbol('s0', positive=True, integer=True)",
        "Max(Integer(2), Symbol('s0'))",
        "OpaqueUnaryFn_sqrt(s0)",
        "Pow(Symbol('s0'), Integer(2))",
        "PowByNatural(Integer(10), Symbol('s0'))",
        "Pow(Integer(100), Integer(2))",
        "2 ** 63",
        "Float('1.5', precision=53)",
    ):
        refuse_more_in_size(text)
    for text in (
        "Ne(Mod(L['x'].size()[2], 2), 1)",
        "math.floor(L['x'].size()[2] / 2) < 2 ** 63",
        "max(L['x'].size()[-1], 1) == 1",
    ):
        refuse_more_in_guard(text)


def sized(program, text):
    """A size of the first tensor as this text."""
    values = program["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


def noded(program, target, argument, name=""):
    graph = program["graph_module"]["graph"]
    own = {"inputs": [{"name": name, "arg": argument, "kind": 1}], "outputs": [], "name": "made"}
    graph["nodes"].insert(0, {**graph["nodes"][0], **own, "target": target})


RELU = "torch.ops.aten.relu.default"
WAYS = {
    "a size": (lambda p: sized(p, "floor('print(1)')"), SIZE),
    "a function that is handed on": (
        lambda p: noded(p, "torch.ops.higher_order.wrap", {"as_operator": "torch.os.mkdir"}),
        CALLS,
    ),
    "a node in front": (lambda p: noded(p, "torch.ops.aten.from_file", {"as_string": "f"}), CALLS),
    "the name of an argument": (lambda p: noded(p, RELU, {"as_string": "f"}, 'a"b'), NAMED),
    "the name of a tensor": (
        lambda p: noded(p, RELU, {"as_tensor": {"name": "a b"}}),
        NAMED,
    ),
    "the name of a number": (lambda p: noded(p, RELU, {"as_sym_int": {"as_name": "a b"}}), NAMED),
}


@pytest.mark.parametrize("way", WAYS)
def test_where_it_stands_in_a_program(way, plain, tmp_path):
    edit, why = WAYS[way]

    def edited(content: str) -> str:
        program = json.loads(content)
        edit(program)
        return json.dumps(program)

    with pytest.raises(Untrusted, match=why):
        refuse_code(rebuilt(plain, tmp_path / "m.pt2", in_model(edited)))


HUGE = [
    "10**(10**9 + 0*Symbol('s'))",
    "Integer(5)**Symbol('s0')",
    "Pow(Integer(10), 9999999999*Symbol('s')**0)",
    "Pow(Integer(9), Integer('9999999999'))",
    "Pow(Integer(9), Rational(64, '0.0000001'))",
    "((((10**64)**64)**64)**64)**64",
    "Pow(Pow(Pow(Symbol('s'), 64), 64), 64)",
    "PowByNatural(PowByNatural(PowByNatural(Integer(3), 64), 64), 64)",
    "Pow(Integer(100), Symbol('s0'))",
    "PowByNatural(2*Symbol('s1'), Symbol('s0'))",
    "PowByNatural(Integer(2), 10**9 + 0*Symbol('s'))",
    "1 << (9**9)",
    "floor(Float('1e9999999999'))",
    "Pow(Float('1e-9999999'), -1)",
    "floor(Float('0.1', precision=10000000000))",
    "floor(Float('0.1', 10000000000))",
    "Float('0.1', Integer(10)**64)",
    "+".join(["1"] * 5000),
]


@pytest.mark.parametrize("text", HUGE)
def test_numbers_that_no_memory_holds(text):
    """sympy computes them as it reads the text."""
    with pytest.raises(Untrusted, match="the size"):
        refuse_more_in_size(text)


@pytest.mark.parametrize("text", [HUGE[0], "2 ** L['x'].size()[0]", "2 ** (3 ** 40)"])
def test_numbers_that_a_guard_would_compute(text):
    with pytest.raises(Untrusted, match="the guard"):
        refuse_more_in_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        "Pow(Symbol('s0', integer=True, positive=True), Integer(2))",
        "Symbol('s0')**64 * 2**63 + Symbol('s1')**-1",
        "Pow(Symbol('s0'), Rational(1, 2))",
        "Pow(Symbol('s0'), Integer(-1)) * Float('0.5', precision=53)",
        "floor(Mul(Float('1e-05', precision=53), Symbol('s0')))",
        "LShift(Symbol('s0'), Integer(3)) + LShift(Integer(1), Symbol('s1'))",
        "Add(*)".replace("*", ", ".join(f"Mul(Integer({n}), Symbol('s{n}'))" for n in range(200))),
        "Max(1, Integer(9223372036854775807), -Integer(5))",
        "FloorDiv(-1 + Symbol('s0'), 2)**2 + PowByNatural(Symbol('s1'), 3)",
    ],
)
def test_sizes_with_powers(text):
    refuse_more_in_size(text)
