from data_modules.feedback.files import read as read
from data_modules.feedback.files import write as write
from data_modules.feedback.schema import Judgement as Judgement
