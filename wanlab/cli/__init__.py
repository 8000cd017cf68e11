"""`wanlab` in a shell: generate, models, lab, doctor. Nothing heavy is imported until a command needs it."""

from wanlab.cli._main import main

__all__ = ["main"]
