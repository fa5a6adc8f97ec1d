"""Metrics of two sets of replies, worked by hand, and the page that shows them."""

import pytest

from data_modules.judgements.parsing import parse
from data_modules.text import WordTokenizer
from data_modules.text.changed_page import Compared, Section, write_pages
from data_modules.text.environment import Case
from data_modules.text.episode import Prompt
from data_modules.text.held_out_prompts import HeldOutLine, HeldOutPrompts
from data_modules.text.prompts import PromptFormat
from data_modules.text.start_replies import Reply, StartReplies, distinct_2, feedback_lines, figures, preference

EVIL = "<script>alert('x')</script> | **bold** \x1b[2J"


def reply(text, *tokens, score=None, ended=True):
    return Reply(text, [list(tokens)], [ended], score)


def prompt(id="a", text="say"):
    return Prompt(Case(id, text), [5])


def test_figures_by_hand():
    """Lengths 3 and 1 of the policy, 2 and 2 of the start; one of two replies changed; a win and a tie: ¾."""
    pairs = [
        (prompt("a"), reply("ant", 3, 1, score=0.1), reply("ant bee", 3, 4, 1, score=0.2)),
        (prompt("b"), reply("cow", 5, 1, score=0.5), reply("cow", 5, ended=False, score=0.5)),
    ]
    values = figures(pairs)
    assert (values["length"], values["start_length"], values["changed"]) == (2.0, 2.0, 0.5)
    assert values["unique"] == values["start_unique"] == 1.0
    assert values["win_rate"] == 0.75 and values["win_rate_low"] < 0.75 < values["win_rate_high"]
    assert figures([]) == {}


def test_repeated_replies_are_counted_once():
    repeats = [(prompt(str(i)), reply(str(i), 3, 4, 1), reply("x", 3, 4, 1)) for i in range(4)]
    assert figures(repeats)["unique"] == 0.25 and figures(repeats)["start_unique"] == 1.0


def test_distinct_2_counts_pairs_of_all_replies_and_no_end():
    """3 4 3 4 has the pairs 34 43 34, and 3 4 has 34: two of four are distinct. The stop token, 1, is in none."""
    assert distinct_2([reply("", 3, 4, 3, 4, 1), reply("", 3, 4, 1)]) == 0.5
    assert distinct_2([reply("", 3, 4, ended=False)]) == 1.0
    assert distinct_2([reply("", 3, 1)]) == 0.0
    turns = Reply("", [[3, 4, 1], [4, 3, 1]], [True, True], None)  # 34 and 43, and no 44 across the turns
    assert distinct_2([turns]) == 1.0


@pytest.mark.parametrize("start, policy, wins", [(0.1, 0.2, 1.0), (0.2, 0.2, 0.5), (0.3, 0.2, 0.0)])
def test_who_scores_more_wins(start, policy, wins):
    assert preference(reply("", 1, score=start), reply("", 1, score=policy)) == wins


def test_nobody_wins_where_nobody_pays():
    for pair in ((None, None), (0.1, None), (float("nan"), 0.1)):
        assert preference(*(reply("", 1, score=score) for score in pair)) is None
    assert "win_rate" not in figures([(prompt(), reply("a", 1), reply("b", 1))])


def test_the_start_is_kept_and_what_came_last_is_beside_it():
    replies, case = StartReplies(), [prompt("a")]
    replies.remember("greedy", {"a": [reply("ant", 3, 1)]}, step=0, iteration=0)
    assert replies.pairs("greedy", case) == []  # nothing was learned yet
    for step, text in ((2, "bee"), (4, "cow")):
        replies.remember("greedy", {"a": [reply(text, 4, 1)]}, step, step)
    ((_, start, policy),) = replies.pairs("greedy", case)
    assert (start.text, policy.text, replies.iteration) == ("ant", "cow", 4)
    resumed = StartReplies()
    resumed.load_state_dict(replies.state_dict())
    assert resumed.start == replies.start and resumed.pairs("greedy", case) == []


def test_lines_name_who_said_what_and_leave_out_what_is_empty():
    form = PromptFormat(WordTokenizer().fit(["say ant"]))
    pairs = [
        (prompt("a"), reply("ant", 3, 1), reply("bee", 4, ended=False)),
        (prompt("b"), reply("ant", 3, 1), reply(" ", 1)),
    ]
    (line,) = feedback_lines(pairs, form, "digest", "run")
    judgement = parse(line)
    assert (judgement.id, judgement.prompt, judgement.responses) == ("a", "say", ("ant", "bee"))
    assert judgement.meta == {
        "replies_of": ["start", "policy"],
        "finished": [True, False],
        "run": "run",
        "tokens": [[3, 1], [4]],
        "tokenizer": "digest",
    }


def test_what_a_judge_must_know_goes_along():
    form = PromptFormat(WordTokenizer().fit(["say ant"]))
    with_facts = Prompt(Case("a", "say", {"reference": "ant"}), [5])
    (line,) = feedback_lines([(with_facts, reply("ant", 3, 1), reply("bee", 4, 1))], form, "digest", "run")
    assert line["meta"]["facts"] == {"reference": "ant"}
    lines = [HeldOutLine("say", "ant", "one", {"reference": "ant"}), HeldOutLine("say", "bee", "two")]
    task = HeldOutPrompts({"val": [*lines, HeldOutLine("so", None, "one")]})
    first, second = task.cases("val")  # equal prompts are one case; an id that occurs twice is not used
    assert (first.prompt, first.facts, task.expected(first)) == ("say", {"reference": "ant"}, "ant")
    assert second.prompt == "so" and len({first.id, second.id}) == 2 and task.expected(second) is None
    assert task.cases("test") == [] and task.begin(first).reply("ant", True).reward is None


def section(*rows, left_out=0, **further):
    values = {f"{prefix}{name}": 1.0 for prefix in ("", "start_") for name in ("length", "distinct_2", "unique")}
    return Section("Greedy", values | {"changed": 0.5} | further, rows, left_out)


def test_what_a_model_says_is_shown_and_not_run(tmp_path):
    row = Compared(EVIL, EVIL, EVIL + "!", (0.25, 0.5), EVIL)
    markdown, html = (path.read_text() for path in write_pages([section(row)], "<run>", 3, tmp_path))
    assert "<script" not in html and html.count("&lt;script&gt;") == 4 and "\x1b" not in html + markdown
    assert "&lt;run&gt;: the start and the policy after iteration 3" in html
    cells = markdown.splitlines()[-1]
    assert cells.startswith(r"| \<script>") and cells.count(" | ") == 5 and r"\*\*bold\*\*" in cells
    assert "score 0.25" in html and "| 0.25 | 0.5 |" in cells


def test_a_page_says_who_wins_what_stayed_and_what_is_left_out(tmp_path):
    unchanged = Compared("say", "ant", "ant", None, None)
    won = section(unchanged, left_out=7, win_rate=0.625, win_rate_low=0.2195, win_rate_high=0.9081)
    markdown, html = (path.read_text() for path in write_pages([won], "run", 1, tmp_path))
    for page in (markdown, html):
        assert "50 % of the replies changed." in page and "7 more are not shown" in page
        assert "The policy wins 62 % against the start (95 % interval 22 % to 91 %, ties half)." in page
    assert "policy (the same)" in html
    assert "score" not in html.split("</style>")[1] and "expected" not in html.split("</style>")[1]
    assert "| prompt | start | policy |\n" in markdown
