"""Natural loops against induced copying, by intervention: cutting heads, patching them, and writing texts again."""

from mechrep.studies.contrast.ablation import ablation_contrast as ablation_contrast
from mechrep.studies.contrast.dissociation import head_dissociation as head_dissociation
from mechrep.studies.contrast.patching import patching_contrast as patching_contrast
from mechrep.studies.contrast.regenerated import agreement as agreement
from mechrep.studies.contrast.regenerated import regenerated_contrast as regenerated_contrast
from mechrep.studies.contrast.result import HeadContrastResult as HeadContrastResult
