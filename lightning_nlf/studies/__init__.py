"""Studies: compare arms, each a yaml with changes, over seeds, with tuning and report seeds kept apart."""
