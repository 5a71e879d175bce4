"""``python -m sirf_diffusion.cli``, where the installed command is not on the path."""

import sys

from . import main

sys.exit(main())
