"""Bundles: what is refused and how it is said, what `verify` finds, and what inference makes of a network's outputs."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from annotate.corpora import scan
from annotate.schema import columns_for, known_tracks, title_key, was_in_training, window_columns_for
from models import inference
from models.bundle import (
    FAMILIES,
    MAX_MANIFEST_BYTES,
    Bundle,
    BundleError,
    Family,
    Output,
    find,
    load,
    run_engine,
    verify,
    write_manifest,
)
from outputs.table import read_columns

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def default() -> Bundle:
    return load("default")


@pytest.fixture(scope="session")
def small(default: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle of the smallest families; not to be changed."""
    folder = tmp_path_factory.mktemp("bundles") / "small"
    folder.mkdir()
    entries = {name: default.manifest["families"][name] for name in ("probe", "va", "notes")}
    reference = {}
    rng = np.random.default_rng(0)
    for name, inputs in (("probe", 7), ("va", 22)):
        for file in (entries[name]["weights"], entries[name]["engine"]):
            shutil.copyfile(default.folder / file, folder / file)
        reference[f"{name}/input"] = rng.random((3, inputs)).astype(np.float32)
        for head, values in run_engine(folder / entries[name]["engine"], reference[f"{name}/input"]).items():
            reference[f"{name}/onnx/{head}"] = reference[f"{name}/keras/{head}"] = values
    np.savez(folder / "reference.npz", **reference)
    (folder / "README.md").write_text("a card")
    write_manifest(folder, {"name": "small", "version": "1", "licence": "none", "families": entries})
    return folder


@pytest.fixture
def bundle(small: Path, tmp_path: Path) -> Path:
    """Copy of the small bundle that a test may break."""
    return Path(shutil.copytree(small, tmp_path / "broken"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and nothing else."""
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


# --- loading ---


def test_a_whole_bundle_is_loaded(bundle: Path) -> None:
    held = load(str(bundle))
    assert (held.name, held.version, tuple(held.families)) == ("small", "1", ("probe", "va", "notes"))
    assert held.digest == load(str(bundle)).digest
    assert held.file("va.onnx") == bundle / "va.onnx"
    with pytest.raises(BundleError, match="not among the bundle's files"):
        held.file("../secret")


def remove(folder: Path) -> None:
    (folder / "va.onnx").unlink()


def alter(folder: Path) -> None:
    content = bytearray((folder / "va.onnx").read_bytes())
    content[100] ^= 1
    (folder / "va.onnx").write_bytes(content)


def lie(folder: Path) -> None:
    edit(folder, lambda m: m["files"].update({"va.onnx": "0" * 64}))


def climb(folder: Path) -> None:
    (folder.parent / "outside").write_text("x")
    edit(folder, lambda m: m["files"].update({"../outside": "0" * 64}))


def absolute(folder: Path) -> None:
    edit(folder, lambda m: m["files"].update({"/etc/hostname": "0" * 64}))


def link(folder: Path) -> None:
    (folder / "va.onnx").rename(folder.parent / "elsewhere")
    (folder / "va.onnx").symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    """A file behind a linked folder, with its true digest."""
    outside = folder.parent / "outside"
    outside.mkdir()
    shutil.copyfile(folder / "va.onnx", outside / "va.onnx")
    (folder / "below").symlink_to(outside, target_is_directory=True)
    edit(folder, lambda m: m["files"].update({"below/va.onnx": m["files"]["va.onnx"]}))


def other_format(folder: Path) -> None:
    edit(folder, lambda m: m.update(format=2))


def a_list(folder: Path) -> None:
    (folder / "bundle.json").write_text("[]")


def no_json(folder: Path) -> None:
    (folder / "bundle.json").write_text('{"format": 1,')


def deep(folder: Path) -> None:
    (folder / "bundle.json").write_text("[" * 100_000)


def latin(folder: Path) -> None:
    (folder / "bundle.json").write_bytes(b'{"format": 1, "name": "caf\xe9"}')


def giant(folder: Path) -> None:
    with (folder / "bundle.json").open("ab") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)


def few_thresholds(folder: Path) -> None:
    edit(folder, lambda m: m["families"]["probe"]["outputs"][0].update(thresholds=[0.5] * 8))


def few_labels(folder: Path) -> None:
    edit(folder, lambda m: m["families"]["probe"]["outputs"][0].update(labels=["x"] * 8))


def unknown_family(folder: Path) -> None:
    edit(folder, lambda m: m["families"].update(telepathy=m["families"]["va"]))


def no_outputs(folder: Path) -> None:
    edit(folder, lambda m: m["families"]["va"].pop("outputs"))


def no_families(folder: Path) -> None:
    edit(folder, lambda m: m.pop("families"))


def families_as_list(folder: Path) -> None:
    edit(folder, lambda m: m.update(families=["va"]))


def undigested(folder: Path) -> None:
    shutil.copyfile(folder / "va.onnx", folder / "other.onnx")
    edit(folder, lambda m: m["families"]["va"].update(engine="other.onnx"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove, r"broken: va\.onnx is missing"),
        (alter, r"va\.onnx has SHA-256 [0-9a-f]{12}…, bundle\.json says [0-9a-f]{12}…"),
        (lie, r"va\.onnx has SHA-256 [0-9a-f]{12}…, bundle\.json says 000000000000…"),
        (climb, r"bundle\.json: file name '\.\./outside' leads out of the bundle"),
        (absolute, r"bundle\.json: file name '/etc/hostname' leads out of the bundle"),
        (link, r"bundle\.json: file name 'va\.onnx' leads out of the bundle"),
        (link_folder, r"bundle\.json: file name 'below/va\.onnx' leads out of the bundle"),
        (other_format, r"bundle\.json: format 2, this version reads 1"),
        (a_list, r"bundle\.json: format 'list', this version reads 1"),
        (no_json, r"bundle\.json: not JSON"),
        (deep, r"bundle\.json: not JSON"),
        (latin, r"bundle\.json: not JSON"),
        (giant, rf"bundle\.json: {MAX_MANIFEST_BYTES + 1} bytes, more than {MAX_MANIFEST_BYTES} are no manifest"),
        (few_thresholds, r"bundle\.json: probe: 8 thresholds for 9 columns of head 'gems'"),
        (few_labels, r"bundle\.json: probe: 8 labels and 9 places for 9 columns of 'gems'"),
        (unknown_family, r"bundle\.json: unknown family 'telepathy', must be one of midlevel"),
        (no_outputs, r"bundle\.json: KeyError 'outputs': not a bundle's manifest"),
        (no_families, r"bundle\.json: KeyError 'families'"),
        (families_as_list, r"bundle\.json: AttributeError"),
        (undigested, r"bundle\.json: va names 'other\.onnx', which has no digest"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_bundle_is_refused(bundle: Path, damage: Callable[[Path], None], said: str) -> None:
    load(str(bundle))
    damage(bundle)
    with pytest.raises(BundleError, match=said) as caught:
        load(str(bundle))
    assert "\n" not in str(caught.value)


def test_no_such_bundle_names_those_that_are_there() -> None:
    with pytest.raises(BundleError, match=r"no bundle 'nowhere'.*built in \(default-2"):
        find("nowhere")


def test_a_damaged_bundle_ends_a_run_with_one_line(in_process: Invoke, bundle: Path, demo_corpus: Path, tmp_path: Path) -> None:
    alter(bundle)
    result = in_process("run", demo_corpus, "--out", tmp_path / "t.parquet", "--bundle", bundle)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "va.onnx has SHA-256" in result.stderr
    assert not list(tmp_path.glob("t.parquet*"))


def test_a_user_s_bundle_runs_what_it_holds(in_process: Invoke, bundle: Path, demo_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    arguments = ("run", demo_corpus / "pop", "--out", out, "--bundle", bundle)
    result = in_process(*arguments, "--models", "va")
    assert result.exit_code == 0, result.stderr
    table = pd.read_parquet(out)
    assert table.filter(like="va_").shape == (2, 4)
    refused = in_process(*arguments, "--models", "midlevel")
    assert refused.exit_code == 2
    assert "bundle 'small' has no family 'midlevel'; it has probe, va, notes" in refused.stderr


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("va", "va has no ONNX graph"),
        ("probe", "probe reads midlevel"),
        ("vaseq", "vaseq reads notes"),
        ("notes", "no transcription"),
    ],
)
def test_a_bundle_that_cannot_run_says_so(
    in_process: Invoke, bundle: Path, demo_corpus: Path, tmp_path: Path, family: str, said: str
) -> None:
    """A family without its ONNX graph or what it is built on, MIDI without notes: one line, no traceback, no table."""

    def change(manifest: dict[str, Any]) -> None:
        families = manifest["families"]
        families["va"]["engine"] = None
        families["vaseq"] = families["va"]
        if family in ("vaseq", "notes"):
            del families["notes"]

    edit(bundle, change)
    chosen = ("--models", family) if family != "notes" else ("--models", "joint", "--midi", tmp_path / "midi")
    if family == "notes":
        edit(bundle, lambda m: m.update(families={"joint": m["families"]["va"]}))
    result = in_process("run", demo_corpus / "pop", "--out", tmp_path / "t.parquet", "--bundle", bundle, *chosen)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("annotate: ")
    assert said in result.stderr
    assert not (tmp_path / "t.parquet").exists()


# --- verify ---


def test_verify_is_green_on_the_default_bundle(
    in_subprocess: Callable[..., subprocess.CompletedProcess[str]], default: Bundle
) -> None:
    done = in_subprocess("bundle", "verify")
    assert done.returncode == 0, done.stderr
    checked = {line.split()[0] for line in done.stdout.splitlines() if "largest difference" in line}
    assert checked == {name for name in default.families if name != "notes"}
    assert done.stdout.splitlines()[-1] == "ok"


def test_verify_is_green_on_a_whole_bundle(small: Path) -> None:
    lines = list(verify(load(str(small))))
    assert [line.split()[:3] for line in lines] == [
        ["probe", "keras", "gems"],
        ["probe", "onnx", "gems"],
        ["va", "keras", "va"],
        ["va", "onnx", "va"],
    ]


def rewrite(folder: Path) -> None:
    """Digests of what is there now, as someone would who swaps a file and wants it to pass."""
    manifest = json.loads((folder / "bundle.json").read_text())
    write_manifest(folder, {key: value for key, value in manifest.items() if key not in ("format", "files")})


def test_verify_is_red_when_weights_were_swapped(bundle: Path) -> None:
    from models import probe

    network = probe.build()
    network.save(bundle / "probe.keras")
    with pytest.raises(BundleError, match=r"probe\.keras has SHA-256"):
        load(str(bundle))
    rewrite(bundle)
    with pytest.raises(BundleError, match=r"probe \(keras\): gems differs from the reference by "):
        list(verify(load(str(bundle))))


def test_weights_of_another_graph_are_refused(bundle: Path) -> None:
    shutil.copyfile(bundle / "va.keras", bundle / "probe.keras")
    rewrite(bundle)
    with pytest.raises(
        BundleError, match=r"probe\.keras differs from the graph of probe: 6 weights with \d+ numbers, the graph has 2 with 72"
    ):
        list(verify(load(str(bundle))))


def test_weights_that_are_no_keras_file_are_refused(bundle: Path) -> None:
    (bundle / "probe.keras").write_bytes(b"PK\3\4 nothing")
    rewrite(bundle)
    with pytest.raises(BundleError, match=r"probe\.keras is no archive"):
        load(str(bundle))


def test_a_label_too_many_is_refused(bundle: Path) -> None:
    def bored(manifest: dict[str, Any]) -> None:
        manifest["families"]["probe"]["outputs"][0]["columns"].append("gems_boredom")
        manifest["families"]["probe"]["outputs"][0]["labels"].append("boredom")

    edit(bundle, bored)
    with pytest.raises(BundleError, match="head 'gems' gives 9 numbers for 10 columns"):
        list(verify(load(str(bundle))))
    held = load(str(bundle))
    predicted = run_engine(held.file("probe.onnx"), np.zeros((1, 7), np.float32))
    with pytest.raises(BundleError, match="head 'gems' gives 9 numbers for 10 columns"):
        inference.network_columns(held.families["probe"], predicted)


# --- inference ---


def family(**changes: Any) -> Family:
    held = Family("midlevel", "", {}, "StftSpec", {}, 15.0, "mean over windows", (), None, None, {})
    return dataclasses.replace(held, **changes)


def output(columns: tuple[str, ...], **changes: Any) -> Output:
    plain = {"head": "rating", "columns": columns, "labels": columns, "index": tuple(range(len(columns))), "description": ""}
    return Output(**{**plain, "unit": "", "low": 1.0, "high": 10.0, **changes})


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 7))
def test_packed_keeps_order_and_fills_batches(owners: list[int], size: int) -> None:
    windows = [(owner, np.full((2, 3), number, np.float32)) for number, owner in enumerate(owners)]
    batches = list(inference.packed(iter(windows), size))
    assert [owner for held, _ in batches for owner in held] == owners
    assert [int(window[0, 0]) for _, batch in batches for window in batch] == list(range(len(owners)))
    assert all(len(held) == len(batch) for held, batch in batches)
    assert all(len(batch) == size for _, batch in batches[:-1])
    assert all(1 <= len(batch) <= size for _, batch in batches[-1:])


def test_packed_is_lazy_and_refuses_an_empty_batch() -> None:
    drawn = []

    def windows() -> Any:
        for number in range(10):
            drawn.append(number)
            yield 0, np.zeros((1, 1), np.float32)

    next(inference.packed(windows(), 3))
    assert drawn == [0, 1, 2]
    with pytest.raises(ValueError, match="batch_size=0 must be >= 1"):
        next(inference.packed(windows(), 0))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 9))
def test_infer_gives_each_track_its_own_windows(counts: list[int], size: int) -> None:
    windows = [(track, np.full((2, 2), 10 * track + k, np.float32)) for track, count in enumerate(counts) for k in range(count)]
    seen = []

    def predict(batch: Any) -> Mapping[str, Any]:
        seen.append(batch.shape)
        return {"sum": batch.sum(axis=(1, 2)), "first": batch[:, 0, 0]}

    outputs = inference.infer(predict, windows, size)
    assert all(shape[1:] == (2, 2, 1) for shape in seen)
    assert sorted(outputs) == list(range(len(counts)))
    for track, count in enumerate(counts):
        expected = 10 * track + np.arange(count)[:, None]
        np.testing.assert_array_equal(outputs[track]["first"], expected)
        np.testing.assert_array_equal(outputs[track]["sum"], 4 * expected)


def test_network_columns_by_hand() -> None:
    blocks = (output(("a", "b"), scale=10.0, offset=1.0, spread=True), output(("s", "t"), head="salience", thresholds=(0.4, 0.7)))
    outputs = {
        "rating": np.array([[0.1, 0.5], [0.2, 0.5], [0.6, 0.5]], np.float32),
        "salience": np.array([[0.3, 0.6], [0.6, 0.7], [0.6, 0.5]], np.float32),
    }
    track, windows = inference.network_columns(family(outputs=blocks), outputs)
    assert track == {
        "a": pytest.approx(4.0),
        "a_sd": pytest.approx(math.sqrt(7)),  # of 2, 3 and 7, with n - 1
        "b": pytest.approx(6.0),
        "b_sd": pytest.approx(0.0),
        "s": pytest.approx(0.5),
        "s_label": True,
        "t": pytest.approx(0.6),
        "t_label": False,
    }
    assert windows == [
        {"a": pytest.approx(2.0), "b": pytest.approx(6.0), "s": pytest.approx(0.3), "t": pytest.approx(0.6)},
        {"a": pytest.approx(3.0), "b": pytest.approx(6.0), "s": pytest.approx(0.6), "t": pytest.approx(0.7)},
        {"a": pytest.approx(7.0), "b": pytest.approx(6.0), "s": pytest.approx(0.6), "t": pytest.approx(0.5)},
    ]
    one, _ = inference.network_columns(family(outputs=blocks), {head: values[:1] for head, values in outputs.items()})
    assert one["a_sd"] is None
    assert one["a"] == pytest.approx(2.0)


def test_two_blocks_may_share_a_head() -> None:
    """Means and spreads of one head, of other units; a head with a number that no block takes is refused."""
    blocks = (output(("v", "a"), head="va", index=(0, 2)), output(("v_std", "a_std"), head="va", index=(1, 3), scale=2.0))
    track, _ = inference.network_columns(family(outputs=blocks), {"va": np.array([[5.0, 1.0, 6.0, 2.0]], np.float32)})
    assert track == {"v": 5.0, "a": 6.0, "v_std": 2.0, "a_std": 4.0}
    with pytest.raises(BundleError, match="head 'va' gives 5 numbers for 4 columns"):
        inference.network_columns(family(outputs=blocks), {"va": np.zeros((1, 5), np.float32)})


def test_genres_are_ranked_and_a_head_that_is_absent_is_left_out() -> None:
    held = family(outputs=(output(("v",)),), details={"genres": ["classical", "electronic", "pop", "rock"]})
    outputs = {"class_output": np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.6, 0.1]], np.float32)}
    track, windows = inference.network_columns(held, outputs)
    assert [track[f"genre{rank}"] for rank in ("", "_2", "_3")] == ["pop", "rock", "electronic"]
    assert [track[f"genre{rank}_p"] for rank in ("", "_2", "_3")] == pytest.approx([0.45, 0.25, 0.2])
    assert [window["genre"] for window in windows] == ["rock", "pop"]
    two = inference.genre_columns(np.array([0.5, 0.5]), ["a", "b"])
    assert (two["genre"], two["genre_2"], two["genre_3"], two["genre_3_p"]) == ("a", "b", None, None)


def test_best_reads_the_descriptors_and_the_pooled_embedding() -> None:
    outputs = {"embedding": np.array([[1.0] * 200, [3.0] * 200], np.float32), "pooled": np.ones((2, 753), np.float32)}
    numbers = inference.best_numbers(np.arange(589, dtype=np.float32), outputs)
    assert numbers.shape == (589 + 400 + 1506,)
    assert numbers[588] == 588
    assert set(numbers[589:789]) == {2.0}  # the mean over windows
    assert set(numbers[789:989]) == {1.0}  # and the spread


def test_shares_are_kept_within_their_scale_and_ratings_are_not() -> None:
    assert inference.within_scale(output(("a", "b", "c"), unit="share", low=0.0, high=1.0), [-0.1, 0.5, 1.2]) == [0.0, 0.5, 1.0]
    assert inference.within_scale(output(("a", "b"), unit="rating 1-10"), [0.5, 11.0]) == [0.5, 11.0]


def test_required_adds_what_a_family_reads(default: Bundle) -> None:
    assert inference.required(("probe",), default) == ("midlevel", "probe")
    assert inference.required(("notes", "va"), default) == ("va", "notes")
    with pytest.raises(BundleError, match="has no family 'x'"):
        inference.required(("x",), default)


@pytest.mark.parametrize(
    ("front_end", "spec", "said"), [("Nose", {}, "unknown front end 'Nose'"), ("StftSpec", {"hop": 1}, "spec of")]
)
def test_an_unknown_front_end_is_refused(front_end: str, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        inference.spec_of(family(front_end=front_end, spec=spec))


# --- the columns of the default bundle ---


def test_columns_follow_the_design(default: Bundle, demo_corpus: Path) -> None:
    corpus = scan([demo_corpus])
    columns = columns_for(default, tuple(default.families), corpus)
    names = [column.name for column in columns]
    assert len(names) == len(set(names))
    identity = (
        "track track_key track_id corpus group artist album title duration_s sample_rate_hz channels audio_sha256 status error "
        "warning in_training"
    )
    assert names[:16] == identity.split()
    families = [column.family for column in columns if column.family in FAMILIES]
    assert list(dict.fromkeys(families)) == [name for name in FAMILIES if name in default.families]
    last_rating = max(number for number, column in enumerate(columns) if column.family == "ratings")
    assert 16 <= last_rating < next(number for number, column in enumerate(columns) if column.family in FAMILIES)
    prefixes = {
        "midlevel": ("midlevel_", "salient_"),
        "probe": ("gems_",),
        "joint": ("film_", "joint_"),
        "crnn": ("crnn_", "genre"),
        "descriptors": ("desc_",),
        "notes": ("midi_",),
    } | {name: (f"{name}_",) for name in ("emotion", "va", "vaseq", "best")}
    for column in columns:
        if column.family in prefixes:
            assert column.name.startswith(prefixes[column.family])
    counts = {"midlevel": 28, "probe": 9, "joint": 15, "emotion": 18, "va": 4, "vaseq": 4, "crnn": 9, "notes": 23}
    assert {name: families.count(name) for name in counts} == counts
    assert names.index("midlevel_melodiousness_sd") == names.index("midlevel_melodiousness") + 7
    # a family asked for in another order stands where it always stands
    some = [column.family for column in columns_for(default, ("notes", "va", "midlevel"), corpus) if column.family in FAMILIES]
    assert list(dict.fromkeys(some)) == ["midlevel", "va", "notes"]


def test_every_prediction_has_unit_and_range(default: Bundle, demo_corpus: Path) -> None:
    ranges = {
        "midlevel": (1, 10),
        "salient": (0, 1),
        "gems": (0, 1),
        "film": (1, 9),
        "joint": (1, 10),
        "emotion": (0, 1),
        "crnn": (1, 9),
    }
    for column in columns_for(default, tuple(default.families), scan([demo_corpus])):
        assert column.description
        if column.type != "float":
            continue
        assert column.unit
        assert column.low is not None
        prefix = column.name.partition("_")[0]
        if prefix in ranges and not column.name.endswith("_sd"):
            assert (column.low, column.high) == ranges[prefix]
        if column.name.endswith("_sd"):
            assert column.low == 0


def test_columns_of_the_windows_table(default: Bundle) -> None:
    names = [column.name for column in window_columns_for(default, tuple(default.families))]
    assert names[:4] == ["track", "family", "window", "start_s"]
    assert not [name for name in names if name.endswith(("_sd", "_label"))]
    assert {"midlevel_dissonance", "salient_dissonance", "film_fear", "emotion_power", "crnn_arousal", "genre", "genre_p"} <= set(
        names
    )
    assert not [name for name in names if name.startswith(("va_", "midi_", "desc_", "best_", "gems_"))]
    assert [column.name for column in window_columns_for(default, ("va", "notes"))] == names[:4]


def test_a_table_of_all_families(in_process: Invoke, default: Bundle, demo_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    result = in_process("run", demo_corpus / "rock", "--out", out)
    assert result.exit_code == 0, result.stderr
    expected = columns_for(default, tuple(default.families), scan([demo_corpus / "rock"]))
    assert read_columns(out) == expected
    table = pq.read_table(out)
    types = {"float": pa.float32(), "int": pa.int32(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
    for column in expected:
        values = table[column.name]
        assert values.type == types[column.type]
        present = [value for value in values.to_pylist() if value is not None]
        if column.type == "float":
            assert all(math.isfinite(value) for value in present)
        if column.type == "bool" or (column.name.startswith(("midlevel_", "film_", "gems_")) and not column.name.endswith("_sd")):
            assert len(present) == 2


# --- who was trained on ---


def test_training_tracks_are_known_by_id_digest_and_title(default: Bundle) -> None:
    def held(ids: dict[str, list[str]], sha256: tuple[str, ...] = (), titles: tuple[str, ...] = ()) -> Family:
        return family(details={"training": {"ids": ids, "sha256": list(sha256), "titles": list(titles)}})

    families = {
        "probe": held({"emotify": ["1"]}),
        "va": held({"soundtracks": ["001"]}, ("d" * 64,), (title_key("The  Band", "Song"),)),  # type: ignore[arg-type]
        "notes": family(),
    }
    known = known_tracks(dataclasses.replace(default, families=families))
    row = {"track_key": "1", "corpus": "emotify", "artist": "x", "title": None, "audio_sha256": "e" * 64}
    assert was_in_training(row, known) == "probe"
    assert was_in_training(row | {"track_key": "emotify:1"}, known) == "probe"
    assert (
        was_in_training(row | {"track_key": "soundtracks:001", "corpus": "soundtracks", "audio_sha256": "d" * 64}, known) == "va"
    )
    assert was_in_training(row | {"corpus": "folder"}, known) == ""
    assert was_in_training(row | {"corpus": "folder", "track_key": "emotify:1"}, known) == ""
    assert was_in_training(row | {"track_key": "2"}, known) == ""
    assert was_in_training(row | {"artist": "the band", "title": " SONG "}, known) == "probe,va"
