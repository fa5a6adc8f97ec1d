"""Critic and reviser that read people's critiques and expected responses from feedback files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_modules.feedback.replies import reply_of
from data_modules.judgements.fields import Scale
from data_modules.judgements.files import each_line, read_all
from data_modules.judgements.schema import Judgement, Message, PromptText
from data_modules.text.critics import UNHEARD, Acting, GivenReply
from data_modules.text.environment import Case
from data_modules.text.tokenizer import Tokenizer
from data_modules.text.writer import Written


class FileCritic:
    """Critiques and expected responses from feedback files, such as those that `pull` writes.

    As `critic` of `RevisionDataModule`, a `FileCritic` also provides the attempts: every response that has a critique.
    An attempt has the tokens that were sampled if `meta` holds them and the tokenizer is the same; otherwise the text
    is encoded.

    Learning from these attempts is off-policy, because an earlier policy or another author wrote the replies.
    Objectives with importance ratios (`learn: [attempts]`) use the policy's log-probabilities at collection, so the
    ratios start at 1 and do not correct for the difference. A policy gradient on scores is therefore biased. Responses
    without a critique are left out, because nobody has judged them. Prompts without a criticised response are left out
    too, and their number is logged.

    As `reviser`, a `FileCritic` gives the `expected` response of each prompt that has one, whichever reply was
    criticised.

    A line of the file belongs to the case that has the same `id` or the same prompt. System messages are ignored when
    prompts are compared.

    Args:
        path: one or more feedback files.
        scale: lowest and highest possible score in the files.
    """

    def __init__(self, path: str | list[str], scale: Scale = (0.0, 1.0)) -> None:
        self.paths = [path] if isinstance(path, str) else list(path)
        self.scale = scale
        self.counters: dict[str, int] = {}  # empty, because reading a file makes no teacher calls
        self._critiques: dict[tuple[str, str], list[str]] = {}  # (case id, reply) → critiques in the order of the lines

    def replies(self, cases: Sequence[Case], tokenizer: Tokenizer) -> list[GivenReply]:
        """See `CriticOfGivenReplies.replies`.

        Raises:
            ValueError: a file has an error, the tokenizer cannot encode a reply, or there is no critique at all.
        """
        given_replies: list[GivenReply] = []
        for case in cases:
            of_case = each_line(self._of(case), lambda line, case=case: _criticised(line, case, tokenizer))  # type: ignore[misc]
            for reply, critique in (pair for pairs in of_case for pair in pairs):
                given_replies.append(reply)
                self._critiques.setdefault((case.id, reply.text), []).append(critique)
        responses = sum(len(line.responses) for line in self._lines)
        left = len({case.id for case in cases} - {reply.case.id for reply in given_replies})
        counts = (
            f"{len(given_replies)} of {responses} responses in {', '.join(self.paths)} have a critique and a training "
            f"prompt; {left} of {len(cases)} prompts have no such response and are left out"
        )
        if not given_replies:
            raise ValueError(f"critic: {counts}; give each line the id or the exact prompt of a case")
        rank_zero_info(f"critic: {counts}")
        return given_replies

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """See `Critic.critiques`. If a reply has several critiques, the seed selects one."""
        critiques: list[str | None] = []
        for case, reply, seed in zip(cases, replies, seeds, strict=True):
            matches = self._critiques.get((case.id, reply), [UNHEARD])
            text = matches[seed % len(matches)]
            critiques.append(None if text == acting.words.praise else text)
        return critiques

    def revisions(
        self,
        cases: Sequence[Case],
        replies: Sequence[str],
        critiques: Sequence[str],
        seeds: Sequence[int],
        acting: Acting,
    ) -> list[Written | None]:
        """See `Reviser.revisions`. It returns the expected response; if there are several, the seed selects one."""
        texts: list[Written | None] = []
        for case, seed in zip(cases, seeds, strict=True):
            matches = [line.expected for line in self._of(case) if line.expected is not None]
            texts.append(Written(matches[seed % len(matches)]) if matches else None)
        return texts

    @cached_property
    def _lines(self) -> list[Judgement]:
        return read_all(self.paths, self.scale)

    @cached_property
    def _by_name(self) -> dict[PromptText, list[Judgement]]:
        """The lines of the files by id, and again by prompt."""
        lines_by_name: dict[PromptText, list[Judgement]] = {}
        for line in self._lines:
            for name in {line.id, _bare(line.prompt)}:
                if name is not None:
                    lines_by_name.setdefault(name, []).append(line)
        return lines_by_name

    def _of(self, case: Case) -> list[Judgement]:
        """The lines that belong to a case, without repetition."""
        lines = [*self._by_name.get(case.id, ()), *self._by_name.get(_bare(case.prompt), ())]
        return list({line.where: line for line in lines}.values())


def _criticised(line: Judgement, case: Case, tokenizer: Tokenizer) -> list[tuple[GivenReply, str]]:
    """The criticised responses of a line, each with its critique."""
    pairs: list[tuple[GivenReply, str]] = []
    for place, text in enumerate(line.responses):
        critique = line.of("critique", place)
        if critique is not None:
            tokens, _ = reply_of(line, place, tokenizer, ())
            if tokens:
                pairs.append((GivenReply(case, text, tokens, line.finished(place)), critique))
    return pairs


def _bare(prompt: PromptText) -> PromptText:
    """The prompt without system messages; a single user message becomes a text."""
    if isinstance(prompt, str):
        return prompt
    turns: tuple[Message, ...] = tuple(message for message in prompt if message.role not in ("system", "developer"))
    return turns[0].content if len(turns) == 1 else turns
