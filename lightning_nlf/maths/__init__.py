from lightning_nlf.maths.schedules import Linear as Linear
