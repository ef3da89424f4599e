"""`python -m sipsidecar`."""

import sys

from sipsidecar.cli import main

if __name__ == "__main__":
    sys.exit(main())
