"""Draws the diagrams of the concepts page:  python docs/diagrams.py

They are SVG with a white ground; the site inverts them in its dark theme (`static/site.css`).
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "images"
INK, PALE, LINE = "#1f2937", "#6b7280", "#9ca3af"
LEARNER, EXPERT, DATA, MODEL = "#2563eb", "#ea580c", "#ecfdf5", "#eff6ff"
DATA_EDGE, MODEL_EDGE, BATCH = "#059669", "#2563eb", "#fef3c7"


class Drawing:
    """Shapes of a picture, in pixels from its upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="system-ui, sans-serif" font-size="15">',
            f"<title>{title}</title>",
            f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str, radius: int = 6) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{edge}"/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "middle", fill: str = INK, style: str = "") -> None:
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}" {style}>{text}</text>')

    def arrow(self, *points: tuple[float, float]) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'
        )

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def flow() -> str:
    """From the environment to the optimizer step, and back by the actor."""
    d = Drawing(640, 500, "An environment and a teacher fill a Batch; phases, minibatches and terms lead to a step")
    for x, name, fill, edge in ((10, "data_modules", DATA, DATA_EDGE), (370, "lightning_nlf", MODEL, MODEL_EDGE)):
        d.box(x, 10, 260, 480, fill, edge, 10)
        d.text(x + 14, 34, name, "start", edge, 'font-weight="bold" font-family="ui-monospace, monospace"')

    def stage(x: float, y: float, name: str, detail: str) -> None:
        d.box(x, y, 200, 54, "#ffffff", LINE)
        d.text(x + 100, y + 23, name, style='font-weight="bold"')
        d.text(x + 100, y + 43, detail, fill=PALE, style='font-size="13"')

    stage(40, 52, "environment", "simulator, or prompts")
    stage(40, 128, "teacher", "expert, judge, people")
    stage(40, 222, "collect", "episodes, or replies")
    stage(40, 326, "minibatches", "groups stay whole")
    stage(400, 52, "networks", "policy, value")
    stage(400, 222, "phases", "masks, rewards, credit")
    stage(400, 326, "terms", "one value for each step")
    stage(400, 416, "module, Trainer", "mean, weight, sum, step")
    d.arrow((140, 106), (140, 128))
    d.arrow((140, 182), (140, 222))
    d.arrow((400, 79), (320, 79), (320, 236), (240, 236))
    d.box(286, 128, 68, 46, "#ffffff", "#ffffff")
    d.text(320, 148, "Actor:", style='font-size="14"')
    d.text(320, 166, "act()", style='font-size="14"')
    d.arrow((240, 260), (400, 260))
    d.box(289, 246, 62, 28, BATCH, "#d97706")
    d.text(320, 265, "Batch", style='font-weight="bold"')
    d.arrow((500, 276), (500, 301), (140, 301), (140, 326))
    d.arrow((240, 353), (400, 353))
    d.arrow((500, 380), (500, 416))
    d.arrow((600, 443), (615, 443), (615, 79), (600, 79))
    return d.svg()


STEPS = 12
CASES = (  # who acts at each step (L learner, E expert, . padding), and where the expert's choice is known
    ("Policy gradient", "LLLLLLLLLL..", ""),
    ("Joint: labels on the learner's own states", "LLLLLLLLLL..", "LLLLLLLLLL.."),
    ("Injection: the expert takes over for four steps", "LLLEEEELLL..", "...EEEE....."),
    ("Behaviour cloning, or a label buffer", "EEEEEEEEEE..", "EEEEEEEEEE.."),
)


def masks() -> str:
    """Which masks are True at the steps of one row, by method."""
    cell, left, height = 30, 130, 134
    d = Drawing(left + STEPS * cell + 16, height * len(CASES) + 44, "Masks of a row, by method")
    for number, (name, actors, labels) in enumerate(CASES):
        top = number * height + 12
        d.text(10, top + 14, name, "start", style='font-weight="bold"')
        expert_mask = [step < len(labels) and labels[step] != "." for step in range(STEPS)]
        rows = {
            "who acts": [{"L": LEARNER, "E": EXPERT}.get(actor) for actor in actors],
            "valid": [PALE if actor != "." else None for actor in actors],
            "mask": [LEARNER if actor == "L" else None for actor in actors],
            "expert_mask": [EXPERT if true else None for true in expert_mask],
        }
        for line, (label, colours) in enumerate(rows.items()):
            y = top + 24 + line * 24
            font = "" if label == "who acts" else 'font-family="ui-monospace, monospace" font-size="14"'
            d.text(left - 12, y + 15, label, "end", style=font)
            for step, colour in enumerate(colours):
                d.box(left + step * cell, y, cell - 3, 20, colour or "#ffffff", colour or "#d1d5db", 3)
    y = height * len(CASES) + 14
    for x, colour, label in ((130, LEARNER, "learner"), (230, EXPERT, "expert"), (320, "#ffffff", "False, or padding")):
        d.box(x, y, 20, 16, colour, colour if colour != "#ffffff" else "#d1d5db", 3)
        d.text(x + 27, y + 13, label, "start", style='font-size="14"')
    return d.svg()


DIAGRAMS = {"flow.svg": flow, "masks.svg": masks}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
