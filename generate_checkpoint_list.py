#!/usr/bin/env python3
"""The list generator of the original study; the same as ``batchsweep checkpoints``."""

import sys

from batchsweep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["checkpoints", *sys.argv[1:]]))
