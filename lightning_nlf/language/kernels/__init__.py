"""C++ kernels for language models on a CPU, compiled on the machine that runs them."""

from lightning_nlf.language.kernels.operations import add_norm as add_norm
from lightning_nlf.language.kernels.operations import attend_spans as attend_spans
from lightning_nlf.language.kernels.operations import attend_step as attend_step
from lightning_nlf.language.kernels.operations import draw as draw
from lightning_nlf.language.kernels.operations import fit as fit
from lightning_nlf.language.kernels.operations import gelu as gelu
from lightning_nlf.language.kernels.operations import log_prob_back as log_prob_back
from lightning_nlf.language.kernels.operations import log_sums as log_sums
