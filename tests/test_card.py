"""The card of a bundle: what is in the manifest and the trials is in the card, and nothing else is a figure there."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from annotate import card
from models import bundle


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((bundle.find("default") / "bundle.json").read_text())


TRIALS = {
    "twins": {
        "pairs": 12,
        "duration_s": 20.0,
        "cues": {
            "mode": {"low": "major", "high": "minor", "label": "minorness"},
            "articulation": {"low": "legato", "high": "staccato", "label": "articulation"},
        },
        "scores": [
            {"output": "midlevel", "cue": "mode", "ordered": 7, "pairs": 12},
            {"output": "midlevel", "cue": "articulation", "ordered": 11, "pairs": 12},
            {"output": "best_midlevel", "cue": "mode", "ordered": 12, "pairs": 12},
            {"output": "best_midlevel", "cue": "articulation", "ordered": 9, "pairs": 12},
        ],
    },
    "robustness": {
        "music": "emotify",
        "tracks": 50,
        "seconds": 30.0,
        "rule": 0.25,
        "changes": {"mp3": "MP3", "gain": "-12 dB"},
        "labels": [
            {"family": "joint", "column": "film_happy", "change": "mp3", "mean": 0.31},
            {"family": "joint", "column": "film_happy", "change": "gain", "mean": 0.02},
            {"family": "joint", "column": "film_sad", "change": "mp3", "mean": 0.11},
            {"family": "joint", "column": "film_sad", "change": "gain", "mean": 0.04},
        ],
    },
    "failures": {
        "kinds": {"silence": "silence", "noise": "white noise"},
        "clips": [
            {"kind": "silence", "status": "failed", "error": "silent: no sample", "warning": None, "genre": None},
            {"kind": "noise", "status": "ok", "error": None, "warning": "no notes found", "genre": "rock"},
            {"kind": "noise", "status": "ok", "error": None, "warning": "no notes found", "genre": "pop"},
        ],
        "outputs": [
            {"kind": "noise", "column": "film_anger", "mean": 6.5, "position": 3.1},
            {"kind": "noise", "column": "film_happy", "mean": 2.5, "position": -0.4},
        ],
        "short": [{"family": "joint", "seconds": 1.0, "mean": 1.2}, {"family": "joint", "seconds": 1.0, "mean": 0.8}],
    },
}


def test_every_score_of_the_manifest_is_a_row(manifest: dict[str, Any]) -> None:
    rows = card.score_rows(manifest)
    stated = [(family, name) for family, entry in manifest["families"].items() for name in entry.get("scores", {})]
    assert [(row.family, f"{row.output} on {row.corpus}") for row in rows] == stated
    assert len(stated) > 10
    text = card.card(manifest)
    for row in rows:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row.family}` | {row.output} on {row.corpus} |"))
        assert f"{row.mean_r:.3f} ({row.low:.3f} to {row.high:.3f})" in line
        assert f"| {row.tracks} |" in line


def test_the_ceiling_is_the_mean_over_the_labels_that_are_scored(manifest: dict[str, Any]) -> None:
    changed = copy.deepcopy(manifest)
    table = next(iter(changed["families"]["descriptors"]["scores"].values())) | {"r": {"power": 0.5, "sadness": 0.4}}
    changed["ceiling_gems"] = {"power": 0.9, "sadness": 0.7, "tension": 0.1}
    changed["families"] = {"descriptors": {"scores": {"desc_gems on emotify": table, "desc_film on soundtracks": table}}}
    assert [row.ceiling for row in card.score_rows(changed)] == [pytest.approx(0.8), None]
    assert [row.ceiling for row in card.score_rows(changed | {"ceiling_gems": None})] == [None, None]


def test_each_model_has_its_data_terms_and_limits(manifest: dict[str, Any]) -> None:
    models = card.card(manifest).partition("## The models")[2].partition("##")[0]
    for family, entry in manifest["families"].items():
        line = next(line for line in models.splitlines() if line.startswith(f"| `{family}` |"))
        assert card.NOT_FOR[family] in line
        for corpus, ids in entry.get("training", {}).get("ids", {}).items():
            assert f"{len(ids)} {corpus}" in line
            assert "research use" in line


def test_a_card_speaks_of_the_families_that_its_bundle_holds(manifest: dict[str, Any]) -> None:
    changed = copy.deepcopy(manifest)
    changed["families"] = {name: changed["families"][name] for name in ("va", "descriptors")}
    said = card.card(changed).partition("## What to know")[2]
    for other in ("crnn", "probe", "emotion`", "best"):
        assert f"`{other}" not in said
    assert "- `descriptors` is a model (support vectors and ridge)" in said
    for tried, words in ((1, None), (12, "over 12 configurations"), (None, "over some forty configurations")):
        changed["families"]["descriptors"]["training"]["configurations_tried"] = tried
        said = card.card(changed)
        assert ("so the scores are a little high" in said) == (words is not None)
        assert words is None or words in said


def test_trials_are_in_the_card_as_they_were_measured(manifest: dict[str, Any]) -> None:
    text = card.card(manifest, TRIALS)
    assert "| `midlevel` | 7 of 12 | 11 of 12 |" in text
    assert "| `best_midlevel` | 12 of 12 | 9 of 12 |" in text
    assert "| `joint` | 0.21 (film_happy 0.31) | 0.03 (film_sad 0.04) | 1 of 2 |" in text
    assert "Over the rule, at their worst change: film_happy 0.31 (mp3)." in text
    assert "| silence | 1, 1 failed | silent: no sample |  |  |  |" in text
    assert (
        "| white noise | 2 | no notes found | pop 1, rock 1 | 1 of 2 | film_anger 6.50 (+3.1), film_happy 2.50 (-0.4) |" in text
    )
    assert "| `joint` | 1.00 |" in text
    assert "not evaluated" not in text


def test_a_command_line_tells_no_places_of_a_machine() -> None:
    said = card.portable("annotate bundle trials default '/home/me/Music Data' --out t.json")
    assert said == 'annotate bundle trials default "…/Music Data" --out t.json'


def test_every_family_has_something_that_it_is_not_for() -> None:
    assert set(card.NOT_FOR) == set(bundle.FAMILIES)


def test_a_card_without_trials_says_so(manifest: dict[str, Any]) -> None:
    text = card.card(manifest)
    assert "Not measured for this bundle" in text
    assert "very short clips were not evaluated" in text
