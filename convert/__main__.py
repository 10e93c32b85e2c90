"""`python -m convert`."""

import sys

from convert.commands.arguments import main

if __name__ == "__main__":
    sys.exit(main())
