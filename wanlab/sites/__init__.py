"""Sites, the stack, and what travels through a forward.

handle = model.stacks["transformer"][3].site.wrap(lambda call, streams: call(streams), layer="recorder")
handle.remove()
"""

from wanlab.sites.chain import LAYERS, LEGAL, AttentionSite, Handle, Layout, LinearSite, ModuleSite, Site
from wanlab.sites.context import NO_CONDITIONS, Branch, Conditions, StepContext, Streams
from wanlab.sites.lock import RunLock
from wanlab.sites.stack import BlockPlan, Entry, Stack, compiling, skipping

__all__ = [
    "LAYERS",
    "LEGAL",
    "NO_CONDITIONS",
    "AttentionSite",
    "BlockPlan",
    "Branch",
    "Conditions",
    "Entry",
    "Handle",
    "Layout",
    "LinearSite",
    "ModuleSite",
    "RunLock",
    "Site",
    "Stack",
    "StepContext",
    "Streams",
    "compiling",
    "skipping",
]
