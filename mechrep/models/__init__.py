"""Floor 1: models as they are loaded, what they are made of, and the two views that compute."""

import warnings

# Libraries below import tqdm.auto, which warns in every notebook without ipywidgets; mechrep's own bars need none.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tqdm.auto  # noqa: F401
