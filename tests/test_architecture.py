"""Import directions, lint, types, what modules import, and calls that no module may make."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.folders import PACKAGES, ROOT, SLOW

BIN = Path(sys.executable).parent


def run(
    command: list[str], stdin: str | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=280, check=check
    )


@pytest.mark.parametrize(
    "command", ["lint-imports", "ruff check .", "ruff format --check .", "mypy"]
)
def test_format_lint_types_and_import_contracts_hold(command: str) -> None:
    program, *words = command.split()
    done = run([str(BIN / program), *words])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imported_without_wordmask_before_its_name_is_an_error(package: str) -> None:
    check = [str(BIN / "ruff"), "check", "--stdin-filename", "tests/example.py", "-"]
    for line in (f"from {package} import anything", f"import {package}.anything"):
        found = run(check, stdin=line).stdout
        assert f"`{package}` is banned: import wordmask.{package}" in found


def test_commits_are_checked_by_the_programs_that_make_installs() -> None:
    name = ".pre-commit-config.yaml"
    done = run([str(BIN / "pre-commit"), "validate-config", name])
    assert done.returncode == 0, done.stdout
    (repository,) = yaml.safe_load((ROOT / name).read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")
        assert (BIN / Path(program).name).exists()


def test_slow_tests_are_named_by_folders_and_modules_that_exist() -> None:
    assert [name for name in SLOW if not (ROOT / name).exists()] == []


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    tracked = run(["git", "ls-files"], check=True).stdout.splitlines()
    no_text = (".safetensors", ".png", ".npz", "LICENSE")
    text_files = [ROOT / name for name in tracked if not name.endswith(no_text)]
    pattern = re.compile(r"/(?:root|home)/\w|/work" + "/main")
    found = [path for path in text_files if path.is_file() and pattern.search(path.read_text())]
    assert found == []


def test_importing_a_module_sets_up_no_logging() -> None:
    """Flows are left out: they import Prefect, which sets up its own."""
    modules = [
        "wordmask." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in ("tasks", "model", "schemas")
        for path in (ROOT / name).rglob("*.py")
    ]
    modules = [module.removesuffix(".__init__") for module in modules]
    code = f"""
import importlib, logging
for module in {modules!r}:
    importlib.import_module(module)
print(logging.root.handlers)
"""
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_init_files_of_the_four_packages_are_empty() -> None:
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
                " wordmask.tasks.output.verify, wordmask.tasks.review.sheet"
            ),
            ("torch", "prefect", "distributed"),
        ),
        ("wordmask.flows.segment", ("transformers",)),
        ("wordmask.flows.cli.app", ("torch", "numpy", "pyarrow", "fsspec", "prefect")),
        ("wordmask.flows.cli.app, wordmask.flows.schedule", ("torch", "distributed")),
    ],
)
def test_modules_that_run_no_model_import_none(modules: str, absent: tuple[str, ...]) -> None:
    """PyTorch and transformers take ten seconds to import.

    Commands that read an output, and a run's own process, do without them.
    """
    code = f"import sys, {modules}\nprint([name for name in {absent!r} if name in sys.modules])"
    assert run([sys.executable, "-c", code], check=True).stdout.strip() == "[]"


PICKLES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
NEVER_CALLED = ("read_pickle", "register_extension_type", "ExtensionType", "UnknownExtensionType")


def calls_that_run_data(source: str) -> list[str]:
    """Return the calls of a module that would run code out of the data that it reads.

    These are pickles, extension types of Arrow, and code of model repositories.
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


def test_no_module_runs_code_out_of_the_data_that_it_reads() -> None:
    """Weights are read as tensors alone, and tables and checkpoints of strangers as data."""
    read = {
        str(path.relative_to(ROOT)): path.read_text()
        for name in (*PACKAGES, "deploy")
        for path in (ROOT / name).rglob("*.py")
    }
    assert {
        name: found for name, source in read.items() if (found := calls_that_run_data(source))
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
def test_calls_that_would_run_code_are_found(source: str) -> None:
    assert calls_that_run_data(source)
    assert not calls_that_run_data(
        "torch.load(path, weights_only=True)\nnp.load(f)\nmodel.eval()\nfrom pickle import"
        " UnpicklingError"
    )
