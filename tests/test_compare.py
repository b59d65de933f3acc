"""Two tables of one corpus: what moved is measured, named, and told from what did not."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from outputs.compare import CompareError, changed_labels, compare_columns, join, movers, provenance_differences
from outputs.table import Column, write_table

TEXTS = ("track", "track_key", "corpus", "group", "artist", "album", "audio_sha256", "status", "error", "warning", "in_training")
COLUMNS = [
    *(Column(name, "string", name, None, None, None, "scan") for name in TEXTS),
    Column("duration_s", "float", "length", "s", 0, None, "decode"),
    Column("film_happy", "float", "happy", "rating", 1, 9, "joint"),
    Column("film_sad", "float", "sad", "rating", 1, 9, "joint"),
    Column("emotion_power_label", "bool", "power", None, None, None, "emotion"),
    Column("genre", "string", "genre", None, None, None, "crnn"),
]


def make_rows(shift=0.0, n=30):
    rng = np.random.default_rng(1)
    wobble = np.random.default_rng(2)
    return [
        {
            "track": f"pop/{k}.mp3",
            "track_key": str(k),
            "corpus": "folder",
            "status": "ok",
            "audio_sha256": str(k),
            "duration_s": 30.0,
            "film_happy": float(rng.uniform(2, 7)) + (shift + float(wobble.normal(0, 0.2)) if shift else 0.0),
            "film_sad": 1.0 + k / 10,
            "emotion_power_label": k % 2 == 0,
            "genre": "pop",
        }
        for k in range(n)
    ]


@pytest.fixture
def pair(tmp_path):
    a, b = make_rows(), make_rows(shift=0.5)
    b[4]["emotion_power_label"] = False
    b[5] |= {"genre": "rock", "audio_sha256": "other"}
    b.append(make_rows(n=31)[-1])
    write_table(
        a, COLUMNS, {"tool": "annotate 0", "bundle": {"name": "one", "version": "1"}, "run_id": "x"}, tmp_path / "a.parquet"
    )
    write_table(
        b, COLUMNS, {"tool": "annotate 0", "bundle": {"name": "one", "version": "2"}, "run_id": "y"}, tmp_path / "b.parquet"
    )
    return tmp_path / "a.parquet", tmp_path / "b.parquet"


def test_a_shift_has_scipys_paired_interval(pair):
    a, b = (pd.read_parquet(path) for path in pair)
    left, right, how = join(a, b)
    found = compare_columns(left, right, [COLUMNS[-4], COLUMNS[-3]])
    row = found.loc["film_happy"]
    reference = stats.ttest_rel(b["film_happy"][:30].astype(float), a["film_happy"].astype(float)).confidence_interval(0.95)
    assert (how, row["n"], row["changed"]) == ("path", 30, 30)
    assert (row["shift_low"], row["shift_high"]) == pytest.approx((reference.low, reference.high), rel=1e-4)
    assert row["r"] == pytest.approx(np.corrcoef(a["film_happy"], b["film_happy"][:30])[0, 1], abs=1e-6)
    assert found.loc["film_sad", ["shift", "changed"]].tolist() == [0, 0]


def test_the_largest_mover_comes_first():
    a = pd.DataFrame({"track": list("abcd"), "film_happy": [1.0, 2.0, 3.0, 4.0]})
    b = a.assign(film_happy=[1.1, 2.0, 1.0, np.nan])
    found = movers(a, b, [COLUMNS[-4]])
    assert found["track"].tolist() == ["c", "a"]
    assert found["shift_in_sd"].tolist() == pytest.approx([-2.0, 0.1])  # the SD of 1, 2, 3 is 1


def test_labels_that_differ_are_listed():
    a = pd.DataFrame({"track": ["x", "y", "z"], "genre": ["pop", None, None]})
    b = a.assign(genre=["pop", "rock", None])
    assert changed_labels(a, b, ["genre"]).to_dict("records") == [{"track": "y", "column": "genre", "a": "none", "b": "rock"}]


def test_provenance_differs_where_it_counts():
    a = {"run_id": "1", "bundle": {"digest": "aa", "name": "n"}, "families": ["va"], "explanation": {"probe": 1}}
    b = {"run_id": "2", "bundle": {"digest": "bb", "name": "n"}, "families": ["va", "notes"], "explanation": {"probe": 2}}
    found = provenance_differences(a, b).set_index("name")
    assert found.index.tolist() == ["bundle.digest", "families", "explanation"]
    assert found.loc["families", "b"] == "va, notes"


def test_tables_are_joined_by_id_where_paths_differ():
    a = pd.DataFrame({"track": ["in/1.mp3", "in/2.mp3"], "corpus": "emotify", "track_key": ["1", "2"]})
    b = pd.DataFrame({"track": ["2.opus", "3.opus"], "corpus": "emotify", "track_key": ["2", "3"]})
    left, right, how = join(a, b)
    assert (how, left["track"].tolist(), right["track"].tolist()) == ("corpus and id", ["in/2.mp3"], ["2.opus"])
    with pytest.raises(CompareError, match="no track is in both tables"):
        join(a[:1], b)
    with pytest.raises(CompareError, match="more than once"):
        join(pd.concat([a, a]), b)


def test_the_command_writes_a_page_and_says_what_is_apart(pair, tmp_path, in_process):
    result = in_process("compare", *pair, "--out", tmp_path / "diff")
    assert result.exit_code == 0, result.output
    assert "1 of 31 tracks are in B only" in result.stderr
    assert "1 audio files differ" in result.stderr
    content = json.loads((tmp_path / "diff" / "report.json").read_text())
    assert [(row["column"], row["a"], row["b"]) for row in content["tables"]["changed_labels"]] == [
        ("emotion_power_label", "yes", "no"),
        ("genre", "pop", "rock"),
    ]
    assert content["tables"]["provenance"] == [{"name": "bundle.version", "a": "1", "b": "2"}]
    assert any("version: 2" in row["line"] for row in content["tables"]["info_b"])
    assert (tmp_path / "diff" / "figures" / "shift_film.svg").is_file()


def test_the_same_table_twice_has_not_moved(pair, tmp_path, in_process):
    assert in_process("compare", pair[0], pair[0], "--out", tmp_path / "diff").exit_code == 0
    page = (tmp_path / "diff" / "index.html").read_text()
    assert "2 of 2 columns are the same for every track" in page
    assert "No number moved." in page
    assert "Nothing differs but run id and time." in page


def test_what_is_no_table_is_refused(pair, tmp_path, in_process):
    (tmp_path / "x.parquet").write_text("x")
    assert in_process("compare", pair[0], tmp_path / "x.parquet", "--out", tmp_path / "d").exit_code == 1
    assert in_process("compare", pair[0], tmp_path / "none.parquet", "--out", tmp_path / "d").exit_code == 2
