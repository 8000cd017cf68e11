"""100 started and cancelled jobs leave nothing: no thread, tensor, file or memory; the next run equals a fresh one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.tiny import tiny_wan

ROOT = Path(__file__).parent.parent
RSS_BYTES = 4096  # a cycle: one page; 500 to 1551 were measured, and 24,000 where 20,000 were kept
HEAP_BYTES = 2000  # a cycle: 145 to 182 were measured (experiments/lab/cancel_cycles/README.md)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux tells of a process")
def test_a_hundred_cancelled_jobs_leave_nothing(tmp_path: Path) -> None:
    """A first series warms the allocator up, the second is judged, a third that leaks shows that it would be seen."""
    definition, out = tmp_path / "wan_random_1.json", tmp_path / "out.json"
    definition.write_text(json.dumps(tiny_wan(tmp_path / "wan")[1]))
    script = [sys.executable, ROOT / "experiments/lab/cancel_cycles/run.py", "--model", definition, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*script, "--repeats", "2"], env=environment, check=True, timeout=280)
    result = json.loads(out.read_text())
    assert result["equal"]
    _, judged, leaking = result["runs"]
    assert Counter(judged["ends"]) == {"cancelled": 100}
    for name in ("threads", "tensors", "files"):
        assert judged[name][20] == judged[name][-1], name
    assert judged["slopes"]["rss"][0] < RSS_BYTES
    assert judged["slopes"]["heap"][0] < HEAP_BYTES
    assert leaking["slopes"]["rss"][0] > RSS_BYTES
    assert leaking["slopes"]["heap"][0] > HEAP_BYTES
    assert leaking["tensors"][-1] - leaking["tensors"][20] == 79
