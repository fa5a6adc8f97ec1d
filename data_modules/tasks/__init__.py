"""Built-in text tasks with rules that score replies, to compare methods on. Yamls use `data_modules.text`."""

from data_modules import text as text  # `text` exports the tasks, so it must be imported first
