"""The house is in order: import directions, lint, types, nothing of one machine in the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

BIN = Path(sys.executable).parent
PACKAGES = ("schemas", "model", "tasks", "flows")


@pytest.mark.parametrize(
    "command", ["lint-imports", "ruff check .", "ruff format --check .", "mypy"]
)
def test_checks_are_clean(command: str) -> None:
    program, *words = command.split()
    done = subprocess.run(
        [str(BIN / program), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_path_of_a_machine_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    text_files = [
        ROOT / name
        for name in tracked
        if not name.endswith((".safetensors", ".png", ".npz", "LICENSE"))
    ]
    pattern = re.compile(r"/(?:root|home)/\w|/work" + "/main")
    assert [
        str(path) for path in text_files if path.is_file() and pattern.search(path.read_text())
    ] == []


def test_importing_does_nothing() -> None:
    """No client, no logging set-up: importing leaves the root logger untouched. (flows import
    Prefect, which does as it likes.)
    """
    modules = [
        "wordmask." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in PACKAGES[:3]
        for path in (ROOT / name).rglob("*.py")
    ]
    modules = [module.removesuffix(".__init__") for module in modules]
    code = (
        f"import importlib, logging, threading\nfor m in {modules!r}:"
        " importlib.import_module(m)\nprint(logging.root.handlers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_packages_are_flat_of_side_effects() -> None:
    for name in PACKAGES:
        for path in (ROOT / name).rglob("__init__.py"):
            assert path.read_text() == ""


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            (
                "wordmask.tasks.table.footers, wordmask.tasks.plan, wordmask.tasks.review.estimate,"
                " wordmask.tasks.output.catalog, wordmask.tasks.output.results,"
                " wordmask.tasks.output.verify, wordmask.tasks.review.overlay"
            ),
            ("torch", "prefect", "distributed"),
        ),
        ("wordmask.flows.segment", ("transformers",)),
        ("wordmask.flows.cli.app, wordmask.flows.schedule", ("torch", "distributed")),
    ],
)
def test_who_only_reads_or_sends_loads_no_model(modules: str, absent: tuple[str, ...]) -> None:
    """PyTorch and transformers take ten seconds to import: commands that read an output, and a
    run's own process, go without.
    """
    code = f"import sys, {modules}\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert done.stdout.strip() == "[]"


PICKLES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
NEVER_CALLED = ("read_pickle", "register_extension_type", "ExtensionType", "UnknownExtensionType")


def runs_what_it_reads(source: str) -> list[str]:
    """What in a module makes of data that it reads more than data: pickles, extension types of
    Arrow, code of model repositories.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in PICKLES:
            found += [alias.name for alias in node.names if not alias.name.endswith("Error")]
        elif isinstance(node, ast.Call):
            options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            called = ast.unparse(node.func)
            found += [
                name
                for name in ("allow_pickle", "trust_remote_code")
                if options.get(name, False) is not False
            ]
            if (
                called in ("eval", "exec")
                or called.split(".")[0] in PICKLES
                or called.rsplit(".", 1)[-1] in NEVER_CALLED
            ):
                found.append(called)
            if called == "torch.load" and options.get("weights_only") is not True:
                found.append("torch.load without weights_only=True")
    return found


def test_nothing_that_is_read_is_run() -> None:
    """Weights are safetensors or weights alone; tables of strangers and checkpoints hold no code
    that would run.
    """
    read = {
        str(path.relative_to(ROOT)): path.read_text()
        for name in (*PACKAGES, "deploy")
        for path in (ROOT / name).rglob("*.py")
    }
    assert {
        name: found for name, source in read.items() if (found := runs_what_it_reads(source))
    } == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(data)",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(m, trust_remote_code=True)",
        "pa.register_extension_type(Mine())",
        "exec(text)",
    ],
)
def test_what_runs_code_would_be_found(source: str) -> None:
    assert runs_what_it_reads(source)
    assert not runs_what_it_reads(
        "torch.load(path, weights_only=True)\nnp.load(f)\nmodel.eval()\nfrom pickle import"
        " UnpicklingError"
    )
