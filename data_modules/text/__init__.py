from data_modules.text.data_module import TextDataModule as TextDataModule
from data_modules.text.model_tokenizer import FolderTokenizer as FolderTokenizer
from data_modules.text.sourced_answers import SourcedAnswers as SourcedAnswers
from data_modules.text.tokenizer import BPETokenizer as BPETokenizer
from data_modules.text.tokenizer import ByteTokenizer as ByteTokenizer
from data_modules.text.tokenizer import WordTokenizer as WordTokenizer
from data_modules.text.tokens import TokenTaskDataModule as TokenTaskDataModule
