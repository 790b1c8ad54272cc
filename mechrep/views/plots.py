"""All figures by name; each takes a result, returns a plotly figure, and shows nothing by itself."""

from mechrep.views.ablation_plots import ablation_curves_figure as ablation_curves_figure
from mechrep.views.ablation_plots import ablation_figure as ablation_figure
from mechrep.views.attention_plots import attention_map_figure as attention_map_figure
from mechrep.views.attention_plots import attention_maps_figure as attention_maps_figure
from mechrep.views.benchmark_plots import benchmark_figure as benchmark_figure
from mechrep.views.benchmark_plots import benchmark_table as benchmark_table
from mechrep.views.card_plots import history_figure as history_figure
from mechrep.views.first_token_plots import convergence_figure as convergence_figure
from mechrep.views.first_token_plots import detector_figure as detector_figure
from mechrep.views.first_token_plots import first_token_figure as first_token_figure
from mechrep.views.first_token_plots import head_cuts_figure as head_cuts_figure
from mechrep.views.first_token_plots import other_token_mass_figure as other_token_mass_figure
from mechrep.views.head_plots import head_scores_figure as head_scores_figure
from mechrep.views.head_plots import layer_profile_figure as layer_profile_figure
from mechrep.views.neuron_plots import plot_layer_distribution as plot_layer_distribution
from mechrep.views.neuron_plots import plot_onset_profile as plot_onset_profile
from mechrep.views.neuron_plots import plot_sorted_delta as plot_sorted_delta
from mechrep.views.repeat_plots import repeat_behaviour_figure as repeat_behaviour_figure
from mechrep.views.repeat_plots import text_against_repeats_figure as text_against_repeats_figure
from mechrep.views.sink_plots import norms_by_layer_figure as norms_by_layer_figure
from mechrep.views.sink_plots import norms_vs_repeats_figure as norms_vs_repeats_figure
from mechrep.views.sink_plots import sink_heads_figure as sink_heads_figure
from mechrep.views.sweep_plots import plot_perplexity as plot_perplexity
from mechrep.views.sweep_plots import plot_sweep as plot_sweep
