"""Experiment tracking: every record goes to a journal in the run folder first, and from there to MLflow.

`logger.MLflowJournalLogger` is what a yaml names; `registry` keeps finished checkpoints by name; `provenance` says what
was run. `python -m lightning_nlf.tracking` replays runs made without a server. Nothing is imported here: the command
line must not pay for Lightning, nor a training for MLflow.
"""
