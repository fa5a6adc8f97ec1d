from data_modules.tasks.answers.environment import SourcedAnswers as SourcedAnswers
