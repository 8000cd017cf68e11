"""Who watches a generation and how it is stopped: progress, cancelling, and Ctrl-C at moments that can bear it."""

from wanlab.watch._interrupts import Interrupts
from wanlab.watch._lines import Lines
from wanlab.watch._progress import Progress, StageTime
from wanlab.watch._watch import STAGES, Cancelled, Watch, ended_as

__all__ = ["STAGES", "Cancelled", "Interrupts", "Lines", "Progress", "StageTime", "Watch", "ended_as"]
