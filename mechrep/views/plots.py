"""All figures by name; each takes a result, returns a plotly figure, and shows nothing by itself."""

from mechrep.views.neuron_plots import plot_layer_distribution as plot_layer_distribution
from mechrep.views.neuron_plots import plot_onset_profile as plot_onset_profile
from mechrep.views.neuron_plots import plot_sorted_delta as plot_sorted_delta
from mechrep.views.sweep_plots import plot_perplexity as plot_perplexity
from mechrep.views.sweep_plots import plot_sweep as plot_sweep
