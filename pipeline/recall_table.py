"""Recalls as text: a table for the terminal, and a row of LaTeX."""

from matcher.metrics import RetrievalMetrics

Chances = dict[str, dict[str, float]]  # protocol -> recall -> percent
Intervals = dict[str, tuple[float, float]]  # recall -> percent, percent
LATEX = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"})


def table(protocols: dict[str, RetrievalMetrics], chances: Chances, intervals: Intervals) -> str:
    """Recalls in percent, median and mean rank, and rsum, one protocol a line; below it 95% intervals and chance."""
    head = f"{'':26}{'caption retrieval':^33}  {'image retrieval':^33}\n"
    head += f"{'':26}" + 2 * f"{'R@1':>6}{'R@5':>6}{'R@10':>6}{'median':>7}{'mean':>8}  " + f"{'rsum':>6}"
    lines = [head]
    for name, metrics in protocols.items():
        cells = [
            f"{task.r1:6.1f}{task.r5:6.1f}{task.r10:6.1f}{task.median:7.0f}{task.mean:8.1f}  "
            for task in (metrics.caption_retrieval, metrics.image_retrieval)
        ]
        lines.append(f"{name:26}{''.join(cells)}{metrics.rsum:6.1f}")
        if intervals and name == next(iter(protocols)):
            lines += [
                _recall_line(f"  95% {word}", {k: v[end] for k, v in intervals.items()})
                for end, word in enumerate(("from", "to"))
            ]
        if name in chances:
            lines.append(_recall_line("  by chance", chances[name]))
    return "\n".join(lines)


def _recall_line(name: str, values: dict[str, float]) -> str:
    tasks = (
        "".join(f"{values[f'{task}_r{k}']:6.1f}" for k in (1, 5, 10))
        for task in ("caption_retrieval", "image_retrieval")
    )
    return f"{name:26}" + "".join(f"{cells}{'':17}" for cells in tasks) + f"{values['rsum']:6.1f}"


def latex_row(name: str, metrics: RetrievalMetrics) -> str:
    """Name & R@1 & R@5 & R@10 of both tasks & rsum, as tables of the field have them."""
    tasks = (metrics.caption_retrieval, metrics.image_retrieval)
    cells = [f"{value:.1f}" for task in tasks for value in (task.r1, task.r5, task.r10)]
    return " & ".join([name.translate(LATEX), *cells, f"{metrics.rsum:.1f}"]) + r" \\"
