"""Look into a running model, and change it: recorders and edits by name, and the traces that recorders leave.

    with probe.record(model, "blocks.*.out", "blocks.*.self.entropy") as trace:
        clip = wanlab.generate(model, prompt="a red circle moves right on a black background")
    trace.heat_map("blocks.*.out")

    with probe.edit(model, "blocks.3.out", lambda tensor, ctx: 0.9 * tensor, steps=range(4)):
        ...

`model.sites()` lists the names.
"""

from wanlab.probe._edit import edit
from wanlab.probe._files import open_trace
from wanlab.probe._keep import Keep
from wanlab.probe._names import names
from wanlab.probe._record import record
from wanlab.probe._show import Clip
from wanlab.probe._trace import Named, Trace

__all__ = ["Clip", "Keep", "Named", "Trace", "edit", "names", "open_trace", "record"]
