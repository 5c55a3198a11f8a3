"""What an evaluation of a reward model leaves behind: evaluation.json, evaluation.md and two plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rlaif.esfp.calibration import Bin
from rlaif.running.report import figure, write_json
from rlaif.statistics import Interval

__all__ = ["markdown", "write_evaluation"]


def write_evaluation(folder: str | Path, evaluation: Mapping[str, Any], *, bins: Sequence[Bin] = (),
                     scores: Mapping[str, Sequence[float]] | None = None) -> list[Path]:
    """Writes the files of an evaluation into `folder`, made if absent, and returns their paths.

        evaluation.json    `evaluation` and, under "reliability", the bins
        evaluation.md      the same as tables, see `markdown`
        reliability.png    accuracy over confidence, bin by bin; only where a bin has rows
        scores.png         one histogram of rewards for each name of `scores`; only where there are any

    evaluation: figures by name, nested as deep as `markdown` allows. bins: of `rlaif.esfp.calibration.reliability`.
    scores: rewards by name, such as "preferred" and "other", or one list a label.

    JSON has no NaN or infinity: they are written as the texts "nan", "inf" and "-inf", which float() reads. Raises
    ValueError: a score that is not finite, an evaluation that is too deep or has "reliability" itself.
    """
    folder = Path(folder)
    scores = {name: [float(score) for score in column] for name, column in (scores or {}).items() if len(column)}
    for name, column in scores.items():
        if not all(map(math.isfinite, column)):
            raise ValueError(f"scores of {name} must be finite, got "
                             f"{next(score for score in column if not math.isfinite(score))}")
    if "reliability" in evaluation:
        raise ValueError("evaluation must not have the name 'reliability', which holds the bins; give bins=")
    content, lines = _plain(evaluation), markdown(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "evaluation.json", folder / "evaluation.md"]
    write_json(paths[0], content | ({"reliability": _plain(bins)} if bins else {}))
    paths[1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, given, plot in (("reliability.png", [part for part in bins if part.count], _plot_reliability),
                              ("scores.png", scores, _plot_scores)):
        (folder / name).unlink(missing_ok=True)         # of an evaluation before
        if given:
            plot(folder / name, given)
            paths.append(folder / name)
    return paths


def markdown(evaluation: Mapping[str, Any]) -> list[str]:
    """The lines of a page: figures in a table of two columns, then a section for each mapping in it.

    A section whose entries are all mappings of figures is one table, a line an entry and a column a figure; any other
    is a page of its own, a level deeper. A figure is a number, a text, None or a `rlaif.statistics.Interval`. Raises
    ValueError for anything else.
    """
    return _page("Evaluation", evaluation, 1)[:-1]


def _page(title: str, entries: Mapping[str, Any], level: int) -> list[str]:
    """Each block of lines ends with an empty one."""
    if level > 6:
        raise ValueError(f"evaluation must be at most 5 mappings deep, got more at {title!r}")
    lines = [f"{'#' * level} {_cell(title)}", ""]
    figures = {name: value for name, value in entries.items() if not isinstance(value, Mapping)}
    if not entries:
        return [*lines, "nothing", ""]
    if not figures and level > 1 and all(_is_flat(value) for value in entries.values()):
        return [*lines, *_grid(entries), ""]
    if figures:
        lines += [*_table(["", "value"], list(figures.items())), ""]
    for name, value in entries.items():
        if isinstance(value, Mapping):
            lines += _page(name, value, level + 1)
    return lines


def _grid(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for entry in entries.values() for name in entry))
    return _table(["", *names], [[key, *(entry.get(name, "") for name in names)] for key, entry in entries.items()])


def _is_flat(value: Any) -> bool:
    return isinstance(value, Mapping) and not any(isinstance(part, Mapping) for part in value.values())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [[_cell(name) for name in head], ["---"] + ["---:"] * (len(head) - 1),
             *([_cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(value: Any) -> str:
    """One line of text that cannot end its cell; None is a dash."""
    if isinstance(value, Interval):
        return f"{_cell(value.low)} to {_cell(value.high)}"
    value = _plain(value)
    if isinstance(value, list):
        raise ValueError(f"an evaluation must hold no lists of figures, got {value}; name them in a mapping")
    if value is None:
        return "–"
    if isinstance(value, float):
        return figure(value)
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")


def _plain(value: Any) -> Any:
    """`value` of Python's own kinds alone, keys as texts; what is not finite as text."""
    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):                # a numpy number or array
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"an evaluation must hold numbers, texts, lists and mappings, got {type(value).__name__}")


def _plot_reliability(path: Path, bins: Sequence[Bin]) -> None:
    """Accuracy over mean confidence, and below it each bin's share of the rows; `bins` have rows."""
    from matplotlib.figure import Figure  # slow to import, and needed only here

    page = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = page.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], linestyle="--", color="grey", label="calibrated")
    top.plot([part.confidence for part in bins], [part.accuracy for part in bins], marker="o", label="model")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    top.legend(loc="upper left")
    num_rows = sum(part.count for part in bins)
    bottom.bar([part.low for part in bins], [part.count / num_rows for part in bins],
               width=[part.high - part.low for part in bins], align="edge", edgecolor="white")
    bottom.set(xlabel="confidence", ylabel="share of rows")
    page.savefig(path)


def _plot_scores(path: Path, scores: Mapping[str, Sequence[float]]) -> None:
    """Histograms over the same bins, each as shares of its own rows."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(6, 4), layout="constrained")
    axes = page.subplots()
    low, high = min(map(min, scores.values())), max(map(max, scores.values()))
    if low == high:
        low, high = low - 0.5, high + 0.5
    for name, column in scores.items():
        # A leading underscore would hide the name, and dollars would be read as a formula.
        axes.hist(column, bins=40, range=(low, high), weights=[1 / len(column)] * len(column), alpha=0.5,
                  label=f"{name} ({len(column)})".replace("$", r"\$").lstrip("_"))
    axes.set(xlabel="reward", ylabel="share of rows")
    axes.legend()
    page.savefig(path)
