"""`python -m RegMambaLib.worker`."""

from .serve import main

main()
