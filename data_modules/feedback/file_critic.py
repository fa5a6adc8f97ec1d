"""A feedback file as critic, of the replies that people criticised, or as reviser, of what they would have said."""

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
    """What people said of replies that are there, as `pull` writes it.

    As `critic` of `RevisionDataModule` it brings the attempts: each response that has a critique. Its tokens are those
    that were sampled, where `meta` kept them and the tokenizer is the same; else its text is encoded. The policy learns
    off its policy: others, or an earlier policy, wrote these replies. Objectives that compare with what was sampled
    (`learn: [attempts]`) take the policy's own log-probabilities at the time of the collection, so their ratios begin
    at 1 and do not correct for it; with a score, a policy gradient is biased by it. Responses without a critique are
    left out, as nobody knows whether they are right, and so are prompts without such a response; how many is said.

    As `reviser` it gives the `expected` response of each prompt, where there is one, whatever reply was criticised.

    A line belongs to the case of its `id` or of its prompt; system messages do not count.

    Args:
        path: of one file or of several.
        scale: lowest and highest score in the files.
    """

    def __init__(self, path: str | list[str], scale: Scale = (0.0, 1.0)) -> None:
        self.paths = [path] if isinstance(path, str) else list(path)
        self.scale = scale
        self.counters: dict[str, int] = {}  # it costs nothing
        self._critiques: dict[tuple[str, str], list[str]] = {}  # of a case and a reply, in the order of the lines

    def replies(self, cases: Sequence[Case], tokenizer: Tokenizer) -> list[GivenReply]:
        """`CriticOfGivenReplies.replies`.

        Raises:
            ValueError: a file that is wrong, a reply that the tokenizer cannot encode, or no critique at all.
        """
        given: list[GivenReply] = []
        for case in cases:
            of_case = each_line(self._of(case), lambda line, case=case: _criticised(line, case, tokenizer))  # type: ignore[misc]
            for reply, critique in (pair for pairs in of_case for pair in pairs):
                given.append(reply)
                self._critiques.setdefault((case.id, reply.text), []).append(critique)
        responses = sum(len(line.responses) for line in self._lines)
        left = len({case.id for case in cases} - {reply.case.id for reply in given})
        counts = (
            f"{len(given)} of {responses} responses in {', '.join(self.paths)} are criticised replies to prompts that "
            f"are trained on; {left} of {len(cases)} prompts have none and are left out"
        )
        if not given:
            raise ValueError(f"critic: {counts}; a line belongs to a prompt by its id, or by the prompt itself")
        rank_zero_info(f"critic: {counts}")
        return given

    def critiques(
        self, cases: Sequence[Case], replies: Sequence[str], seeds: Sequence[int], acting: Acting
    ) -> list[str | None]:
        """`Critic.critiques`: of a reply that has several, the one that its seed chooses."""
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
        """`Reviser.revisions`: the expected response; of several the one that the seed chooses."""
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
        """Lines by their id, and by their prompt."""
        named: dict[PromptText, list[Judgement]] = {}
        for line in self._lines:
            for name in {line.id, _bare(line.prompt)}:
                if name is not None:
                    named.setdefault(name, []).append(line)
        return named

    def _of(self, case: Case) -> list[Judgement]:
        """The lines of a case, each once."""
        lines = [*self._by_name.get(case.id, ()), *self._by_name.get(_bare(case.prompt), ())]
        return list({line.where: line for line in lines}.values())


def _criticised(line: Judgement, case: Case, tokenizer: Tokenizer) -> list[tuple[GivenReply, str]]:
    """The responses of a line that have a critique, and it."""
    pairs: list[tuple[GivenReply, str]] = []
    for place, text in enumerate(line.responses):
        critique = line.of("critique", place)
        if critique is not None:
            tokens, _ = reply_of(line, place, tokenizer, ())
            if tokens:
                pairs.append((GivenReply(case, text, tokens, line.finished(place)), critique))
    return pairs


def _bare(prompt: PromptText) -> PromptText:
    """Without system messages; a lone message of the user is its text."""
    if isinstance(prompt, str):
        return prompt
    turns: tuple[Message, ...] = tuple(each for each in prompt if each.role not in ("system", "developer"))
    return turns[0].content if len(turns) == 1 else turns
