"""Wrong calls of the Python interface, and of each the error it must give and a word that names the right thing.

Wrong kinds and bounds of single arguments are not written here: ``signatures.py`` makes them of every public function
from its annotations.  Here stands what only somebody who knows the function can get wrong.
"""

from tests.badinput import of_models, of_reading, of_results, of_studies, of_texts, of_writing
from tests.badinput.case import CASES as CASES
from tests.badinput.case import Case as Case

PARTS = (of_models, of_texts, of_reading, of_writing, of_results, of_studies)  # importing them fills the table
