"""Jobs in a real kernel: interrupts, restarts, and clicks that arrive while a job runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

import wanlab
from tests.tiny import tiny_wan
from wanlab.runs import read_run

WAIT = 120  # seconds, only ever used up by a failure
ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

SETUP = """
import threading, time, numpy, wanlab
from wanlab import jobs
model = wanlab.load({definition!r}, device="cpu")
spec = model.spec(prompt="a red fox", num_steps=4, num_frames=5, width=32, height=32, seed=1)
long = spec.with_(num_steps=10_000)
fresh = wanlab.generate(model, spec)
steps = []
def on_step(step, *_):
    steps.append(time.monotonic())
    if step == 3:
        print("running", flush=True)
    time.sleep(0.05)  # a step that takes its time, and lets go of the interpreter as torch does
def check_like_fresh():
    again = wanlab.generate(model, spec)
    assert numpy.array_equal(again.frames, fresh.frames)
    print("like fresh")
"""


class Kernel:
    """A kernel and what its cells print, reply and show."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.manager = KernelManager(kernel_name="python3")
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": path, **environment})
        self.connect()

    def connect(self) -> None:
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=WAIT)

    def send(self, code: str) -> str:
        """Start a cell and return the id of its request; an error in it does not abort the next one."""
        return self.client.execute(code, stop_on_error=False)

    def reply(self, request: str) -> dict[str, Any]:
        """The reply of a cell, when it has ended."""
        while True:
            message = self.client.get_shell_msg(timeout=WAIT)
            if message["parent_header"].get("msg_id") == request:
                return message["content"]

    def run(self, code: str) -> str:
        """Run a cell that ends well; returns what it printed."""
        request = self.send(code)
        reply = self.reply(request)
        assert reply["status"] == "ok", "\n".join(reply["traceback"])
        return "".join(m["content"]["text"] for m in self.messages(request) if m["msg_type"] == "stream")

    def messages(self, request: str) -> list[dict[str, Any]]:
        """What a cell showed and printed, up to its end."""
        found = []
        while True:
            message = self.client.get_iopub_msg(timeout=WAIT)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["content"].get("execution_state") == "idle":
                return found
            if message["msg_type"] not in ("status", "execute_input"):
                found.append(message)

    def wait_for(self, text: str) -> None:
        """Wait until something prints `text`."""
        while True:
            message = self.client.get_iopub_msg(timeout=WAIT)
            if text in message["content"].get("text", ""):
                return

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, definition = tiny_wan(tmp_path_factory.mktemp("wan"))
    path = folder.parent / "wan_random_1.json"
    path.write_text(json.dumps(definition))
    return SETUP.format(definition=str(path))


@pytest.fixture(scope="module")
def kernel(setup: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path_factory.mktemp("notebook"))
    try:
        kernel.run(setup)
        yield kernel
    finally:
        kernel.stop()


def test_interrupt_ends_the_wait_and_the_job(kernel: Kernel) -> None:
    cell = kernel.send("job = wanlab.submit(model, long, on_step=on_step); job.result()")
    kernel.wait_for("running")
    kernel.manager.interrupt_kernel()
    interrupted = time.monotonic()
    reply = kernel.reply(cell)
    seconds = time.monotonic() - interrupted
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert seconds < 1.0 + 0.05
    after = kernel.run("print(job.status, len(steps), model.attachments(), model.lock.owner == '', jobs.pending())")
    status, num_steps, rest = after.split(maxsplit=2)
    assert (status, rest.strip()) == ("cancelled", "[] True []")
    assert int(num_steps) < 100
    assert kernel.run("check_like_fresh()") == "like fresh\n"


def test_interrupt_ends_a_blocking_generate(kernel: Kernel) -> None:
    cell = kernel.send("wanlab.generate(model, long, on_step=on_step)")
    kernel.wait_for("running")
    kernel.manager.interrupt_kernel()
    assert kernel.reply(cell)["ename"] == "KeyboardInterrupt"
    assert kernel.run("check_like_fresh()") == "like fresh\n"


CLICKS = """
from ipykernel.comm import Comm
from IPython import get_ipython
handled = []
def opened(comm, message):
    @comm.on_msg
    def click(message):
        handled.append((time.monotonic(), job.status, threading.current_thread() is threading.main_thread()))
        job.cancel()
get_ipython().kernel.comm_manager.register_target("click", opened)
"""


def test_a_click_while_a_job_runs_is_handled_at_once(kernel: Kernel) -> None:
    """The cell that submitted is over, the worker computes, and the callback of a widget may cancel."""
    kernel.run(CLICKS)
    session, shell = kernel.client.session, kernel.client.shell_channel
    shell.send(session.msg("comm_open", {"comm_id": "c1", "target_name": "click", "data": {}}))
    kernel.run("job = wanlab.submit(model, long, on_step=on_step)")
    kernel.wait_for("running")
    shell.send(session.msg("comm_msg", {"comm_id": "c1", "data": {"event": "click"}}))
    sent = time.monotonic()  # the same clock in all processes of a machine
    told = kernel.run(
        "ended = threading.Event(); job.on_end(lambda job: ended.set()); assert ended.wait(60)\n"
        "print(job.status, *handled[0], len(handled), time.monotonic())"
    ).split()
    assert (told[0], told[2:5]) == ("cancelled", ["running", "True", "1"])
    assert float(told[1]) - sent < 1
    assert float(told[5]) - sent < 2
    assert kernel.run("check_like_fresh()") == "like fresh\n"


def test_a_restart_in_mid_run_leaves_a_run_that_says_crashed(kernel: Kernel, setup: str, tmp_path: Path) -> None:
    folder, queued = tmp_path / "run", tmp_path / "queued"
    kernel.run(
        f"job = wanlab.submit(model, long, on_step=on_step, folder={str(folder)!r})\n"
        f"wanlab.submit(model, spec, folder={str(queued)!r})"
    )
    kernel.wait_for("running")
    assert (read_run(folder).status, read_run(queued).status) == ("running", "pending")
    kernel.client.stop_channels()
    kernel.manager.restart_kernel(now=True)
    assert (read_run(folder).status, read_run(queued).status) == ("crashed", "crashed")
    with pytest.raises(wanlab.WanlabError, match=r"is crashed.*Generate it again from its spec"):
        wanlab.open_result(folder)
    kernel.connect()
    kernel.run(setup)
    kernel.run(f"again = wanlab.submit(model, spec, folder={str(folder)!r}).result()")
    assert (read_run(folder).status, read_run(folder).attempt) == ("ok", 2)
    assert wanlab.open_result(folder).frames.shape == (5, 32, 32, 3)


def test_a_live_notebook_has_one_line_and_a_headless_one_has_text(kernel: Kernel, tmp_path: Path) -> None:
    """A blocking call; a notebook's server tells its kernels the notebook's path, papermill does not."""
    prepare = (
        "from wanlab.watch import _lines; _lines._LIVE_FIRST = _lines._LINE_SECONDS = 0.1; import os\n"
        "slow = lambda *_: time.sleep(0.1)"
    )
    kernel.run(prepare)
    for call in ("wanlab.generate(model, spec, on_step=slow)", "wanlab.submit(model, spec, on_step=slow).result()"):
        kernel.run("os.environ.pop('JPY_SESSION_NAME', None)")
        request = kernel.send(f"result = {call}")
        kinds = [(m["msg_type"], m["content"].get("name")) for m in kernel.messages(request)]
        assert set(kinds) == {("stream", "stderr")}
        kernel.run(f"os.environ['JPY_SESSION_NAME'] = {str(tmp_path / 'x.ipynb')!r}")
        request = kernel.send(f"result = {call}")
        shown = kernel.messages(request)
        assert [m["msg_type"] for m in shown] == ["display_data"] + ["update_display_data"] * (len(shown) - 1)
        assert len({m["content"]["transient"]["display_id"] for m in shown}) == 1
        assert any("denoise" in m["content"]["data"]["text/plain"] for m in shown)
        assert shown[-1]["content"]["data"]["text/plain"].startswith("done")
