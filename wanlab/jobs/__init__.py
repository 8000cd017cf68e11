"""Generation in the background: one worker thread a device, first in first out.

`submit` returns at once with a `Job`; the kernel stays free for widgets and other cells. The worker only ever runs
`pipeline.run`, so a job's result equals that of `generate`.
"""

from wanlab.jobs._job import Job, Status
from wanlab.jobs._worker import pending, submit

__all__ = ["Job", "Status", "pending", "submit"]
