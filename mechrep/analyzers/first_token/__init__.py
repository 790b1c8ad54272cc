"""How the first layer tells the first token from all others: by whether other tokens stand before it."""

from mechrep.analyzers.first_token.convergence import first_layer_convergence as first_layer_convergence
from mechrep.analyzers.first_token.detectors import first_token_detectors as first_token_detectors
from mechrep.analyzers.first_token.find_first_token import find_first_token as find_first_token
from mechrep.analyzers.first_token.head_cuts import first_layer_head_cuts as first_layer_head_cuts
from mechrep.analyzers.first_token.other_tokens import FirstTokenDetection as FirstTokenDetection
