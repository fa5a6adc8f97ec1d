"""Attention and GELU of language models on a CPU, in C++ that is compiled on the machine where it runs."""

from lightning_nlf.kernels.operations import attend_spans, attend_step, fit, gelu

__all__ = ["attend_spans", "attend_step", "fit", "gelu"]
