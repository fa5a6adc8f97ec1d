"""Served model as the simulated user in dialogues."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.feedback.providers.answer import Unanswered
from data_modules.feedback.providers.client import Client, waited_for
from data_modules.feedback.providers.endpoint import Endpoint
from data_modules.feedback.providers.questions import ask_and_read, words
from data_modules.judgements.schema import Message
from data_modules.text.templates import refuse_template
from data_modules.text.users import END, INSTRUCTION, conversation_text, unless_ended
from lightning_nlf.batch import TeacherStopped
from lightning_nlf.numbers import NonNegative, Size


class EndpointUser:
    """Simulated user behind an endpoint, with cached messages. A conversation ends if the model gives no answer.

    Args:
        endpoint: the served model, with a budget for each process.
        instruction, end: see `ModelUser`.
        max_tokens: maximum number of tokens in a message.
        temperature: sampling temperature.

    Raises:
        ValueError: the instruction lacks the place `{conversation}`.
        TeacherStopped: in `next_message`, if the budget is spent or no server answers.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        instruction: str = INSTRUCTION,
        end: str = END,
        max_tokens: Size = 128,
        temperature: NonNegative = 0.0,
    ) -> None:
        refuse_template("user.instruction", instruction, ("conversation",), ("end",))
        self.client = Client(endpoint)
        self.instruction, self.end = instruction, end
        self.max_tokens, self.temperature = max_tokens, temperature

    def next_message(self, messages: Sequence[Message]) -> str | None:
        """See `User.next_message`."""
        question = self.instruction.format(conversation=conversation_text(messages), end=self.end)
        answer = waited_for(self._answer(question))
        if self.client.budget.stopped:
            raise TeacherStopped(f"user: {self.client.budget.stopped}")
        return None if answer is None else unless_ended(answer, self.end)

    async def _answer(self, question: str) -> str | None:
        async with self.client:
            try:
                return await ask_and_read(self.client, words, question, self.max_tokens, self.temperature)
            except Unanswered:
                return None
