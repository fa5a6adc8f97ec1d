"""Tasks with rules of their own, on which methods are compared. Yamls name them by `data_modules.text`."""

from data_modules import text as text  # it exports the tasks, so it comes first whichever of the two is imported
