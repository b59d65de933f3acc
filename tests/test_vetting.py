"""Hostile bundles: what could run code, read other files or take all memory is refused before anything of it is loaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from models import vetting
from models.bundle import BundleError, load, load_network, run_engine, write_manifest
from models.vetting import Unfit, vet_file, weight_shapes


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the probe alone: a few kilobytes; not to be changed."""
    default = load("default")
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    folder.mkdir()
    entries = {name: default.manifest["families"][name] for name in ("midlevel", "probe")}
    entries["midlevel"] = entries["midlevel"] | {"weights": None, "engine": None}
    for file in (entries["probe"]["weights"], entries["probe"]["engine"]):
        shutil.copyfile(default.folder / file, folder / file)
    np.savez(folder / "reference.npz", **{"probe/input": np.zeros((1, 7), np.float32)})
    (folder / "README.md").write_text("a card")
    write_manifest(folder, {"name": "tiny", "version": "1", "licence": "none", "families": entries})
    return folder


@pytest.fixture
def bundle(tiny: Path, tmp_path: Path) -> Path:
    """Copy of the tiny bundle that a test may break."""
    return Path(shutil.copytree(tiny, tmp_path / "hostile"))


def sign(folder: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Make the manifest true of what is there now, as an attacker would."""
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest.pop("files")
    change(manifest)
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "format"})


def repack(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Change the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def configured(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the configuration of probe.keras."""

    def attack(folder: Path) -> None:
        def edit(members: dict[str, bytes]) -> None:
            config = json.loads(members["config.json"])
            change(config)
            members["config.json"] = json.dumps(config).encode()

        repack(folder / "probe.keras", edit)

    return attack


def layer(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["config"]["layers"].append({"config": {}, "registered_name": None, **fields})


def weighted(change: Callable[[Any, Path], object]) -> Callable[[Path], None]:
    """Change the weights of probe.keras."""

    def attack(folder: Path) -> None:
        import h5py

        def edit(members: dict[str, bytes]) -> None:
            content = io.BytesIO(members["model.weights.h5"])
            with h5py.File(content, "r+") as file:
                change(file, folder)
            members["model.weights.h5"] = content.getvalue()

        repack(folder / "probe.keras", edit)

    return attack


def pickled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Evil(folder / "pwned"), protocol=4))


def object_array(folder: Path) -> None:
    np.savez(folder / "reference.npz", **{"probe/input": np.array([Evil(folder / "pwned")], dtype=object)})  # type: ignore[arg-type]


def giant_array(folder: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)})
    repack(folder / "reference.npz", lambda members: members.update({"probe/input.npy": header.getvalue() + bytes(64)}))


def bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "reference.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (2**25,)})
        for _ in range(2**5):
            member.write(bytes(2**20))


def external_tensor(folder: Path) -> None:
    with (folder / "probe.onnx").open("ab") as file:
        file.write(b"\x6a\x1f\x0a\x08location\x12\x13../../../etc/passwd")


def manifest_of(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: sign(folder, change)


def external_link(file: Any, folder: Path) -> None:
    import h5py

    file["layers/other"] = h5py.ExternalLink("/etc/hostname", "/")


def external_storage(file: Any, folder: Path) -> None:
    (folder.parent / "secret").write_bytes(bytes(range(64)))
    del file["layers/dense/vars/1"]
    file.create_dataset("layers/dense/vars/1", (9,), "f4", external=[(str(folder.parent / "secret"), 0, 36)])


def sparse_giant(file: Any, folder: Path) -> None:
    file.create_dataset("layers/dense/vars/2", (2**20, 2**20), "f4", chunks=(1024, 1024))


def circle(file: Any, folder: Path) -> None:
    file["layers/dense/again"] = file["layers"]


ATTACKS: list[tuple[Callable[[Path], None], str]] = [
    (pickled("probe.keras"), "is a pickle"),
    (pickled("probe.onnx"), "is a pickle"),
    (pickled("reference.npz"), "is a pickle"),
    (pickled("README.md"), "is a pickle"),
    (pickled("extra.pkl"), r"\.pkl are not loaded"),
    (lambda folder: (folder / "plugin.py").write_text("import os"), r"\.py are not loaded"),
    (lambda folder: (folder / "probe.keras").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), r"is no \.keras file"),
    (object_array, "holds Python objects"),
    (giant_array, "promises the shape"),
    (external_tensor, "refers to weights in another file"),
    (lambda folder: repack(folder / "probe.keras", lambda m: m.update({"../../evil": b""})), "climbs out"),
    (lambda folder: repack(folder / "probe.keras", lambda m: m.update({"assets/x": b""})), "holds assets/x"),
    (lambda folder: repack(folder / "probe.keras", lambda m: m.update({"config.json": b"[" * 100_000})), "is no JSON"),
    (configured(layer(class_name="Lambda", module="keras.layers")), "holds a Lambda object"),
    (configured(layer(class_name="__lambda__", module="builtins")), "holds a __lambda__ object"),
    (configured(layer(class_name="TFSMLayer", module="keras.layers")), "holds a TFSMLayer object"),
    (configured(layer(class_name="StringLookup", module="keras.layers")), "holds a StringLookup object"),
    (configured(layer(class_name="system", module="os")), r"holds os\.system"),
    (configured(layer(class_name="function", module="builtins", config="print")), r"holds builtins\.function"),
    (configured(layer(class_name="get_file", module="keras.utils")), r"holds keras\.utils\.get_file"),
    (configured(layer(class_name="Mine", module="mine", registered_name="annotate>Mine")), r"holds mine\.Mine"),
    (configured(lambda c: c["config"]["layers"][-1]["config"].update(units=2**40)), "units = 1099511627776, more than"),
    (manifest_of(lambda m: m.update(name="a\x1b[2Jb")), "must be printable"),
    (manifest_of(lambda m: m["families"]["midlevel"]["spec"].update(n_fft=2**40)), "n_fft = 1099511627776 is more than"),
    (manifest_of(lambda m: m["families"]["midlevel"]["spec"].update(hop_length=0)), "hop_length = 0 must be > 0"),
    (manifest_of(lambda m: m["families"]["midlevel"]["spec"].update(hop_length=1)), "too many numbers"),
    (manifest_of(lambda m: m["families"]["probe"]["outputs"][0]["columns"].__setitem__(0, "<b>")), "'<b>' is no column name"),
]


@pytest.mark.parametrize(("attack", "said"), ATTACKS, ids=[said.replace("\\", "")[:30] for _, said in ATTACKS])
def test_a_hostile_bundle_is_refused_before_anything_runs(bundle: Path, attack: Callable[[Path], None], said: str) -> None:
    """Its digests are true: it is refused for what it is."""
    sign(bundle)
    load(str(bundle))
    attack(bundle)
    sign(bundle)
    with pytest.raises(BundleError, match=said) as caught:
        load(str(bundle))
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (bundle / "pwned").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vetting, "MAX_UNPACKED_BYTES", 2**24)
    bomb(bundle)
    assert (bundle / "reference.npz").stat().st_size < 2**20
    sign(bundle)
    with pytest.raises(BundleError, match="unpacks to more than 16777216 bytes"):
        load(str(bundle))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (external_link, "link to another place or file at /layers/other"),
        (external_storage, "read another file at /layers/dense/vars/1"),
        (sparse_giant, r"promise the shape \(1048576, 1048576\) at /layers/dense/vars/2"),
        (circle, "nested too deep, or in circles"),
        (lambda file, folder: file.create_dataset("layers/x", data=np.array([b"text"])), "are no numbers at /layers/x"),
        (
            lambda file, folder: file.create_dataset("layers/dense/vars/2", data=np.zeros(3, "f4")),
            "differs from the graph of probe",
        ),
    ],
    ids=["external link", "external storage", "sparse giant", "circle", "text", "one too many"],
)
def test_hostile_weights_are_refused_before_keras_sees_them(
    bundle: Path, change: Callable[[Any, Path], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    weighted(change)(bundle)
    sign(bundle)
    held = load(str(bundle))
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_, **__: pytest.fail("Keras was given the file"))
    with pytest.raises(BundleError, match=said):
        load_network(held, "probe")


def test_the_configuration_in_the_file_is_never_deserialised(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is ours; the file gives the numbers, and they are its numbers."""
    import keras

    sign(bundle)
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("the configuration was deserialised"))
    graph = load_network(load(str(bundle)), "probe")
    inputs = np.random.default_rng(0).random((4, 7)).astype(np.float32)
    expected = run_engine(bundle / "probe.onnx", inputs)["gems"]
    assert np.asarray(graph.predict_on_batch(inputs)["gems"]) == pytest.approx(expected, abs=1e-5)


def test_a_graph_that_cannot_run_is_said_in_one_line(bundle: Path) -> None:
    (bundle / "probe.onnx").write_bytes(b"\x08" + bytes(range(200)))
    sign(bundle)
    with pytest.raises(BundleError, match=r"probe\.onnx: no graph that can run: [^\n]+$"):
        run_engine(load(str(bundle)).file("probe.onnx"), np.zeros((1, 7), np.float32))


def test_giant_arguments_are_refused_before_the_graph_is_built(bundle: Path) -> None:
    from models.bundle import build_graph

    sign(bundle, lambda m: m["families"]["midlevel"].update(arguments={"frames": 2**40}))
    with pytest.raises(BundleError, match="frames of midlevel is more than 65536"):
        build_graph(load(str(bundle)).families["midlevel"])


def test_every_file_of_the_built_in_bundle_passes() -> None:
    held = load("default")
    assert held.manifest["files"]
    for family in held.families.values():
        if family.weights is not None:
            assert weight_shapes(held.file(family.weights))


# --- fuzz ---


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(file=st.sampled_from(["probe.keras", "probe.onnx", "reference.npz", "bundle.json"]), data=st.data())
def test_mutated_bundles_are_loaded_or_refused(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, file: str, data: st.DataObject
) -> None:
    """Whatever bytes change: a bundle is whole, or a BundleError of one line; digests made true after the change."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("mutated") / "b"))
    content = bytearray((folder / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            content[at : at + data.draw(st.integers(1, 300))] = data.draw(st.binary(max_size=40))
        if not content:
            content = bytearray(b"\0")
    (folder / file).write_bytes(content)
    if file != "bundle.json":
        sign(folder)
    said = ""
    try:
        held = load(str(folder))
        if file == "probe.keras":
            weight_shapes(held.file("probe.keras"))
    except (BundleError, Unfit) as error:
        said = str(error)
    assert "\n" not in said
    shutil.rmtree(folder.parent)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(content=st.binary(max_size=400), suffix=st.sampled_from([".keras", ".npz", ".onnx", ".parquet", ".md"]))
def test_any_bytes_are_vetted_without_another_error(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"x{suffix}"
    path.write_bytes(vetting.MAGIC.get(suffix, b"") + content)
    said = ""
    try:
        vet_file(path)
    except Unfit as error:
        said = str(error)
    assert "\n" not in said
