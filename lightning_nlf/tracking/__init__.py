"""Experiment tracking: every record is written to a journal in the run folder first, and then sent to MLflow.

A yaml uses `logger.MLflowJournalLogger`. `registry` stores finished checkpoints by name, and `provenance` describes the
code and the machine. `python -m lightning_nlf.tracking` sends the records of runs that had no server.

This file imports nothing, so that commands do not wait for Lightning, and training does not wait for MLflow.
"""
