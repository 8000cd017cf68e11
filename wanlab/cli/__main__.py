"""`python -m wanlab.cli` is `wanlab`."""

import sys

from wanlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
