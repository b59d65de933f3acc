"""The house: who may import whom, what is imported late, what is nowhere; and a user's files do not shadow ours."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "annotate": {"models", "features", "outputs"},
    "models": {"features"},
    "features": set(),
    "outputs": set(),
}
HEAVY = {"tensorflow", "keras"}
LATE_KERAS = {"annotate/training.py", "annotate/bundling.py", "annotate/pipeline.py"}  # inside functions; and all of models/
AUDIO = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".m4a", ".wma", ".aac", ".mid", ".midi"}
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(path for folder in ("benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py"))
IDS = [path.relative_to(ROOT).as_posix() for path in SOURCES]


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Top-level name of each module that is imported anywhere in a tree; TYPE_CHECKING blocks count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.partition(".")[0], node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module).partition(".")[0], node
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module", "import_module"):
            first = node.args[0]
            assert isinstance(first, ast.Constant), "import of a computed name"
            yield str(first.value).partition(".")[0], ast.Expr(node)


def inside_functions(tree: ast.AST) -> set[ast.AST]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    return {below for function in functions for below in ast.walk(function)}


def test_the_packages_are_here() -> None:
    assert len(SOURCES) > 25
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_arrows_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name for name, _ in imports(ast.parse(path.read_text()))} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package] | {package}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_tensorflow_and_keras_are_imported_late_and_in_few_places(path: Path) -> None:
    tree = ast.parse(path.read_text())
    late = inside_functions(tree)
    found = [node for name, node in imports(tree) if name in HEAVY]
    if found:
        place = path.relative_to(ROOT).as_posix()
        assert place.startswith("models/") or place in LATE_KERAS
    assert all(node in late for node in found)


PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "yaml"}  # they load code
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "joblib.load",
    "joblib.dump", "torch.load", "runpy.run_path", "ctypes.pythonapi",
}  # fmt: skip
EVALUATING = {"read_pickle", "to_pickle", "query"}  # methods of pandas; its eval is forbidden above


def dangers(tree: ast.AST) -> list[str]:
    """What evaluates, unpickles or gives text to a shell in a tree, however it was imported."""
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {name.asname or name.name: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            full |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    found = [f"import {name}" for name, _ in imports(tree) if name in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            name = (full.get(first, first) + dot + rest).removeprefix("builtins.")
            if name in FORBIDDEN or name in ("pandas.eval", "numexpr.evaluate") or name.rpartition(".")[2] in EVALUATING:
                found.append(name)
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            for keyword, harmless in (("shell", "False"), ("allow_pickle", "False"), ("safe_mode", "True")):
                if keywords.get(keyword, harmless) != harmless:
                    found.append(f"{keyword}={keywords[keyword]}")
            function = ast.unparse(node.func)
            if function.endswith(("np.load", "numpy.load")) and (len(node.args) > 2 or None in keywords):
                found.append("np.load with arguments by place")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(text, shell=True)", "subprocess.run(text, shell=flag)", "eval(text)", "exec(text)", "import pickle",
        "from builtins import eval as safe\nsafe(text)", "import builtins\nbuiltins.exec(text)", "import yaml", "run = eval",
        "import joblib as j\nj.load(path)", "from joblib import load\nload(path)", "np.load(path, allow_pickle=True)",
        "np.load(path, None, True)", "import torch\ntorch.load(path)", "pd.read_pickle(path)",
        "from pandas import read_pickle\nread_pickle(path)",
        "from os import system\nsystem(text)", "keras.saving.load_model(path, safe_mode=False)", "frame.query(text)",
        "import pandas as pd\npd.eval(text)", "__import__('pickle')",
    ],
)  # fmt: skip
def test_the_scan_of_sources_finds_what_it_looks_for(source: str) -> None:
    assert dangers(ast.parse(source))


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=[path.relative_to(ROOT).as_posix() for path in (*SOURCES, *SCRIPTS)])
def test_nothing_is_evaluated_unpickled_or_given_to_a_shell(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert dangers(tree) == []


def test_no_audio_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = [name for name in listed.stdout.split("\0") if name]
    assert "pyproject.toml" in tracked
    assert [name for name in tracked if Path(name).suffix.lower() in AUDIO] == []


def test_a_users_own_modules_do_not_shadow_ours(
    in_subprocess: Callable[..., subprocess.CompletedProcess[str]], demo_corpus: Path, tmp_path: Path
) -> None:
    """The console script and its workers, from a folder whose models/, features.py and the like end the process."""
    (tmp_path / "models").mkdir()
    trap = (
        "import os\nopen(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'sprung'), 'w').close()\nraise SystemExit(66)\n"
    )
    for name in ("models/__init__.py", "features.py", "outputs.py", "annotate.py", "numpy.py", "joblib.py", "json.py"):
        (tmp_path / name).write_text(trap)
    done = in_subprocess("run", demo_corpus / "pop", "--out", "t.parquet", "--models", "va,notes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "t.parquet")) == 2
    assert not list(tmp_path.rglob("sprung"))


def test_a_users_own_bundle_folder_is_not_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models import bundle

    for name in ("default", bundle.DEFAULT):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert bundle.find("default") == bundle.BUILT_IN / bundle.DEFAULT
    assert bundle.find("./default").resolve() == tmp_path / "default"
