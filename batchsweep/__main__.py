"""``python -m batchsweep``."""

import sys

from batchsweep.cli.main import main

sys.exit(main())
