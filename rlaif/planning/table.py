"""A plan as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from rlaif.planning.cluster import GIB, Node
from rlaif.planning.fitting import Actor, gpu_load, host_load
from rlaif.planning.memory import Item, total
from rlaif.planning.plan import Plan, Row
from rlaif.planning.seconds import ASSUMED

__all__ = ["table"]


def table(plan: Plan, name: str) -> list[str]:
    """The plan of the configuration called `name`: nodes, roles, memory, seconds, and what does not fit."""
    actors = [actor for row in plan.rows for actor in row.actors]
    nodes = plan.cluster.nodes
    lines = [f"plan of {name} on {plan.cluster.what}", "", *_grid(_role_lines(plan.rows, nodes)), "",
             "memory of one actor, GiB (~ estimate)", *_memory_lines(plan.rows)]
    if actors:
        lines += ["", *_grid(_node_lines(actors, nodes, plan.sleeps))]
    lines += ["", *_step_lines(plan)]
    lines += [f"warning: {text}" for text in plan.warnings]
    lines += [f"warning: {lack.told}" for lack in plan.shortages if not lack.is_known]
    lines += [f"does not fit: {text}" for text in [*plan.refusals, *(
        lack.told for lack in plan.shortages if lack.is_known)]]
    return lines if plan.refusals or plan.shortages else [*lines, "fits"]


def _role_lines(rows: Sequence[Row], nodes: Sequence[Node]) -> Iterator[list[str]]:
    yield ["role", "actors", "GPUs", "CPUs", "s a step", "where (node:GPUs)"]
    for row in rows:
        role = row.config
        seconds = "-" if row.seconds is None else f"{row.seconds:.3g}"
        yield [row.role, f"{role.num_actors}", f"{role.num_actors} x {role.num_gpus:g}" if role.num_gpus else "-",
               f"{role.num_actors} x {role.num_cpus:g}", seconds, _where(row.actors, nodes)]


def _where(actors: Sequence[Actor], nodes: Sequence[Node]) -> str:
    if not actors:
        return "no place"
    parts = []
    for node, group in groupby(sorted(actors, key=lambda actor: actor.node), key=lambda actor: actor.node):
        here = list(group)
        gpus = sorted({gpu for actor in here for gpu in actor.gpus})
        shown = f":{_ranges(gpus)}" if gpus else f" x {len(here)}" if len(here) > 1 else ""
        parts.append(nodes[node].name + shown)
    return "  ".join(parts)


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _memory_lines(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        kinds = Counter(actor.items for actor in row.actors)
        for items in kinds:
            for place, what in (("gpu", "GPU"), ("host", "host")):
                here = [item for item in items if item.place == place and item.bytes >= 0.005 * GIB]
                if here:
                    listed = " + ".join(map(_item, here))
                    yield f"  {row.role:<10} {what:<5}{total(items, place) / GIB:7.2f} = {listed}"
        if row.remark:
            yield f"  {'':<10} {row.remark}"


def _item(item: Item) -> str:
    return f"{item.name} {'' if item.is_known else '~'}{item.bytes / GIB:.2f}"


def _node_lines(actors: Sequence[Actor], nodes: Sequence[Node], sleeps: bool) -> Iterator[list[str]]:
    yield ["node", "pool", "GPUs", "fullest GPU", "memory", "actors"]
    for number, node in enumerate(nodes):
        here = [actor for actor in actors if actor.node == number]
        used = {gpu for actor in here for gpu in actor.gpus}
        kind = f" {node.gpu.name}" if node.gpu else ""
        fullest = max((gpu_load(here, number, gpu, sleeps) for gpu in used), default=0.0)
        room = f"{fullest / GIB:.1f} of {node.gpu.memory / GIB:.1f} GiB" if node.gpu and used else "-"
        counts = Counter(actor.role for actor in here)
        memory = "" if node.memory == float("inf") else f" of {node.memory / GIB:.0f}"
        yield [node.name, node.pool or "-", f"{len(used)} of {node.num_gpus}{kind}" if node.num_gpus else "-", room,
               f"{host_load(here, number) / GIB:.1f}{memory} GiB",
               ", ".join(f"{count} {role}" for role, count in counts.items()) or "none"]


def _step_lines(plan: Plan) -> Iterator[str]:
    load, flow = plan.load, plan.traffic
    how = f"asynchronous, max_staleness {plan.max_staleness}" if plan.max_staleness else "synchronous"
    yield (f"a step: {load.num_rows} completions of {load.completion_tokens} tokens to prompts of "
           f"{load.prompt_tokens}, {load.num_explanations} explanations of {load.explanation_tokens}")
    yield f"about {plan.step_s:.3g} s a step ({how}; sync {plan.sync_s:.2g} s); an estimate by arithmetic alone:"
    yield from (f"  {text}" for text in ASSUMED)
    yield (f"object store: about {flow.stored / 1e6:.3g} MB a step (batches {flow.batches / 1e6:.3g}, weights "
           f"{flow.weights / 1e6:.3g}), learners read {flow.read / 1e6:.3g} MB")


def _grid(rows: Iterator[list[str]]) -> list[str]:
    """Columns side by side; the last one as long as it is."""
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in cells]
