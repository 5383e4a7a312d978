# SPDX-License-Identifier: Apache-2.0
"""Many pictures in parts, each a Parquet file; with the mark full on a Ray cluster that loses a machine."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict_cases import drawn_faces, engine_file

from fastfer import Recognizer
from fastfer.predict import cluster, parts
from fastfer.predict.cli import main
from fastfer.predict.inputs import expanded

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def engine(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_file(finished / "best.safetensors", tmp_path_factory.mktemp("engine") / "net.ffe")


@pytest.fixture(scope="module")
def whole(engine: Path) -> Recognizer:
    return Recognizer(engine, faces="whole", threads=1)


def png(face: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(face).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Five pictures, of which one is damaged; a table of two row groups with a bad row; a tar file that is cut."""
    root, faces = tmp_path / "in", drawn_faces(12)
    root.mkdir()
    for index in range(5):
        (root / f"{index}.png").write_bytes(png(faces[index])[: 50 if index == 3 else None])
    rows = [png(faces[5]), b"none", png(faces[6]), png(faces[7])]
    pq.write_table(pa.table({"image": rows, "label": list("abcd")}), root / "t.parquet", row_group_size=2)
    with tarfile.open(root / "s.tar", "w") as file:
        for index in range(8, 11):
            for name, content in ((f"{index}.png", png(faces[index])), (f"{index}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    with tarfile.open(root / "s.tar") as file:
        last = file.getmember("10.png").offset_data
    os.truncate(root / "s.tar", last + 50)
    return root


def division(root: Path, pictures: int) -> list[parts.Part]:
    items, problems = expanded([str(root)], io.BytesIO(), tables=True)
    assert not problems
    return parts.divided(items, pictures)


def test_parts(inputs: Path) -> None:
    found = division(inputs, 2)
    assert [(part.number, part.kind, len(part.names), part.group) for part in found] == [
        (0, "pictures", 2, 0),
        (1, "pictures", 2, 0),
        (2, "pictures", 1, 0),
        (3, "shard", 1, 0),
        (4, "table", 1, 0),
        (5, "table", 1, 1),
    ]
    (inputs / "t.parquet").write_bytes(b"PAR1")
    assert [part.kind for part in division(inputs, 9)] == ["pictures", "shard", "table"]


def test_files_of_parts(inputs: Path, whole: Recognizer, tmp_path: Path) -> None:
    faces, found = drawn_faces(12), division(inputs, 3)
    for part in found:
        parts.write(part.file(tmp_path), parts.results(part, whole), whole.classes)
    rows = [row for part in found for row in pq.read_table(part.file(tmp_path)).to_pylist()]
    names = [Path(row["source"]).name for row in rows]
    assert names == [
        *(f"{index}.png" for index in range(5)),
        "s.tar 8.png", "s.tar 9.png", "s.tar",
        *(f"t.parquet row {index}" for index in range(4)),
    ]  # fmt: skip
    wanted = [0, 1, 2, None, 4, 8, 9, None, 5, None, 6, 7]
    for row, index in zip(rows, wanted, strict=True):
        if index is None:
            assert row["error"]
            assert (row["faces"], row["width"]) == ([], None)
            continue
        face, expected = row["faces"][0], whole(faces[index]).faces[0]
        assert row["error"] is None
        assert (row["width"], face["height"], face["label"]) == (48, 48.0, expected.label)
        assert face["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert "s.tar is not a readable tar file" in rows[7]["error"]
    counts = parts.summed((part.file(tmp_path) for part in found), whole.classes)
    assert (counts["pictures"], counts["failed"], counts["faces"], counts["without_face"]) == (12, 3, 9, 0)
    assert sum(counts["labels"].values()) == 9


def test_tables_that_are_none(inputs: Path, whole: Recognizer, tmp_path: Path) -> None:
    (inputs / "t.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"other": [1]}), inputs / "u.parquet")
    for part, message in zip(division(inputs, 9)[2:], ("not a readable Parquet file", "no column image"), strict=True):
        (result,) = parts.results(part, whole)
        assert message in str(result.error)


def test_a_part_is_there_whole_or_not_at_all(whole: Recognizer, tmp_path: Path) -> None:
    def broken() -> Any:
        yield from whole(list(drawn_faces(2)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write(tmp_path / "part-000000.parquet", broken(), whole.classes)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_leaves_what_is_done(inputs: Path, whole: Recognizer, tmp_path: Path) -> None:
    import pickle

    batch = {"part": [pickle.dumps(part) for part in division(inputs, 9)]}
    assert cluster.work(batch, pickle.dumps(whole), str(tmp_path))["part"] == [0, 1, 2, 3]
    dates = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")}
    assert len(dates) == 4
    cluster.work(batch, pickle.dumps(whole), str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*")} == dates


def local(todo: Any, recognizer: Recognizer, out: Path, *, address: Any, step: Any) -> None:
    """Stands for the cluster: every other part is done, as by a run that is ended."""
    for part in todo:
        if not (local.ended and part.number % 2):  # type: ignore[attr-defined]
            parts.write(part.file(out), parts.results(part, recognizer), recognizer.classes)
        step()
    if local.ended:  # type: ignore[attr-defined]
        raise KeyboardInterrupt


def test_the_command_goes_on(inputs: Path, engine: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out = tmp_path / "out"
    (inputs / "clip.mp4").write_bytes(b"x")
    command = [str(inputs), "--weights", str(engine), "--faces", "whole", "--out", str(out), "--ray", "--part", "2"]
    monkeypatch.setattr(cluster, "run", local)
    local.ended = True  # type: ignore[attr-defined]
    assert main(command) == 130
    assert len(list(out.glob("part-*"))) == 3
    assert main(command) == 2
    assert "give --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "--part", "3"]) == 2
    assert "--resume: expected the arguments of the earlier run" in capsys.readouterr().err
    local.ended = False  # type: ignore[attr-defined]
    assert main([*command, "--resume"]) == 1  # of bad pictures, and the video
    printed = capsys.readouterr().err
    assert "3 of 6 parts are done already" in printed
    assert "clip.mp4: no picture: --ray takes no videos" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["pictures"], summary["failed"], summary["faces"]) == (12, 3, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--ray: expected --out"),
        (["--out", "x", "--annotate", "--csv"], "--ray: expected none of --annotate, --csv"),
        (["--out", "x", "--part", "0"], "--part: expected 1 or more"),
    ],
)
def test_wrong_arguments(engine: Path, inputs: Path, arguments: list[str], message: str, capsys: Any) -> None:
    assert main([str(inputs), "--weights", str(engine), "--faces", "whole", "--ray", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_ray(engine: Path, inputs: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = [str(inputs), "--weights", str(engine), "--faces", "whole", "--out", str(tmp_path / "out"), "--ray"]
    assert main(arguments) == 2
    assert "--ray needs Ray: pip install 'fastfer[ray]'" in capsys.readouterr().err


class Starting:
    """A Ray that starts at a certain attempt."""

    def __init__(self, error: Exception, failures: int) -> None:
        self.error, self.failures, self.ended = error, failures, 0

    def init(self, **options: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error

    def shutdown(self) -> None:
        self.ended += 1


def test_a_cluster_that_starts_late(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_agent_register_timeout_ms", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    late = Starting(Exception("timed out during startup"), 2)
    cluster._start(late, None)
    assert late.ended == 2
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    with pytest.raises(OSError, match="no cluster started: timed out"):
        cluster._start(Starting(Exception("timed out during startup"), 3), None)
    with pytest.raises(ConnectionError):
        cluster._start(Starting(ConnectionError("no cluster there"), 1), "there:1")


@pytest.mark.full
def test_a_machine_is_lost(engine: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Two machines; one is killed while parts are in work on both: each picture is in the results once."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index in range(600):
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(root / f"{index:04}.jpg")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = machines.add_node(num_cpus=1)
        ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
        lost: list[int] = []

        def kill() -> None:
            while len(list(out.glob("part-*.parquet"))) < 4:
                time.sleep(0.01)
            machines.remove_node(second, allow_graceful=False)
            lost.append(len(list(out.glob("part-*.parquet"))))

        killer = threading.Thread(target=kill)
        killer.start()
        command = [str(root), "--weights", str(engine), "--faces", "whole", "--out", str(out), "--ray", "--part", "20"]
        assert main([*command, "--quiet"]) == 0
        killer.join()
    finally:
        ray.shutdown()
        machines.shutdown()
    assert 4 <= lost[0] < 30
    names = [name for path in out.glob("part-*.parquet") for name in pq.read_table(path)["source"].to_pylist()]
    assert sorted(names) == sorted(str(path) for path in root.iterdir())
    assert not list(out.glob(".part-*")) or len(names) == 600
