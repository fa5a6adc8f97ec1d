"""Where schedules stood in earlier versions: yamls and checkpoints still name `lightning_nlf.functional.Linear`."""

from lightning_nlf.maths.schedules import Linear as Linear
