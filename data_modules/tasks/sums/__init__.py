from data_modules.tasks.sums.environment import ArithmeticSteps as ArithmeticSteps
