"""Tables of `own_model.py`."""

from __future__ import annotations

from typing import Any

WARM = 1  # optimizer steps that are not timed
TITLES = {
    "trl": "TRL, its default (gradient checkpointing)",
    "trl-open": "TRL, without gradient checkpointing",
    "trl-lean": "TRL, gradient checkpointing, one row or pair at a time",
    "decoder": "ours, TransformerPolicy",
    "huggingface": "ours, HuggingFacePolicy",
}
SECTIONS = {
    "sft-full": "SFT, all weights",
    "sft-lora": "SFT, LoRA",
    "dpo-full": "DPO, all weights",
    "dpo-lora": "DPO, LoRA",
}
TIMES = " CPU-s a step | s a step |"
QUIET = 1.0  # load
Cells = dict[str, dict[str, Any]]


def seconds(cell: dict[str, Any], clock: str) -> float:
    """Mean of the timed optimizer steps. Args: clock: "cpu" or "wall"."""
    times = cell[clock][WARM - 1 :]
    return (times[-1] - times[0]) / (len(times) - 1)


def gigabytes(cell: dict[str, Any], peak: str) -> float:
    return cell[peak] * 1024 / 1e9


def line(cell: dict[str, Any]) -> str:
    """One cell as a line for the terminal."""
    peaks = f"{gigabytes(cell, 'process_peak_kib'):.2f} GB ({gigabytes(cell, 'peak_kib'):.2f} by the last step)"
    losses = ", ".join(f"{loss:.4f}" for loss in cell["losses"])
    return f"{peaks}, {seconds(cell, 'cpu'):.2f} CPU-s, {seconds(cell, 'wall'):.2f} s a step; losses {losses}"


def report_text(cells: Cells) -> str:
    parts = [_section(cells, section, title) for section, title in SECTIONS.items()]
    parts += [_claims(cells), _checks(cells), _machine(cells)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _timed(cells: Cells) -> bool:
    """Whether the machine was quiet enough for times to be meaningful."""
    return all(cell["load"] < QUIET for cell in cells.values())


def _section(cells: Cells, section: str, title: str) -> str:
    timed = _timed(cells)
    rows = [f"**{title}**", "", "| what | peak memory, GB | of that by the last step |" + TIMES * timed]
    rows.append("| --- | --- | --- |" + " --- | --- |" * timed)
    for side, label in TITLES.items():
        if cell := cells.get(f"{section}/{side}"):
            peaks = " | ".join(f"{gigabytes(cell, peak):.2f}" for peak in ("process_peak_kib", "peak_kib"))
            times = "".join(f" {seconds(cell, clock):.2f} |" for clock in ("cpu", "wall") if timed)
            rows.append(f"| {label} | {peaks} |{times}")
    return "\n".join(rows) if len(rows) > 4 else ""


def _claims(cells: Cells) -> str:
    """Ratios of ours to TRL's best mode: memory until the last step, because TRL saves nothing, and CPU time."""
    timed = _timed(cells)
    rows = ["| ours ÷ TRL's best mode | peak memory by the last step | no higher |" + " CPU-s a step |" * timed]
    rows.append("| --- | --- | --- |" + " --- |" * timed)
    for section, title in SECTIONS.items():
        peers = [cells[name] for side in TITLES if (name := f"{section}/{side}") in cells and side.startswith("trl")]
        for side in ("decoder", "huggingface"):
            if (ours := cells.get(f"{section}/{side}")) and peers:
                memory = ours["peak_kib"] / min(peer["peak_kib"] for peer in peers)
                time = seconds(ours, "cpu") / min(seconds(peer, "cpu") for peer in peers)
                verdict = "yes" if memory <= 1 else "no"
                cells_before = f"| {title}, {TITLES[side].removeprefix('ours, ')} | {memory:.2f} | {verdict} |"
                rows.append(cells_before + f" {time:.2f} |" * timed)
    return "\n".join(rows) if len(rows) > 2 else ""


def _checks(cells: Cells) -> str:
    checks = []
    for objective in ("sft", "dpo"):
        losses = {
            side: cells[name]["losses"][-1] for side in TITLES if (name := f"check-{objective}-full/{side}") in cells
        }
        if losses:
            checks.append(f"{objective.upper()} " + ", ".join(f"{loss:.4f} ({side})" for side, loss in losses.items()))
    return f"Loss of a second step on the same two rows or pairs: {'; '.join(checks)}." if checks else ""


def _machine(cells: Cells) -> str:
    machines = "; ".join(sorted({f"{cell['machine']}, torch {cell['torch']}" for cell in cells.values()}))
    loads = [cell["load"] for cell in cells.values()] or [0.0]
    return (
        "SmolLM2-135M-Instruct, fp32, 4 rows or pairs of about 280 tokens a step, one seed, mean of two steps; "
        f"a process a cell, one thread; {machines}; load of the machine when a cell began {min(loads)}–{max(loads)}; "
        "`python benchmarks/own_model.py`."
    )
