"""The shape of the code: how dense, how long and how crowded it is, against the project's limits.

`python -m tests.shape` prints each figure beside its limit, names what goes beyond, and then exits
with 1. Only code lines count: lines with a name, number, string or operator that is not part of a
docstring.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.folders import PACKAGES, ROOT

MAX_COLUMNS = 100
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_FILES_IN_FOLDER = 12
# One file for each step of making a scene: fewer would be larger.
MAX_FILES_IN = {"model/scenes": 14}

COUNTED_TOKENS = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
OFFENDERS_SHOWN = 5


@dataclass(frozen=True)
class Function:
    name: str
    lines: int
    tokens: int


@dataclass(frozen=True)
class Module:
    """What is counted in one file; `path` is relative to the repository."""

    path: str
    lines: int
    code_lines: int
    wide_lines: int
    tokens: int
    conditionals: int
    functions: tuple[Function, ...]


@dataclass(frozen=True)
class Figure:
    """A measured value, its limit, and the places that go beyond it or weigh most in it."""

    name: str
    value: float
    limit: float
    offenders: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        mark = "ok" if self.holds else "BEYOND"
        return f"{mark:8}{self.name:45}{self.value:8.2f}   limit {self.limit:g}"


def read_modules(root: Path) -> list[Module]:
    """Measure every module of the four packages under `root`."""
    paths = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [
        measure_module(path.relative_to(root).as_posix(), path.read_text())
        for path in sorted(paths)
    ]


def measure_module(path: str, source: str) -> Module:
    """Count the lines, tokens, conditional expressions and functions of one module."""
    nodes = list(ast.walk(ast.parse(source)))
    tokens_at = _count_tokens(source, _docstring_lines(nodes))
    lines = source.splitlines()
    return Module(
        path=path,
        lines=len(lines),
        code_lines=len(tokens_at),
        wide_lines=sum(len(lines[number - 1]) > MAX_COLUMNS for number in tokens_at),
        tokens=tokens_at.total(),
        conditionals=sum(isinstance(node, ast.IfExp) for node in nodes),
        functions=tuple(_measure_functions(nodes, tokens_at)),
    )


def _docstring_lines(nodes: Iterable[ast.AST]) -> set[int]:
    lines: set[int] = set()
    for node in nodes:
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.update(range(docstring.lineno, _last_line(docstring) + 1))
    return lines


def _last_line(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def _count_tokens(source: str, docstring_lines: set[int]) -> Counter[int]:
    """Count the tokens that start on each line, docstrings left out."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    starts = (token.start[0] for token in tokens if token.type in COUNTED_TOKENS)
    return Counter(line for line in starts if line not in docstring_lines)


def _measure_functions(nodes: Iterable[ast.AST], tokens_at: Counter[int]) -> Iterator[Function]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            numbers = range(node.lineno, _last_line(node) + 1)
            tokens = sum(tokens_at[number] for number in numbers)
            yield Function(node.name, len(numbers), tokens)


def figures(modules: list[Module]) -> list[Figure]:
    """Return every figure of these modules that has a limit."""
    return [*_density(modules), *_functions(modules), *_lengths(modules), _folders(modules)]


def _density(modules: list[Module]) -> list[Figure]:
    written = [module for module in modules if module.code_lines]
    code_lines = sum(module.code_lines for module in written)

    def ratio(count: str, scale: float, name: str, limit: float) -> Figure:
        total = sum(getattr(module, count) for module in written)
        shares = {
            module.path: scale * getattr(module, count) / module.code_lines for module in written
        }
        highest = sorted(shares, key=shares.__getitem__, reverse=True)[:OFFENDERS_SHOWN]
        offenders = tuple(f"{path}: {shares[path]:.1f}" for path in highest)
        return Figure(name, scale * total / code_lines, limit, offenders)

    return [
        ratio("tokens", 1, "tokens a code line", 8.5),
        ratio("conditionals", 1000, "conditional expressions in 1,000 code lines", 15),
        ratio("wide_lines", 100, f"% of code lines over {MAX_COLUMNS} columns", 1),
    ]


def _functions(modules: list[Module]) -> list[Figure]:
    where = {f"{module.path}: {each.name}": each for module in modules for each in module.functions}
    tokens = sorted(each.tokens for module in modules for each in module.functions)
    largest = sorted(where, key=lambda name: where[name].tokens, reverse=True)[:OFFENDERS_SHOWN]
    offenders = tuple(f"{name}, {where[name].tokens} tokens" for name in largest)
    return [
        Figure("tokens of a function, median", statistics.median(tokens), 65, offenders),
        Figure("tokens of a function, 90th percentile", _percentile_90(tokens), 200, offenders),
    ]


def _percentile_90(ordered: list[int]) -> int:
    return ordered[int(0.9 * len(ordered))]


def _lengths(modules: list[Module]) -> list[Figure]:
    long_modules = tuple(
        f"{module.path}: {module.lines} lines"
        for module in modules
        if module.lines > MAX_MODULE_LINES
    )
    long_functions = tuple(
        f"{module.path}: {each.name}, {each.lines} lines"
        for module in modules
        for each in module.functions
        if each.lines > MAX_FUNCTION_LINES
    )
    return [
        _none_of(f"modules of more than {MAX_MODULE_LINES} lines", long_modules),
        _none_of(f"functions of more than {MAX_FUNCTION_LINES} lines", long_functions),
    ]


def _folders(modules: list[Module]) -> Figure:
    paths = (Path(module.path) for module in modules)
    sizes = Counter(path.parent.as_posix() for path in paths if path.name != "__init__.py")
    crowded = tuple(
        f"{folder}: {size} files"
        for folder, size in sizes.items()
        if size > MAX_FILES_IN.get(folder, MAX_FILES_IN_FOLDER)
    )
    return _none_of(f"folders of more than {MAX_FILES_IN_FOLDER} files", crowded)


def _none_of(name: str, offenders: tuple[str, ...]) -> Figure:
    return Figure(name, len(offenders), 0, offenders)


def main() -> int:
    """Print the figures; return 1 where one goes beyond its limit."""
    modules = read_modules(ROOT)
    measured = figures(modules)
    for figure in measured:
        print(figure)
        if not figure.holds:
            print(*(f"          {offender}" for offender in figure.offenders), sep="\n")
    print(f"{len(modules)} modules, {sum(module.code_lines for module in modules):,} code lines")
    return int(not all(figure.holds for figure in measured))


if __name__ == "__main__":
    sys.exit(main())
