"""Floor 2: making text, greedily or by sampling, each row of a batch under its own intervention."""

from mechrep.generation.decode import Decoding as Decoding
from mechrep.generation.decode import Request as Request
from mechrep.generation.decode import generate as generate
from mechrep.generation.loops import collect_loops as collect_loops
from mechrep.generation.loops import sample_prompts as sample_prompts
