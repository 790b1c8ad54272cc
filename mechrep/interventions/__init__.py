"""Floor 1: what to cut, boost or replace, as frozen values with no model inside.

An intervention says *which* units, *what* happens to them and *when* (at which positions).  Values compose with
``+``; :mod:`mechrep.interventions.hooks` turns them into TransformerLens hooks and :mod:`mechrep.interventions.apply`
into the fast path of generation.
"""

from mechrep.interventions.ops import Combined as Combined
from mechrep.interventions.ops import Experts as Experts
from mechrep.interventions.ops import Heads as Heads
from mechrep.interventions.ops import Intervention as Intervention
from mechrep.interventions.ops import Neurons as Neurons
from mechrep.interventions.ops import Op as Op
from mechrep.interventions.ops import SinkPatch as SinkPatch
from mechrep.interventions.ops import When as When
from mechrep.interventions.ops import add as add
from mechrep.interventions.ops import mean as mean
from mechrep.interventions.ops import resample as resample
from mechrep.interventions.ops import scale as scale
from mechrep.interventions.ops import to_bos as to_bos
from mechrep.interventions.ops import zero as zero
