"""docs/evaluation.md and README's table of scores: they follow from the built-in bundle, and fail here where they do not."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from models import bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def evaluation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_evaluation", ROOT / "benchmarks" / "evaluation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def held() -> bundle.Bundle:
    return bundle.load("default")


@pytest.fixture
def trials() -> dict[str, Any]:
    from test_card import TRIALS

    return copy.deepcopy(TRIALS)


def test_readme_shows_the_scores_of_the_built_in_bundle(evaluation: ModuleType, held: bundle.Bundle) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition(evaluation.BEGIN)[2].partition(evaluation.END)[0]
    for family, entry in held.manifest["families"].items():
        for name, scores in entry.get("scores", {}).items():
            low, high = scores["mean_r_interval"]
            stated = f"| `{family}` | {name} | {scores['tracks']} | {scores['mean_r']:.2f} ({low:.2f} to {high:.2f}) |"
            assert stated in shown, "README's table is out of date: say make evaluation"
    assert evaluation.with_block(readme, evaluation.readme_block(held.manifest)) == readme, "say make evaluation"


def test_the_page_shows_the_targets_as_the_built_in_bundle_meets_them(evaluation: ModuleType, held: bundle.Bundle) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert held.digest[:12] in page, "docs/evaluation.md is of another bundle: say make evaluation"
    tried = json.loads(held.file("trials.json").read_text()) if "trials.json" in held.manifest["files"] else None
    for line in evaluation.targets_table(held.manifest, tried):
        assert line in page.splitlines(), "docs/evaluation.md is out of date: say make evaluation"
    evaluation.read_remarks(evaluation.REMARKS)


def test_a_changed_score_makes_both_out_of_date(evaluation: ModuleType, held: bundle.Bundle) -> None:
    changed = copy.deepcopy(dict(held.manifest))
    next(iter(changed["families"]["joint"]["scores"].values()))["mean_r"] = 0.111
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert evaluation.with_block(readme, evaluation.readme_block(changed)) != readme
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [line for line in evaluation.targets_table(changed, None) if "0.111" in line and line not in page]


def test_a_target_is_reached_from_its_figure_on(evaluation: ModuleType, trials: dict[str, Any]) -> None:
    scores = {"tracks": 50, "mean_r": 0.77, "mean_r_interval": [0.7, 0.8], "mean_r2": 0.5, "r": {"valence": 0.77}, "bias": {}}
    manifest = {"families": {"joint": {"scores": {"film on soundtracks": scores}}}}
    lines = {line.split(" | ")[0].strip("| "): line for line in evaluation.targets_table(manifest, None)}
    assert lines["A2Mid2E-Joint"].endswith("| ≥ 0.77 | 0.770 (0.700 to 0.800, 50 tracks) | reached |")
    assert lines["emotion CNN"].endswith("|  | not measured |")
    scores["mean_r"] = 0.769
    assert any("| 0.769 (0.700 to 0.800, 50 tracks) | not reached |" in line for line in evaluation.targets_table(manifest, None))
    twins, robust = list(evaluation.targets_table(manifest, trials))[-2:]
    assert twins.endswith("| ≥ 0.80 | least: midlevel, mode: 7 of 12 | not reached |")
    assert robust.endswith("| < 0.25 | most: film_happy, mp3: 0.31 | not reached |")
    trials["robustness"]["labels"][0]["mean"] = 0.2
    assert list(evaluation.targets_table(manifest, trials))[-1].endswith("| most: film_happy, mp3: 0.20 | reached |")
    best = {"families": {"best": {"scores": {"best_film on soundtracks": scores | {"mean_r": 0.85}}}}}
    assert any(line.endswith("| reached, the dream too |") for line in evaluation.targets_table(best, None))


def test_remarks_stand_by_their_targets(evaluation: ModuleType, held: bundle.Bundle, tmp_path: Path) -> None:
    path = tmp_path / "remarks.toml"
    path.write_text('[emotion]\ntried = "a, \\n b"\nholds_back = "c"\n')
    text = "\n".join(evaluation.remarks_lines(held.manifest, None, evaluation.read_remarks(path)))
    assert "- Tried: a, b\n- What holds it back: c" in text
    silent = text.partition("without a remark: ")[2]
    assert "twins" in silent
    assert "emotion" not in silent
    path.write_text('[a2e]\ntried = "five epochs"\n')
    page = evaluation.page(held.manifest, held.digest, None, evaluation.read_remarks(path), {}, [])
    assert "**`a2e`** (not shipped)\n\n- Tried: five epochs\n" in page
    path.write_text('[emotions]\ntried = "a"\n')
    with pytest.raises(SystemExit, match=r"\[emotions\] is no target"):
        evaluation.read_remarks(path)
    path.write_text('[emotion]\nwhy = "a"\n')
    with pytest.raises(SystemExit, match="must hold nothing but holds_back, measured, tried"):
        evaluation.read_remarks(path)


def test_an_evaluation_folder_is_shown(evaluation: ModuleType, held: bundle.Bundle, tmp_path: Path) -> None:
    headline = {"r": 0.5123, "r_low": 0.4, "r_high": 0.6, "r2": 0.2, "auroc": 0.71, "f1": None}
    output = {"target": "gems", "columns": [], "corpus": "emotify", "n": 91, "headline": headline}
    output |= {"baseline_r": 0.55, "group_mean_r": 0.27, "shuffled_r": 0.01, "chance_r": 0.12, "ceiling_r": 0.8}
    scores = {
        "schema_version": 1,
        "kind": "evaluation",
        "bundle": {"name": "default", "version": "1.0", "digest": "d"},
        "mode": "unseen",
        "folds": None,
        "seed": 0,
        "time_utc": "2026-01-01T00:00:00+00:00",
        "command_line": "annotate evaluate default corpus",
        "corpora": [{"name": "emotify", "tracks": 91, "groups": 30, "grouped_by": "artist", "messages": []}],
        "families": {"emotion": {"outputs": [output]}, "crnn": {"outputs": [], "genre": {"accuracy": 0.8, "top3": 0.99}}},
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    text = evaluation.page(held.manifest, held.digest, None, {}, {}, [evaluation.taken(tmp_path)])
    assert "bundle default 1.0 on tracks that the bundle was not trained on" in text
    assert (
        "| `emotion` | gems | emotify | 91 | 0.512 (0.400 to 0.600) | 0.55 | 0.270 | 0.01 | 0.12 | 0.80 | 0.20 | 0.71 |  |"
        in text
    )
    assert "Genre (`crnn`): accuracy 0.800, top-3 0.990." in text
    for how, said in (
        ({"folds": 5, "folds_run": 5}, "retrained on 5 grouped folds, seed 0"),
        ({"folds": 5, "folds_run": 2}, "retrained on the first 2 of 5 grouped folds, seed 0"),
        ({"split": "a.txt"}, "on the split a.txt, seed 0"),
    ):
        (tmp_path / "scores.json").write_text(json.dumps(scores | {"mode": "folds"} | how))
        assert said in evaluation.page(held.manifest, held.digest, None, {}, {}, [evaluation.taken(tmp_path)])
    (tmp_path / "scores.json").write_text(json.dumps(scores | {"kind": "x"}))
    with pytest.raises(SystemExit, match="kind 'x'"):
        evaluation.taken(tmp_path)


def test_a_family_that_is_not_shipped_stands_beside_the_others(
    evaluation: ModuleType, held: bundle.Bundle, tmp_path: Path
) -> None:
    figures = {"baseline_r": 0.8, "group_mean_r": None, "shuffled_r": None, "chance_r": 0.1, "ceiling_r": None}
    headline = {"r": 0.7, "r_low": 0.6, "r_high": 0.75, "r2": 0.4, "auroc": None, "f1": None}
    film = {"target": "film", "corpus": "soundtracks", "n": 69, "headline": headline, **figures}
    gems = {"target": "gems", "corpus": "emotify", "n": 309, "headline": headline, **figures, "shuffled_r": -0.02}
    gems |= {"group_mean_r": 0.135, "group_mean_here_r": 0.277}
    scores = {
        "schema_version": 1,
        "kind": "evaluation",
        "bundle": {"name": "default", "version": "2.0", "digest": "d"},
        "mode": "folds",
        "folds": 4,
        "seed": 0,
        "time_utc": "2026-01-01T00:00:00+00:00",
        "command_line": "annotate evaluate default /home/someone/soundtracks --folds 4",
        "corpora": [],
        "families": {"a2e": {"configurations_tried": 2, "outputs": [film]}, "probe": {"outputs": [gems]}},
    }
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    rows = [f"a2e,film,soundtracks,{label},{0.61 + number / 100}" for number, label in enumerate(evaluation.FILM.labels)]
    (tmp_path / "scores" / "agreement.csv").write_text("\n".join(["family,target,corpus,label,pearson", *rows]))
    taken = evaluation.taken(tmp_path)
    assert "/home" not in json.dumps(taken)
    text = evaluation.page(held.manifest, held.digest, None, {}, {}, [taken])
    best = max(mean for name, mean, _ in evaluation.PUBLISHED["film"] if name.endswith("published"))
    row = f"| `a2e` (not shipped) | a2e_film on soundtracks | 69 | 0.700 (0.600 to 0.750) | 0.800 |  |  |  | {best:.3f} | 0.400 |"
    assert row in text
    labels = "| `a2e`: a2e_film on soundtracks | 69 | 0.61 | 0.62 | 0.63 | 0.64 | 0.65 | 0.66 | 0.67 | 0.68 | 0.70 |"
    assert labels in text
    probe = next(line for line in text.splitlines() if line.startswith("| `probe` | gems on emotify | 309 |"))
    assert " | 0.135 (0.277) | -0.020 | 0.811 | " in probe  # the floor of the evaluation, the ceiling of the bundle
    assert "Configurations tried in its working folder: `a2e` 2, `probe` not stated." in text


def test_peak_memory_is_held_to_the_rule(evaluation: ModuleType) -> None:
    memory = {"va": {"peak_gb": 0.8, "own_gb": 0.5, "processes": 5}, "midlevel": {"peak_gb": 3.2, "own_gb": 2.9, "processes": 5}}
    lines = "\n".join(evaluation.memory_lines(memory))
    assert "Most: 3.20 GB (`midlevel`), under the rule of 4 GB." in lines
    assert "| midlevel | 3.20 (2.90) | 5 |" in lines
    memory["va"]["peak_gb"] = 4.1
    assert "Most: 4.10 GB (`va`), over the rule of 4 GB." in "\n".join(evaluation.memory_lines(memory))


def test_the_figure_is_the_same_each_time(evaluation: ModuleType, held: bundle.Bundle, tmp_path: Path) -> None:
    evaluation.draw(held.manifest, tmp_path / "a.svg")
    evaluation.draw(held.manifest, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "joint: film on soundtracks" in text
