"""Small changes of a module, each of which a test should notice.

Left out is what changes no result: docstrings, messages, annotations, decorators, assertions,
`__repr__`, and defaults of the fields of a class, which are choices.
"""

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
FUNCTIONS = {
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "sum": "mean", "mean": "sum",
    "any": "all", "all": "any", "sin": "cos", "cos": "sin", "floor": "ceil", "ceil": "floor",
    "argmin": "argmax", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum",
}  # fmt: skip
REPRESENTATION = {"__repr__", "__str__", "extra_repr"}
SPEAKING = {"cast", "print", "warn", "debug", "info", "warning", "log"}
SAME_WITHOUT = {"strict", "encoding", "inplace", "non_blocking", "stacklevel", "device"}
"""Arguments that say what already holds, or how and where something is computed, not what."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    file: str
    """Relative to the package."""
    function: str
    """The qualified name of the function around the change; empty for the module itself."""
    line: int
    start: int
    end: int
    """Bytes of the source that `after` replaces."""
    before: str
    after: str
    nth: int
    """Which of equal changes in a function, from 1."""

    @property
    def name(self) -> str:
        """The same for the same change wherever its function moves within the file."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file} {self.function or 'module'} #{self.nth}: {before}  ->  {after}"

    def apply(self, source: str) -> str:
        """The mutated source."""
        encoded = source.encode()
        return (encoded[: self.start] + self.after.encode() + encoded[self.end :]).decode()


def find(file: str, source: str) -> list[Mutant]:
    """All mutants of a module, from its first line to its last."""
    encoded = source.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found, seen = [], Counter[tuple[str, str, str]]()
    for function, node, after in _changes(ast.parse(source), ""):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        before = encoded[start:end].decode()
        seen[function, before, after] += 1
        nth = seen[function, before, after]
        found.append(Mutant(file, function, node.lineno, start, end, before, after, nth))
    return found


def sample(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """A random choice that changes elsewhere in the package leave as it is: the mutants whose
    names have the smallest digests.
    """

    def digest(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).hexdigest()

    return sorted(mutants, key=digest)[:count]


def _changes(node: ast.AST, function: str) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    """The function around each change, the node that is replaced, and its replacement."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        if node.name in REPRESENTATION:
            return
        function = f"{function}.{node.name}".lstrip(".")
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    changed: Iterator[tuple[ast.expr | ast.stmt, str]] = iter(())
    if isinstance(node, ast.expr):
        changed = _expression(node)
    elif isinstance(node, ast.stmt):
        changed = _statement(node, function)
    for place, text in changed:
        yield function, place, f"({text})" if isinstance(place, ast.expr) else text
    for child in _children(node):
        yield from _changes(child, function)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that are computed."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.Call) and _called(node) in SPEAKING:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign):
                continue
            if isinstance(child, ast.AST) and not (
                isinstance(child, ast.keyword) and child.arg in SAME_WITHOUT
            ):
                yield child


def _expression(node: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    match node:
        case ast.Compare():
            for at, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    operators = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                    yield node, _with(node, ops=operators)
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _is_text(node):
            yield node, _with(node, op=ARITHMETIC[type(node.op)]())
        case ast.BoolOp():
            yield node, _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            if not isinstance(operand, ast.Constant):
                yield node, ast.unparse(operand)
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value)):
            yield from ((node, str(value + change)) for change in (1, -1))
        case ast.Constant(value=float(value)):
            yield node, repr(value + 1)
        case ast.IfExp(test=test):
            yield from _negated(test)
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            for loop in node.generators:
                for test in loop.ifs:
                    yield from _negated(test)
        case ast.Call():
            yield from _call(node)
        case ast.Slice():
            for bound in (node.lower, node.upper):
                if bound is not None and not _is_number(bound):
                    yield bound, f"{ast.unparse(bound)} + 1"


def _call(node: ast.Call) -> Iterator[tuple[ast.expr, str]]:
    for keyword in node.keywords:
        if keyword.arg is not None and keyword.arg not in SAME_WITHOUT:
            yield node, _with(node, keywords=[k for k in node.keywords if k is not keyword])
    name = _called(node)
    if name == "range":
        stop = node.args[min(1, len(node.args) - 1)]
        if not _is_number(stop):
            yield stop, f"{ast.unparse(stop)} - 1"
    if name in FUNCTIONS:
        if isinstance(node.func, ast.Attribute):
            yield node.func, _with(node.func, attr=FUNCTIONS[name])
        elif name != "sum":  # there is no `mean` among the builtins
            yield node.func, FUNCTIONS[name]


def _statement(node: ast.stmt, function: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield from _negated(test)
        case ast.Return(value=value):
            if value is not None and not isinstance(value, ast.Constant):
                yield node, "return None"
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break():
            yield node, "pass"
        case ast.Expr(value=ast.Call() as call) if _called(call) not in SPEAKING:
            yield node, "pass"
        case ast.Assign(targets=[target]) if not function.endswith("__init__"):
            again = ast.unparse(target) in {
                ast.unparse(part) for part in ast.walk(node.value) if isinstance(part, ast.expr)
            }  # x = f(x); the first assignment of a name is missed without any test
            if again or isinstance(target, ast.Subscript | ast.Attribute):
                yield node, "pass"


def _negated(test: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    """Comparisons and negations have mutants of their own."""
    if not isinstance(test, ast.Compare) and not isinstance(test, ast.UnaryOp):
        yield test, f"not ({ast.unparse(test)})"


def _with(node: ast.expr, **fields: object) -> str:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return ast.unparse(changed)


def _called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", "") or getattr(function, "id", "")


def _is_number(node: ast.expr) -> bool:
    value = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(value, ast.Constant)


def _is_text(node: ast.BinOp) -> bool:
    """Texts, paths and lists: another operator is an error without any test."""
    for side in (node.left, node.right):
        if isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp):
            return True
        if isinstance(side, ast.Constant) and isinstance(side.value, str | bytes):
            return True
        if isinstance(side, ast.BinOp) and _is_text(side):
            return True
    return isinstance(node.op, ast.BitOr | ast.BitAnd) and any(
        isinstance(side, ast.Constant) and side.value is None for side in (node.left, node.right)
    )
