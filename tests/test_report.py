"""`annotate report` and `explain` on tables made here: what the page says, what it must not do, and bad input."""

import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from outputs.report import Plot, Report, ReportError, Section, Table, Text, audio_address, number_text, write_report
from outputs.report_correlations import FEATURES, rating_of
from outputs.table import Column, write_table

EVIL = "<script>alert(1)</script>.mp3"
EMOTIONS = ("joyful_activation", "tension", "sadness")
FILM = ("happy", "sad")
IDENTITY = [
    Column(name, "string", name, None, None, None, "scan")
    for name in ("track", "track_key", "corpus", "group", "artist", "album", "title")
] + [
    Column("track_id", "int64", "id", None, None, None, "scan"),
    Column("duration_s", "float", "length", "s", 0, None, "decode"),
    *(
        Column(name, "string", name, None, None, None, "decode")
        for name in ("audio_sha256", "status", "error", "warning", "in_training")
    ),
]
COLUMNS = [
    *IDENTITY,
    *(Column(f"rated_{name}", "float", name, "share", 0, 1, "ratings") for name in EMOTIONS),
    Column("rated_n", "int", "listeners", "listeners", 1, 40, "ratings"),
    *(Column(f"midlevel_{name}", "float", name, "rating", 1, 10, "midlevel") for name in FEATURES),
    *(Column(f"salient_{name}", "float", name, "probability", 0, 1, "midlevel") for name in FEATURES),
    *(Column(f"gems_{name}", "float", name, "share of listeners", 0, 1, "probe") for name in EMOTIONS),
    *(Column(f"joint_{name}", "float", name, "rating", 1, 10, "joint") for name in FEATURES),
    *(Column(f"film_{name}", "float", name, "rating", 1, 9, "joint") for name in FILM),
    Column("midi_n_notes", "int", "notes", None, 0, None, "notes"),
    Column("midi_tempo_bpm", "float", "tempo", "BPM", 40, 220, "notes"),
]


SMALL = [column for column in COLUMNS if column.family in ("scan", "decode", "ratings") or column.name == "midlevel_minorness"]


def small(rows: list[dict]) -> list[dict]:
    """The same rows with one annotated column: reports that are not about the figures are made of few."""
    names = {column.name for column in SMALL}
    return [{name: value for name, value in row.items() if name in names} for row in rows]


def make_rows(n: int = 48) -> list[dict]:
    """Tracks of four genres and two tracks an artist; minorness goes with sadness, the film map is a sum of features."""
    rng = np.random.default_rng(11)
    rows = []
    weights = film_weights()
    for k in range(n):
        features = {name: float(rng.uniform(2, 9)) for name in FEATURES}
        salient = {name: float(rng.uniform(0, 1)) for name in FEATURES}
        sadness = float(np.clip(features["minorness"] / 12 + rng.normal(0, 0.08), 0, 1))
        joint = np.array([features[name] for name in FEATURES])
        rows.append(
            {
                "track": f"{('classical', 'electronic', 'pop', 'rock')[k % 4]}/{k}.mp3",
                "track_key": str(k),
                "track_id": k,
                "corpus": "emotify",
                "group": ("classical", "electronic", "pop", "rock")[k % 4],
                "artist": f"artist {k // 2}",
                "duration_s": 30.0 + k % 5,
                "audio_sha256": f"digest {k}",
                "status": "ok",
                "in_training": "probe" if k < 10 else "",
                "rated_joyful_activation": float(rng.uniform(0, 1)),
                "rated_tension": float(rng.uniform(0, 1)),
                "rated_sadness": sadness,
                "rated_n": 20 + k % 7,
                "midi_n_notes": 100 + k,
                "midi_tempo_bpm": 90.0 + k,
            }
            | {f"midlevel_{name}": value for name, value in features.items()}
            | {f"salient_{name}": value for name, value in salient.items()}
            | {f"joint_{name}": value for name, value in features.items()}
            | {f"gems_{name}": float(rng.uniform(0, 1)) for name in EMOTIONS}
            | {f"film_{name}": float(joint @ weights[i] + 1.5) for i, name in enumerate(FILM)}
        )
    return rows


def film_weights() -> np.ndarray:
    return np.array([[0.5, -0.25, 0, 0, -0.125, 0.25, -0.5], [0, -0.5, 0, 0, 0.25, 0, 0.75]])


def provenance() -> dict:
    return {
        "tool": "annotate 0",
        "time_utc": "2026-01-02T03:04:05+00:00",
        "bundle": {"name": "made up", "version": "1", "digest": "ab" * 32},
        "families": ["midlevel", "probe", "joint", "notes"],
        "explanation": {
            "probe": {
                "inputs": [f"salient_{name}" for name in FEATURES],
                "outputs": [f"gems_{name}" for name in EMOTIONS],
                "scale": "log-odds",
                "weights": np.linspace(-1, 1, 21).reshape(3, 7).tolist(),
                "bias": [0.1, 0.2, 0.3],
            },
            "joint": {
                "inputs": [f"joint_{name}" for name in FEATURES],
                "outputs": [f"film_{name}" for name in FILM],
                "scale": "rating",
                "weights": film_weights().tolist(),
                "bias": [1.5, 1.5],
            },
        },
    }


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table with an evil name, a failed track, a duplicate and a warning."""
    rows = make_rows()
    rows[1] |= {"track": EVIL, "warning": "a <b>bold</b> warning"}
    rows[5] |= {"audio_sha256": "digest 4"}
    rows.append(
        {
            "track": "rock/broken & <i>.mp3",
            "track_key": "99",
            "corpus": "emotify",
            "status": "failed",
            "error": "not <audio> at all",
        }
    )
    path = tmp_path_factory.mktemp("report") / "t.parquet"
    write_table(rows, COLUMNS, provenance(), path)
    return path


@pytest.fixture(scope="session")
def ratings_csv(tmp_path_factory):
    """Single raters of the table's ids, long form, and ids that the table does not hold."""
    rng = np.random.default_rng(3)
    rows = [
        {"track_key": str(k), "Sadness": float(rng.integers(0, 2)), "calm": float(rng.normal(5, 2))}
        for k in range(2, 60)
        for _ in range(8)
    ]
    path = tmp_path_factory.mktemp("ratings") / "mine.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def made(table, tmp_path_factory):
    """The report on the table with its own ratings, with players for the files that are there."""
    from click.testing import CliRunner

    from annotate.cli import main

    root = tmp_path_factory.mktemp("audio & more")
    for name in pd.read_parquet(table)["track"].iloc[1:]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"audio")
    out = root.parent / "made"
    result = CliRunner().invoke(main, ["report", str(table), "--out", str(out), "--audio", str(root)])
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture(scope="session")
def page(made):
    return (made[0] / "index.html").read_text(encoding="utf-8")


def details(made) -> dict:
    return json.loads((made[0] / "report.json").read_text())


def test_names_from_the_table_are_only_text(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.mp3" in page
    assert "<b>bold" not in page
    assert "not &lt;audio&gt; at all" in page
    assert page.count("<script>") == 1


def test_the_page_needs_nothing_beside_it(page):
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert all(address.startswith(("#", "data:", "../")) for address in addresses)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_ids_of_the_page_are_there_once_and_references_lead_to_one(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(ids)


def test_every_table_and_figure_lies_beside_the_page(made, page):
    out, _ = made
    content = details(made)
    for name, records in content["tables"].items():
        read = pd.read_csv(out / "tables" / f"{name}.csv")
        assert len(read) == len(records)
    for name in content["figures"]:
        drawn = ET.parse(out / "figures" / f"{name}.svg").getroot()
        assert [text for text in drawn.iter("{http://www.w3.org/2000/svg}text")], name
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"figures/{name}.svg" in page
    assert "correlations_midlevel" in content["figures"]


def test_correlations_are_of_the_table(made, table):
    frame = pd.read_parquet(table).query("status == 'ok'")
    rows = {(row["column"], row["rating"]): row for row in details(made)["tables"]["correlations_midlevel"]}
    assert len(rows) == 21
    row = rows["midlevel_minorness", "rated_sadness"]
    assert row["pearson"] == pytest.approx(frame["midlevel_minorness"].corr(frame["rated_sadness"]), abs=1e-6)
    assert row["pearson_q"] < 0.001
    assert (row["n"], row["family_size"], row["genres"]) == (48, 21, 4)
    assert details(made)["ratings"][0]["families_of_tests"]["midlevel"] == 21


def test_training_tracks_without_the_bundle_are_left_out_and_counted(made, page):
    rows = {row["block"]: row for row in details(made)["tables"]["training"]}
    assert rows["gems"] == {"block": "gems", "as_annotated": 38, "out_of_fold": 0, "left_out": 10}
    assert rows["midlevel"]["left_out"] == 0
    assert any("left out" in message and "gems 10" in message for message in details(made)["messages"])
    assert details(made)["tables"]["correlations_gems"][0]["n"] == 38
    assert "gems 10" in page


def test_corpus_pages_name_failures_duplicates_and_warnings(made):
    tables = details(made)["tables"]
    assert tables["failed"] == [{"track": "rock/broken & <i>.mp3", "reason": "not <audio> at all"}]
    assert {row["track"] for row in tables["duplicates"]} == {"classical/4.mp3", "electronic/5.mp3"}
    assert tables["warnings"][0]["warning"] == "a <b>bold</b> warning"


def test_formulas_are_the_weights(page):
    assert '<th scope="row">happy</th><td>= 0.50 melodiousness − 0.50 minorness − 0.25 articulation' in page
    assert "+ 1.50</td>" in page


def test_players_are_there_for_files_that_are(made, page):
    assert page.count("<audio ") == len(details(made)["tables"]["hardest"]) == 20
    address = re.search(r'<audio [^>]*src="([^"]+)"', page)[1]
    assert (made[0] / unquote(address)).is_file()
    assert any("1 of 49 audio files are not under" in message for message in details(made)["messages"])


def test_without_audio_no_player(tmp_path, in_process):
    write_table(small(make_rows(12)), SMALL, provenance(), tmp_path / "t.parquet")
    assert in_process("report", tmp_path / "t.parquet", "--out", tmp_path / "r").exit_code == 0
    assert "<audio" not in (tmp_path / "r" / "index.html").read_text()
    assert "media-src 'none'" in html.unescape((tmp_path / "r" / "index.html").read_text())


def test_ratings_of_a_file_are_means_over_raters(ratings_csv, tmp_path, in_process):
    table = tmp_path / "t.parquet"
    write_table(small(make_rows()), SMALL, provenance(), table)
    result = in_process("report", table, "--ratings", ratings_csv, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "r" / "report.json").read_text())
    assert any(message.startswith("12 of 58 rated ids of mine.csv are not in the table") for message in content["messages"])
    rated = pd.read_csv(ratings_csv).groupby("track_key")["calm"].mean()
    frame = pd.read_parquet(table).query("status == 'ok'").set_index("track_id")
    expected = frame["midlevel_minorness"].corr(rated)
    rows = {(row["column"], row["rating"]): row for row in content["tables"]["correlations_midlevel"]}
    assert rows["midlevel_minorness", "rated_calm"]["pearson"] == pytest.approx(expected, abs=1e-5)
    assert any(row["rating"] == "rated_calm" for row in content["tables"]["ceilings"])


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"status": "failed", "error": "silent"}, 0, "all 12 tracks failed"),
        ({"rated_tension": 0.5, "rated_sadness": 0.5, "rated_joyful_activation": 0.5}, 0, "ratings with one value only"),
    ],
)
def test_a_report_is_made_of_what_there_is(change, status, says, tmp_path, in_process):
    write_table([row | change for row in small(make_rows(12))], SMALL, provenance(), tmp_path / "t.parquet")
    result = in_process("report", tmp_path / "t.parquet", "--out", tmp_path / "r")
    assert result.exit_code == status
    assert says in result.stderr
    assert says in (tmp_path / "r" / "index.html").read_text()


def test_fewer_than_ten_tracks_make_the_corpus_pages(tmp_path, in_process):
    write_table(small(make_rows(6)), SMALL, provenance(), tmp_path / "t.parquet")
    result = in_process("report", tmp_path / "t.parquet", "--out", tmp_path / "r")
    assert result.exit_code == 0
    assert "no correlations: 6 annotated tracks have a rating, 10 are needed" in result.stderr
    assert 'id="tracks"' in (tmp_path / "r" / "index.html").read_text()


def test_columns_that_are_missing_are_named(tmp_path, in_process):
    columns = [column for column in COLUMNS if column.name not in ("status", "in_training")]
    rows = [{name: value for name, value in row.items() if name not in ("status", "in_training")} for row in make_rows(3)]
    write_table(rows, columns, provenance(), tmp_path / "t.parquet")
    result = in_process("report", tmp_path / "t.parquet", "--out", tmp_path / "r")
    assert (result.exit_code, "lacks status, in_training" in result.stderr) == (1, True)
    assert not (tmp_path / "r").exists()


def test_a_newer_table_is_refused(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr("outputs.table.SCHEMA_VERSION", 7)
    write_table(make_rows(3), COLUMNS, provenance(), tmp_path / "t.parquet")
    monkeypatch.undo()
    result = in_process("report", tmp_path / "t.parquet", "--out", tmp_path / "r")
    assert (result.exit_code, "schema version 7 is newer" in result.stderr) == (1, True)


def test_ratings_that_share_no_id_are_refused_with_examples(table, tmp_path, in_process):
    (tmp_path / "r.csv").write_text("track_key,happy\nzz1,3\nzz2,4\n")
    result = in_process("report", table, "--ratings", tmp_path / "r.csv", "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "no id in common" in result.stderr
    assert "zz1" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [("a,b\n1,2\n", "no column of ids"), ("track_key,b\n1,x\n", "no column of numbers"), ("", "not a readable CSV file")],
)
def test_ratings_that_are_none_are_refused(text, says, table, tmp_path, in_process):
    (tmp_path / "r.csv").write_text(text)
    result = in_process("report", table, "--ratings", tmp_path / "r.csv", "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert says in result.stderr
    assert result.stderr.startswith("annotate: ")


@pytest.mark.parametrize("option", [("--ratings", "nowhere.csv"), ("--audio", "nowhere")])
def test_what_does_not_exist_is_a_usage_error(option, table, tmp_path, in_process):
    result = in_process("report", table, *option, "--out", tmp_path / "r")
    assert (result.exit_code, "nowhere" in result.stderr) == (2, True)


def test_what_is_no_table_is_refused(tmp_path, in_process):
    (tmp_path / "t.parquet").write_text("no table")
    assert in_process("report", tmp_path / "t.parquet", "--out", tmp_path / "r").exit_code == 1
    assert in_process("report", tmp_path / "none.parquet", "--out", tmp_path / "r").exit_code == 2


def test_contributions_of_joint_add_up_to_the_prediction(table, in_process):
    result = in_process("explain", table, "rock/3", "--emotion", "happy", "--json")
    found = json.loads(result.stdout)
    (one,) = found["explanations"]
    frame = pd.read_parquet(table).query("status == 'ok'")
    row = frame.set_index("track").loc["rock/3.mp3"]
    assert found["track"] == "rock/3.mp3"
    assert one["value"] == pytest.approx(float(row["film_happy"]), abs=1e-5)
    assert one["at_mean"] + sum(part["contribution"] for part in one["contributions"]) == pytest.approx(one["value"], abs=1e-4)
    largest = one["contributions"][0]
    name = largest["feature"]
    weight = film_weights()[0][FEATURES.index(name.removeprefix("joint_"))]
    assert largest["contribution"] == pytest.approx(weight * (row[name] - frame[name].mean()), abs=1e-4)
    assert abs(one["residual"]) < 1e-4


def test_explain_prints_a_line_a_feature(table, in_process):
    result = in_process("explain", table, "3", "--emotion", "gems_tension")
    assert result.exit_code == 0
    assert result.stdout.startswith("rock/3.mp3")
    assert "log-odds" in result.stdout
    assert sum(name in result.stdout for name in FEATURES) == 7


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing like it",), "no track 'nothing like it'"),
        (("3", "--emotion", "joy"), "no emotion 'joy'; choose from happy, joyful_activation, sad"),
        (("99",), "rock/broken & <i>.mp3 failed: not <audio> at all"),
    ],
)
def test_explain_says_what_it_cannot(arguments, says, table, in_process):
    result = in_process("explain", table, *arguments)
    assert result.exit_code == 1
    assert says in result.stderr


def test_an_address_is_relative_and_percent_encoded(tmp_path):
    path = tmp_path / "a #1" / "50% <x>?.mp3"
    assert audio_address(path, tmp_path / "out") == "../a%20%231/50%25%20%3Cx%3E%3F.mp3"


def test_numbers_for_people():
    numbers = (3.0, -0.12345, 0.00012, float("nan"), float("-inf"))
    assert [number_text(x) for x in numbers] == ["3", "−0.123", "1.2e−04", "", "−∞"]


def test_ratings_that_columns_predict():
    assert rating_of("best_gems_joyful_activation") == "rated_joyful_activation"
    assert rating_of("va_valence_mean") == "rated_valence"
    assert rating_of("va_valence_std") == "rated_valence_std"
    assert rating_of("midlevel_dissonance_sd") is None


def test_two_parts_of_one_name_are_refused(tmp_path):
    part = Table("a", "A", pd.DataFrame({"x": [1]}))
    report = Report("t", "k", "s", "tool", "now", "", {}, (), (Section("s", "S", (part, Text("x"), part)),))
    with pytest.raises(ReportError, match="named a"):
        write_report(report, tmp_path)
    assert not any(isinstance(part, Plot) for part in report.sections[0].parts)


def test_templates_are_package_data():
    from importlib import resources

    files = resources.files("outputs") / "templates"
    assert {"report.html", "report.css", "report.js"} <= {Path(str(entry)).name for entry in files.iterdir()}
