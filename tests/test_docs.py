"""The documents: what is generated follows from the code, every example in a command's help runs, the notebook runs."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pandas as pd
import pytest
from click.testing import Result

import annotate
from annotate.cli import main
from outputs.table import read_columns

Invoke = Callable[..., Result]

ROOT = Path(__file__).resolve().parents[1]
RUN = ("run", "info", "corpus", "demo", "bundle list", "bundle show", "completion", "export")  # later ones need earlier ones


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = generator()
COMMANDS = {" ".join(path[1:]): command for path, command in generate.leaves(main, ("annotate",))}


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_pages_are_what_the_code_gives(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generate.PAGES[name](), "say: make docs"


def test_the_data_dictionary_names_every_column_of_a_table(demo_table: Path) -> None:
    page = (ROOT / "docs" / "columns.md").read_text(encoding="utf-8")
    missing = [c.name for c in read_columns(demo_table) if c.family != "ratings" and f"| `{c.name}` |" not in page]
    assert missing == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_an_example_that_click_takes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of those that are too long to run here: command and options exist, values are of the right kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ratings.csv").write_text("")  # click itself looks whether it exists
    found = [
        line for line in generate.examples(COMMANDS[name]) if line.startswith(f"annotate {name} ") or line == f"annotate {name}"
    ]
    assert found, f"the help of annotate {name} holds no example of it"
    for line in generate.examples(COMMANDS[name]):
        parse(line.partition(">")[0].removeprefix('eval "$(').removesuffix(')"'))


def parse(line: str) -> None:
    """Have click take a command line, without running it: command, options and values are checked."""
    words = shlex.split(line, comments=True)[1:]
    group: click.Command = main
    context = click.Context(main, info_name="annotate")
    while isinstance(group, click.Group):
        group = group.commands[words.pop(0)]
    with group.make_context("annotate", words, parent=context):
        pass


DOCUMENTS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in generate.PAGES)


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCUMENTS], ids=lambda path: path.name)
def test_commands_in_the_documents_are_commands(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of a document's code that begins with annotate or make; one in a sentence may lack an option."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    indented = re.findall(r"^ {4}((?:\.venv/bin/)?(?:annotate|make) .*)$", text, re.MULTILINE)
    in_sentences = re.findall(r"`((?:\.venv/bin/)?(?:annotate|make) [^`…]*)`", text.replace("\n", " "))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in indented + in_sentences:
        if line.startswith("make"):
            named = [word for word in shlex.split(line, comments=True)[1:] if "=" not in word]
            assert set(named) <= targets, line
        elif "--help" not in line:
            with contextlib.nullcontext() if line in indented else contextlib.suppress(click.MissingParameter):
                parse(line)
    if path.name == "README.md":
        assert len(indented) >= 20


@pytest.fixture
def workplace(demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with what the examples name: `Music Data/` and `album/`."""
    shutil.copytree(demo_corpus, tmp_path / "Music Data")
    shutil.copytree(demo_corpus / "pop", tmp_path / "album")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_run(workplace: Path, demo_table: Path, in_process: Invoke) -> None:
    """Each as it stands, one after the other; the first, a whole run, once for all tests."""
    shutil.copyfile(demo_table, workplace / "emotify_v1.parquet")
    ran = 0
    for name in RUN:
        for line in generate.examples(COMMANDS[name]):
            command = line.partition(">")[0].strip()
            if command in ('annotate run "Music Data/" --out emotify_v1.parquet', "annotate run demo/ --out demo.parquet"):
                continue  # demo_table is that run
            if command.startswith("eval"):
                continue
            done = in_process(*shlex.split(command)[1:])
            assert done.exit_code == 0, (line, done.output)
            ran += 1
    assert ran >= len(RUN)
    assert (workplace / "album.parquet").exists()
    assert (workplace / "demo" / "data.csv").exists()
    assert len(list((workplace / "jams").rglob("*.jams"))) == 8


def test_every_command_is_run_by_a_test() -> None:
    for name in COMMANDS:
        if name not in RUN:
            words = ", ".join(f'"{word}"' for word in name.split())
            assert any(words in path.read_text() for path in (ROOT / "tests").glob("test_*.py")), f"no test runs annotate {name}"


def test_how_to_pages_are_under_a_page_and_name_what_exists() -> None:
    pages = sorted((ROOT / "docs").glob("add-a-*.md"))
    assert [page.stem for page in pages] == ["add-a-corpus", "add-a-feature", "add-a-model"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60
        for path in re.findall(r"`((?:annotate|features|models|outputs|tests|docs)/[\w./-]+\.(?:py|md))`", text):
            assert (ROOT / path).exists() or "loudness" in path or "NAME" in path, f"{page.name} names {path}"
        sources = "\n".join(path.read_text() for path in ROOT.glob("*/*.py"))
        for name in re.findall(r"`(_?[A-Za-z]+_[A-Za-z_]+)`", text):
            if name.isupper() or name.startswith("_"):
                assert name in sources or "NAME" in name, f"{page.name} names {name}"


def test_the_evaluate_command_says_in_one_line_what_it_lacks(demo_corpus: Path, tmp_path: Path, in_process: Invoke) -> None:
    done = in_process("evaluate", "default", demo_corpus, "--models", "va", "--out", tmp_path / "eval")
    assert done.exit_code == 1
    assert "va cannot be scored: fewer than 10 tracks have its ratings" in done.output


# --- Python ---


def test_read_gives_the_table_with_its_provenance(demo_table: Path) -> None:
    table = annotate.read(demo_table)
    pd.testing.assert_frame_equal(table, pd.read_parquet(demo_table), check_flags=False)
    assert table.attrs["annotate"]["bundle"]["name"]
    assert table.attrs["columns"]["duration_s"]["unit"] == "s"
    with pytest.raises(FileNotFoundError):
        annotate.read("none.parquet")


def test_run_is_the_commands_run(demo_corpus: Path, tmp_path: Path, in_process: Invoke) -> None:
    models = ("va", "notes")
    ours = annotate.run(annotate.RunOptions(audio=(str(demo_corpus / "pop"),), out=tmp_path / "a.parquet", models=models))
    assert in_process("run", demo_corpus / "pop", "--models", "va,notes", "--out", tmp_path / "b.parquet").exit_code == 0
    theirs = annotate.read(tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(ours, theirs, check_flags=False)
    assert ours.attrs["annotate"]["families"] == theirs.attrs["annotate"]["families"]
    with pytest.raises(AttributeError, match="no attribute 'ran'"):
        annotate.ran  # noqa: B018


@pytest.mark.filterwarnings("default")  # of the notebook's machinery, not ours
def test_the_notebook_comes_to_three_findings(demo_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("ANNOTATE_TABLE", str(demo_table))
    notebook = nbformat.read(ROOT / "examples" / "three_findings.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output["text"] for cell in notebook.cells for output in cell.get("outputs", ()) if output["output_type"] == "stream"
    )
    for number in (1, 2, 3):
        assert f"Finding {number}: " in printed
    assert "8 tracks by annotate" in printed
    assert "nan" not in printed
