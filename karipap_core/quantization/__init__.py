"""Numbers in few bits: one file a format, each a subclass of `Format` (formats.py) that registers itself.

Adding a format of numbers is adding its file and its import below.
"""

from karipap_core.quantization.float8 import Float8Format as Float8Format
from karipap_core.quantization.formats import Format as Format
from karipap_core.quantization.integers import Integers as Integers
