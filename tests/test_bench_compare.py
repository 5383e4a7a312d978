# SPDX-License-Identifier: Apache-2.0
"""Files of results by machine: merged, compared, drawn; and what disturbs a measurement is seen."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

compare = pytest.importorskip("bench.compare", reason="bench is not beside the tests: not a checkout")
from bench import growth, machine_file  # noqa: E402

MACHINE = {
    "cpu": "X",
    "model": "family 1 model 2",
    "cores": 2,
    "isa": "avx2",
    "cache_mib": 8,
    "versions": {"torch": "2"},
}
QUIET = {"others": 0.0, "stolen": 0.0, "attempts": 1, "date": "2026-11-30"}


def row(ratio: float, network: str = "fgw_fer", batch: int = 1, **more: Any) -> dict[str, Any]:
    """A comparison in which the peer takes ``ratio`` times as long."""
    rounds = [0.001, 0.002, 0.0011]  # a round in which both were slow changes no ratio
    timings = [
        {"name": name, "version": "1", "median": 0.0011 * times, "p10": 0.001 * times, "error": 0.0}
        | {"rounds": [value * times for value in rounds]}
        for name, times in (("fastfer engine", 1.0), ("peer", ratio))
    ]
    return {"network": network, "batch": batch, "threads": 1, "dtype": "float32", "timings": timings} | QUIET | more


def file(path: Path, rows: list[dict[str, Any]], **machine: Any) -> Path:
    path.write_text(json.dumps({"machine": {**MACHINE, **machine}, "ratios": rows}))
    return path


@pytest.mark.parametrize(("after", "code"), [(2.0, 0), (1.82, 0), (1.78, 1), (float("nan"), 1), (5.0, 0)])
def test_a_ratio_that_falls_by_a_tenth_fails(tmp_path: Path, after: float, code: int, capsys: Any) -> None:
    before = file(tmp_path / "a.json", [row(2.0), row(3.0, batch=32)])
    again = file(tmp_path / "b.json", [row(after), row(3.0, batch=32), row(1.0, "new")])
    assert compare.main([str(before), str(again)]) == code
    said = capsys.readouterr().out
    assert "2 ratios in both, 0 only before, 1 only after" in said
    assert f"{code} of 2 judged fell by more than 10%" in said


def test_disturbed_rows_are_shown_and_not_judged(tmp_path: Path, capsys: Any) -> None:
    before = file(tmp_path / "a.json", [row(2.0), row(2.0, batch=32)])
    again = file(tmp_path / "b.json", [row(1.0, others=0.4), row(2.0, batch=32)])
    assert compare.main([str(before), str(again)]) == 0
    assert "fell, but disturbed" in capsys.readouterr().out
    assert compare.main([str(before), str(file(tmp_path / "c.json", [row(1.0, stolen=0.2)]))]) == 2
    assert "nothing can be judged" in capsys.readouterr().out


def test_two_machines_are_not_judged(tmp_path: Path, capsys: Any) -> None:
    before, again = file(tmp_path / "a.json", [row(2.0)]), file(tmp_path / "b.json", [row(1.0)], model="family 3")
    assert compare.main([str(before), str(again)]) == 2
    assert compare.main([str(before), str(again), "--across"]) == 0
    assert "nothing is judged" in capsys.readouterr().out


def test_nothing_in_common_and_bad_files(tmp_path: Path) -> None:
    before = file(tmp_path / "a.json", [row(2.0)])
    assert compare.main([str(before), str(file(tmp_path / "b.json", [row(2.0, "other")]))]) == 2
    (tmp_path / "c.json").write_text("[1]")
    assert compare.main([str(before), str(tmp_path / "c.json")]) == 2
    assert compare.main([str(before), str(tmp_path / "missing.json")]) == 2


def test_files_of_bench_engine_are_read() -> None:
    path = machine_file.FOLDER / "engine.json"
    content = machine_file.read(path)
    code, lines = compare.judge(content, content, 0.1)
    assert code == 0
    assert "0 of 30 judged fell by more than 10%" in list(lines)[-1]


def test_rows_are_merged_by_what_they_measure(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    machine_file.update(path, MACHINE, {"1": {"gmacs": 50.0}}, {"ratios": [row(2.0), row(3.0, batch=32)]})
    machine_file.update(path, MACHINE, {"1": {"gmacs": 40.0}, "2": {"gmacs": 90.0}}, {"ratios": [row(2.5)]})
    content = machine_file.read(path)
    assert [(r["batch"], r["timings"][1]["rounds"][0]) for r in content["ratios"]] == [(1, 0.0025), (32, 0.003)]
    assert content["ceilings"] == {"1": {"gmacs": 50.0}, "2": {"gmacs": 90.0}}
    with pytest.raises(ValueError, match="measured on x-family-1-model-2-avx2-2-cores, and this is"):
        machine_file.update(path, {**MACHINE, "cores": 4}, {}, {})


def test_a_disturbed_measurement_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(0.9, 0.0), (0.3, 0.0), (0.02, 0.0)])

    class Check:
        LIMIT = 0.1

        def read(self) -> tuple[float, float]:
            return next(seen)

    monkeypatch.setattr(machine_file, "QuietCheck", Check)
    values = iter("abc")
    value, facts = machine_file.quietly(lambda: next(values), 2)
    assert (value, facts["others"], facts["attempts"]) == ("b", 0.3, 2)
    assert machine_file.is_disturbed(facts)
    value, facts = machine_file.quietly(lambda: next(values), 2)
    assert (value, facts["attempts"], machine_file.is_disturbed(facts)) == ("c", 1, False)


def points(axis: str, costs: dict[int, float]) -> list[dict[str, Any]]:
    same = {"axis": axis, "network": "fgw_fer", "batch": 1, "threads": 1, "first": 0.01, **QUIET}
    return [{**same, "value": n, "median": cost, "p10": cost, "mib": 2.0 + n} for n, cost in costs.items()]


def test_where_a_curve_bends() -> None:
    batch = points("batch", {1: 0.002, 2: 0.0021, 4: 0.0042, 8: 0.0126})
    assert growth.bend(batch) == (
        "fgw_fer: an image costs the same within 10% from 2 to 4; 1.9 times as much at 1; 1.5 times as much at 8; "
        "memory goes from 3.0 to 10.0 MiB."
    )
    pixels = points("pixels", {10: 0.001, 20: 0.004})
    assert "a pixel costs the same within 10% from 10 to 20; memory" in growth.bend(pixels)


def test_points_cover_what_they_should() -> None:
    found = list(growth.points(list(growth.AXES), ["fgw_fer", "sepconv_attention"], short=False))
    sides = [point.value for point in found if point.axis == "pixels"]
    assert (min(sides), max(sides)) == (24, 448)
    assert {point.batch for point in found if point.axis == "batch"} >= {1, 256}
    assert {point.network for point in found if point.axis == "classes"} == {"fgw_fer"}


def test_a_page_of_a_machine(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench import page

    path = tmp_path / "machine.json"
    ceilings = {"1": {"gmacs": 50.0, "memory": 20.0, "cache": 90.0}}
    steps = [["conv", 10.0, 1e6, 4096.0, 80.0], ["pool", 2.0, 0.0, 4096.0, 20.0]]
    parts = {
        "ratios": [row(2.0), row(3.0, "patt_lite", 32, others=0.5)],
        "steps": [{"network": "fgw_fer", "threads": 1, "dtype": "float32", "team": 1, "steps": steps} | QUIET],
        "growth": points("batch", {1: 0.002, 8: 0.008}) + points("pixels", {24: 0.001, 48: 0.003}),
    }
    machine_file.update(path, MACHINE, ceilings, parts)
    page.write(path)
    text = (tmp_path / "machine.md").read_text()
    assert "| patt_lite, 32 | 1 | float32 | 1.100 (1.000) | peer 3.00× (50% disturbed) |" in text
    assert "| fgw_fer: conv | 10.0 | 83% | 1.00 | 4 | 80 % |" in text
    assert "6 rows" not in text
    assert "7 rows, 1 of them" in text
    for kind in ("speedup", "accuracy", "roofline", "growth"):
        assert f"(machine-{kind}.svg)" in text
        words = "".join(ElementTree.parse(tmp_path / f"machine-{kind}.svg").getroot().itertext())
        assert {"speedup": "patt_lite, 32", "accuracy": "fgw_fer float32"}.get(kind, "") in words


@pytest.mark.full
def test_a_short_run_on_this_machine(tmp_path: Path) -> None:
    from bench import claims

    out = tmp_path / "here.json"
    words = ["--short", "--networks", "fgw_fer", "--parts", "steps", "growth", "--axes", "batch", "--threads", "1"]
    assert claims.main([*words, "--seconds", "0.01", "--out", str(out)]) == 0
    content = machine_file.read(out)
    assert [r["value"] for r in content["growth"]] == [1, 8]
    assert all(r["mib"] > 0 and r["median"] > 0 for r in content["growth"])
    assert all(step[4] > 0 for step in content["steps"][0]["steps"] if step[2])
    assert claims.main([*words, "--missing", "--out", str(out)]) == 0
