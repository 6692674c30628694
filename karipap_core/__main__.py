import sys

from karipap_core.cli.frame import main

sys.exit(main())
