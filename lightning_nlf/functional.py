"""Old location of schedules, kept because earlier yamls and checkpoints name `lightning_nlf.functional.Linear`."""

from lightning_nlf.maths.schedules import Linear as Linear
