"""`python -m RegMambaLib` is the command `regmamba`."""

import sys

from .cli.main import main

sys.exit(main())
