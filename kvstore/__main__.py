"""`python -m kvstore` is the console script `kvstore`."""

import sys

from kvstore.cli.main import main

sys.exit(main())
