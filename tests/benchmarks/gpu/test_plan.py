"""The order and the time of the stages, and what figures belong to."""

from __future__ import annotations

import re
from pathlib import Path

from mineral_bench.gpu import run, state
from mineral_bench.gpu.plan import MINUTES, STAGES, Deadlines

GUIDE = Path(__file__).parents[3] / "benchmarks" / "GPU.md"


def test_all_stages_fit_into_the_minutes_of_a_rented_machine_and_are_in_the_table() -> None:
    assert MINUTES <= 8
    assert sum(stage.seconds for stage in STAGES.values()) <= 60 * MINUTES
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert rows == [(name, str(stage.seconds)) for name, stage in STAGES.items()]


def test_what_decides_comes_first_and_what_a_stage_needs_before_it() -> None:
    names = list(STAGES)
    assert names[:6] == ["install", "chip", "models", "attention", "verify", "engines"]
    assert names.index("peers") > names.index("end_to_end")
    for name, stage in STAGES.items():
        assert all(names.index(other) < names.index(name) for other in (*stage.needs, *stage.uses))


def test_a_stage_may_take_its_share_and_what_earlier_ones_left_over() -> None:
    deadlines = Deadlines(1000, MINUTES)
    assert deadlines.of("install", 1000) == 1000 + STAGES["install"].seconds
    assert deadlines.of("chip", 1010) == 1000 + STAGES["install"].seconds + STAGES["chip"].seconds
    assert Deadlines(1000, 2 * MINUTES).of("install", 1000) == 1000 + 2 * STAGES["install"].seconds
    assert deadlines.of("pycuda", 1000 + 60 * MINUTES - 3) == 1000 + 60 * MINUTES


def test_models_may_take_longer_and_nothing_that_depends_on_it_is_lost() -> None:
    """On a slow machine the export takes more than its share: later stages still get theirs, the last go without."""
    deadlines = Deadlines(0, MINUTES)
    started = 70.0
    until = deadlines.of("models", started)
    assert until > started + 2 * STAGES["models"].seconds
    now = until
    for name in ("attention", "verify", "engines", "end_to_end", "decoding"):
        assert deadlines.of(name, now) >= min(deadlines.end, now + STAGES[name].seconds)
        assert Deadlines.is_enough(deadlines.of(name, now), now)
        now += STAGES[name].seconds
    assert now <= deadlines.end
    assert not Deadlines.is_enough(deadlines.of("pycuda", deadlines.end), deadlines.end)


def test_the_record_keeps_why_a_library_did_not_load_and_the_last_lines() -> None:
    why = "\x1b[1;31m2026-11-26 [E:onnxruntime:Default, x.cc:1] libcublasLt.so.13: cannot open\x1b[m"
    log = "\n".join([why, *(f"line {index}" for index in range(40))])
    kept = run.log_lines(log)
    assert kept[0] == "2026-11-26 [E:onnxruntime:Default, x.cc:1] libcublasLt.so.13: cannot open"
    assert kept[1:] == [f"line {index}" for index in range(25, 40)]


def test_figures_belong_to_the_sources_that_they_depend_on(tmp_path: Path) -> None:
    sources = {
        "mineral_batch/a.py": "1",
        "mineral_batch/b.ptx": "1",
        "mineral_bench/gpu/stages.py": "1",
        "mineral_bench/gpu/page.py": "1",
        "mineral_batch/words.md": "1",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def digest() -> str:
        state.project.cache_clear()
        found: str = state.project((tmp_path / "mineral_batch", tmp_path / "mineral_bench"))
        return found

    changed = []
    for name in sources:
        before = digest()
        (tmp_path / name).write_text("2")
        changed += [name] if digest() != before else []
    assert changed == list(sources)[:3], "not the page and the words"
