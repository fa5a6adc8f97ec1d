"""Fine-tuning compared with TRL: a cell is a measured fit, and ours is compared with TRL's best mode."""

import math
import sys

import pytest

pytest.importorskip("transformers")

import transformers

from benchmarks import own_model
from benchmarks.own_model import Cell
from benchmarks.side_by_side import own_model_ours, own_model_report
from benchmarks.side_by_side.own_model_rows import pairs
from tests.data_modules.text.chats import SHAPES, folder

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a Llama with random weights."""
    path = folder(tmp_path_factory.mktemp("tiny"), SHAPES["chatml"], "bytes")
    config = transformers.LlamaConfig(vocab_size=512, max_position_embeddings=4096, **SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("cell", [Cell("sft", "full", "decoder", True), Cell("dpo", "lora", "huggingface", True)])
def test_a_cell_of_ours_is_a_fit_whose_steps_are_measured(cell, tiny):
    figures = own_model.measured(cell, tiny)
    first, second = figures["losses"]
    # an untrained model gives about equal probability to all tokens, and exactly equal preference to both replies
    expected = (
        pytest.approx(math.log(512), rel=0.1) if cell.objective == "sft" else pytest.approx(math.log(2), abs=1e-6)
    )
    assert first == expected
    assert second < first
    assert figures["process_peak_kib"] >= figures["peak_kib"] > 0
    assert figures["cpu"] == sorted(figures["cpu"]) and len(figures["wall"]) == 2


class Failing(Cell):
    def command(self, model, folder):
        return [sys.executable, "-c", "import sys; sys.exit('no such model')"]


def test_a_cell_that_fails_says_what_its_process_wrote():
    with pytest.raises(RuntimeError, match="no such model"):
        own_model.measured(Failing("sft", "full", "decoder"), "nowhere")


def test_every_cell_has_a_name_of_its_own_and_every_step_rows_of_its_own():
    names = [cell.name for cell in own_model.cells()]
    assert len(set(names)) == len(names) == 4 * 5 + 2 * 4
    assert own_model.TIMED["steps"] * own_model.TIMED["rows"] == own_model.TIMED["count"]
    replies = [reply for pair in pairs(own_model.TIMED["count"]) for reply in (pair.chosen, pair.rejected)]
    assert len(set(replies)) == 2 * own_model.TIMED["count"]
    assert pairs(2) == pairs(12)[:2]


def test_the_timed_rows_train_in_as_many_steps_of_as_many_rows(tmp_path):
    data = own_model_ours.config("decoder", Cell("dpo", "full", "decoder").settings("m"), tmp_path)["data"]["init_args"]
    assert (data["minibatches"], data["passes"]) == (3, 1)
    data = own_model_ours.config("decoder", Cell("dpo", "full", "decoder", True).settings("m"), tmp_path)["data"]
    assert (data["init_args"]["minibatches"], data["init_args"]["passes"]) == (1, 2)


def cell(peak_gb: float, *cpu: float, loss: float = 1.0) -> dict:
    kib = round(peak_gb * 1e9 / 1024)
    figures = {"peak_kib": kib, "process_peak_kib": kib, "cpu": list(cpu), "wall": list(cpu), "losses": [loss]}
    return figures | {"load": 0.1, "machine": "2 cores", "torch": "2"}


def test_ours_is_compared_with_the_better_of_trls_two_in_memory_and_in_time():
    cells = {
        "sft-full/trl": cell(2.0, 5, 15, 25),  # 10 s per step after the first
        "sft-full/trl-open": cell(4.0, 5, 13, 21),  # 8
        "sft-full/decoder": cell(2.5, 9, 13, 17),  # 4
    }
    text = own_model_report.report_text(cells)
    assert "| SFT, all weights, TransformerPolicy | 1.25 | no | 0.50 |" in text
    assert "| TRL, without gradient checkpointing | 4.00 | 4.00 | 8.00 | 8.00 |" in text
    assert "DPO" not in text
