"""`python -m mmedagent_graph`."""

import sys

from mmedagent_graph.cli import main

if __name__ == "__main__":
    sys.exit(main())
