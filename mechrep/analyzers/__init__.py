"""Floor 3: analyzers, each of which turns activations into one frozen result."""

from mechrep.analyzers.neurons import RepetitionNeuronResult as RepetitionNeuronResult
from mechrep.analyzers.neurons import RepetitionNeurons as RepetitionNeurons
