import sys

from karipap_core.cli import main

sys.exit(main())
