"""The slips: every place of a module that can be changed a little, and how."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_NOT_CHANGED = ("annotation", "returns", "decorator_list", "bases")


class Change(NamedTuple):
    """One slip: the whole source with it, and where and what it is."""

    source: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.line}: {self.before}  →  {self.after}"


def changes_of(source: str) -> Iterator[Change]:
    """All slips of a module, one at a time. Annotations, decorators, docstrings, messages and logging stay."""
    tree = ast.parse(source)
    for node, field, index in list(_places(tree)):
        value = getattr(node, field)
        old = value if index is None else value[index]
        for new in _slips(old):
            _put(node, field, index, new)
            yield Change(ast.unparse(ast.fix_missing_locations(tree)), old.lineno, _shown(old), _shown(new))
        _put(node, field, index, old)


def _put(node: ast.AST, field: str, index: int | None, new: ast.AST) -> None:
    if index is None:
        setattr(node, field, new)
    else:
        getattr(node, field)[index] = new


def _shown(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:100]


def _places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where statements and expressions stand that may be changed: in which node, in which field of it."""
    for field, value in ast.iter_fields(node):
        if field in _NOT_CHANGED or (isinstance(node, ast.ClassDef) and field == "keywords"):
            continue
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.expr | ast.stmt | ast.comprehension | ast.keyword | ast.excepthandler):
                continue
            if _is_left_alone(child):
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield node, field, index
            yield from _places(child)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Expr) and ast.unparse(node).startswith("_log."):
        return True
    if isinstance(node, ast.Assign) and "Literal[" in ast.unparse(node.value):
        return True
    return isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)


def _slips(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for other in _COMPARISONS.get(type(node.ops[0]), ()):
            yield _with(node, ops=[other(), *node.ops[1:]])
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield _with(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Return) and node.value and ast.unparse(node.value) != "None":
        yield _with(node, value=ast.Constant(None))
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)):
        yield ast.copy_location(ast.Pass(), node)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield _with(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and isinstance(
        node.test, ast.Name | ast.Attribute | ast.Call
    ):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))


_WITHOUT_OPERATOR = (ast.Name, ast.Attribute, ast.Call)


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield _with(node, value=not node.value)
    elif isinstance(node.value, int | float):
        yield _with(node, value=node.value + 1)
    elif isinstance(node.value, str) and " " not in node.value:  # no message to people
        yield _with(node, value=f"{node.value}X")


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
