"""What a CPU spends its time on with language models, in C++ that is compiled on the machine where it runs."""

from lightning_nlf.kernels.operations import (
    add_norm,
    attend_spans,
    attend_step,
    draw,
    fit,
    gelu,
    log_prob_back,
    log_sums,
)

__all__ = ["add_norm", "attend_spans", "attend_step", "draw", "fit", "gelu", "log_prob_back", "log_sums"]
