"""The plan of a run: who lies where, what that takes, whether it fits, about how long a step is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlaif.config.checks import UserError
from rlaif.config.train import EngineConfig, RoleConfig, TrainConfig
from rlaif.planning.bundles import Place, groups, place, refuse_too_large
from rlaif.planning.cluster import Cluster, GpuKind, Node
from rlaif.planning.fitting import Actor, Shortage, shortages
from rlaif.planning.memory import (
    BYTES,
    Item,
    bucket_memory,
    engine_memory,
    kv_bytes,
    learner_memory,
    process,
    reader_memory,
)
from rlaif.planning.parts import JudgeShape, Parts, find_parts
from rlaif.planning.roles import judge_role, roles
from rlaif.planning.seconds import Load, generate_s, learn_s, load_of, read_s, sync_s
from rlaif.planning.shapes import Shape
from rlaif.planning.traffic import Traffic, traffic

__all__ = ["Plan", "Row", "make_plan"]


@dataclass(frozen=True)
class Row:
    """A role. actors: where each lies and what it takes, in order; empty where there is no place for them all. remark:
    what its memory allows, in words."""

    role: str
    config: RoleConfig
    actors: tuple[Actor, ...]
    seconds: float | None
    remark: str = ""


@dataclass(frozen=True)
class Plan:
    """refusals: why it cannot run, surely. shortages: what estimates leave no room for. warnings: what else to know."""

    cluster: Cluster
    rows: tuple[Row, ...]
    traffic: Traffic
    sync_s: float
    load: Load
    max_staleness: int
    sleeps: bool
    refusals: list[str] = field(default_factory=list)
    shortages: list[Shortage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def step_s(self) -> float:
        """Seconds of a step. The stages of a step overlap; with max_staleness > 0 the learners do with all of them:

            synchronous    max(rollout, explain, score) + learn + sync
            asynchronous   max(rollout, explain, score, learn) + sync
        """
        learn = sum(row.seconds or 0.0 for row in self.rows if row.role == "learner")
        others = max((row.seconds or 0.0 for row in self.rows if row.role != "learner"), default=0.0)
        return (max(others, learn) if self.max_staleness else others + learn) + self.sync_s

    def refuse(self, *, estimates: bool) -> None:
        """Raises UserError for the first thing that surely does not fit; with `estimates` also for what may not."""
        found = self.refusals + [lack.told for lack in self.shortages if lack.is_known or estimates]
        if found:
            more = f" (and {len(found) - 1} more, see above)" if len(found) > 1 else ""
            raise UserError(found[0] + more)


def make_plan(config: TrainConfig, cluster: Cluster) -> Plan:
    """The plan of `config` on `cluster`. Raises UserError for a model that is nowhere to be read."""
    parts = find_parts(config, cluster.models)
    wanted = roles(config, parts.explainer, parts.plan)
    refusals: list[str] = []
    places: list[Place] = []
    try:
        refuse_too_large(wanted, {"CPU": sum(node.num_cpus for node in cluster.nodes),
                                  "GPU": sum(node.num_gpus for node in cluster.nodes)})
        places = place(groups(wanted, config.placement.strategy), cluster.nodes)
    except UserError as error:
        refusals.append(str(error))
    load = load_of(config, parts)
    planner = _Planner(config, parts, load, wanted, cluster, places)
    rows = tuple(planner.row(name) for name in wanted)
    refusals += [text for name in wanted for text in planner.refusals(name)]
    actors = [actor for row in rows for actor in row.actors]
    learners = {actor.node for actor in actors if actor.role == "learner"}
    engines = {actor.node for actor in actors if actor.role == "rollout"}
    num_bytes = BYTES[config.learner.dtype] * parts.policy.num_weights
    flow = traffic(load, num_learner_nodes=len(learners), weight_bytes=num_bytes, backend=config.sync.backend)
    sleeps = config.rollout.engine.sleeps
    lacks = shortages(actors, cluster.nodes, sleeps)
    return Plan(cluster, rows, flow,
                sync_s(num_bytes, config.sync.backend, cluster.network, is_on_one_node=len(learners | engines) <= 1),
                load, config.pipeline.max_staleness, sleeps, refusals, lacks, planner.warnings(actors))


class _Planner:
    """What each role of a run takes."""

    def __init__(self, config: TrainConfig, parts: Parts, load: Load, wanted: Mapping[str, RoleConfig],
                 cluster: Cluster, places: Sequence[Place]) -> None:
        self._config, self._parts, self._load, self._roles = config, parts, load, wanted
        self._cluster, self._nodes = cluster, cluster.nodes
        self._judges = {judge_role(judge.part): judge for judge in parts.judges}
        self._engines = self._find_engines()
        self._where = {actor: lies for lies in places for actor in lies.bundle.actors}

    def _find_engines(self) -> dict[str, tuple[Shape, EngineConfig]]:
        found = {}
        if "rollout" in self._roles:
            found["rollout"] = (self._parts.policy, self._config.rollout.engine)
        if self._parts.explaining is not None:
            found["explainer"] = (self._parts.explaining, self._parts.explainer.engine)
        return found | {name: (judge.shape, judge.engine) for name, judge in self._judges.items()
                        if judge.engine is not None and judge.shape is not None}

    def row(self, name: str) -> Row:
        actors = tuple(self._actor(name, number) for number in range(self._roles[name].num_actors)
                       if (name, number) in self._where)
        return Row(name, self._roles[name], actors, self._seconds(name), self._remark(name))

    def _actor(self, name: str, number: int) -> Actor:
        lies = self._where[name, number]
        gpus = self._gpus_of(name, number, lies)
        items = self.items(name, self._nodes[lies.node].gpu) + self._buckets(name, number)
        return Actor(name, number, lies.node, gpus, tuple(items))

    def _buckets(self, name: str, number: int) -> list[Item]:
        """For weights on their way, where there is who sends and who receives."""
        has_any = name == "rollout" or (name, number) == ("learner", 0)
        if not has_any or not {"learner", "rollout"} <= self._roles.keys():
            return []
        return bucket_memory(self._parts.policy, self._config.sync, self._config.rollout.engine, name)

    def _gpus_of(self, name: str, number: int, lies: Place) -> tuple[int, ...]:
        """The GPUs of the bundle that are this actor's: all where they are shared, else those whose turn it is."""
        share = self._roles[name].num_gpus
        if share == 0:
            return ()
        if share % 1:
            return lies.gpus
        before = sum(int(self._roles[role].num_gpus) for role, _ in
                     lies.bundle.actors[: lies.bundle.actors.index((name, number))])
        return lies.gpus[before : before + int(share)]

    def _kind(self, name: str) -> GpuKind | None:
        """Of the GPUs that a role's first actor gets, or could get."""
        role = self._roles[name]
        if role.num_gpus == 0:
            return None
        lies = self._where.get((name, 0))
        nodes = self._nodes if lies is None else [self._nodes[lies.node]]
        pool = self._roles[role.beside].pool if role.beside in self._roles else role.pool
        return next((node.gpu for node in nodes if node.gpu and pool in (None, node.pool)), None)

    def items(self, name: str, gpu: GpuKind | None) -> list[Item]:
        """What one actor of the role takes, on a GPU of kind `gpu` where it has one."""
        config, has_gpu = self._config, self._roles[name].num_gpus > 0
        if has_gpu and gpu is None:     # of a kind that is not known
            return [item for item in process(True) if item.place == "host"]
        if name in self._engines:
            return engine_memory(*self._engines[name], gpu if has_gpu else None).items
        if name == "learner":
            return learner_memory(self._parts.policy, config.learner, self._roles[name].num_actors, has_gpu=has_gpu,
                                  reference=self._parts.reference, critic=self._parts.critic,
                                  max_row_tokens=config.rollout.engine.max_model_len)
        judge = self._judges.get(name)
        if judge is not None and judge.shape is not None:
            reward = judge.part.reward
            return reader_memory(judge.shape, reward.dtype, reward.max_tokens_per_batch, has_gpu=has_gpu)
        return process(has_gpu)

    def refusals(self, name: str) -> list[str]:
        """Why an engine of the role cannot start."""
        gpu = self._kind(name)
        if name not in self._engines or (gpu is None and self._roles[name].num_gpus):
            return []
        model, config = self._engines[name]
        engine, needed = engine_memory(model, config, gpu), kv_bytes(model, config) * config.max_model_len
        if engine.room >= needed:
            return []
        if gpu is None:
            return [f"{self._key(name)}.engine.kv_cache_mb must hold one sequence of max_model_len, got "
                    f"{config.kv_cache_mb} MiB for {config.max_model_len} tokens x {kv_bytes(model, config):.0f} bytes "
                    f"= {needed / (1 << 20):.0f} MiB; raise it, or lower max_model_len"]
        weights, budget = engine.items[0].bytes, config.gpu_memory_utilization * gpu.memory
        return [f"{self._key(name)}.engine must leave KV cache for one sequence of max_model_len, got "
                f"{config.gpu_memory_utilization:g} x {gpu.memory / 2**30:.1f} = {budget / 2**30:.1f} GiB a GPU for "
                f"weights {weights / 2**30:.1f} + KV cache {needed / 2**30:.2f} GiB; raise gpu_memory_utilization or "
                "tensor_parallel_size, or lower max_model_len"]

    def _key(self, name: str) -> str:
        return name if name in ("rollout", "explainer") else "reward"

    def _num_sequences(self, name: str) -> int:
        model, config = self._engines[name]
        return engine_memory(model, config, self._kind(name)).num_sequences

    def _remark(self, name: str) -> str:
        if name not in self._engines or (self._kind(name) is None and self._roles[name].num_gpus):
            return ""
        config = self._engines[name][1]
        about = "about " if self._roles[name].num_gpus else ""
        return f"KV cache for {about}{self._num_sequences(name)} sequences of {config.max_model_len} tokens at a time"

    def _seconds(self, name: str) -> float | None:
        role, gpu, load = self._roles[name], self._kind(name), self._load
        if role.num_gpus and gpu is None:
            return None
        if name == "learner":
            learner, algorithm = self._config.learner, self._config.algorithm
            tokens = load.num_rows * (load.prompt_tokens + load.completion_tokens)
            return learn_s(self._parts.policy, learner, algorithm, gpu, num_ranks=role.num_actors, num_tokens=tokens,
                           has_reference=self._config.algorithm.kl_coefficient > 0, critic=self._parts.critic,
                           num_threads=role.num_threads)
        if name in self._engines:
            rows, prompt, new = self._written(name)
            return generate_s(*self._engines[name], gpu, num_engines=role.num_actors, num_rows=rows,
                              prompt_tokens=prompt, new_tokens=new, num_sequences=self._num_sequences(name),
                              num_threads=role.num_threads)
        judge = self._judges.get(name)
        if judge is None or judge.shape is None:
            return None
        return read_s(judge.shape, gpu, num_actors=role.num_actors, num_tokens=load.num_rows * self._read_tokens(judge),
                      num_threads=role.num_threads)

    def _written(self, name: str) -> tuple[int, int, int]:
        """Rows of a step, tokens of a prompt and of an answer, of an engine's role."""
        load = self._load
        if name == "rollout":
            return load.num_rows, load.prompt_tokens, load.completion_tokens
        if name == "explainer":
            return load.num_explanations, load.question_tokens, load.explanation_tokens
        return load.num_rows, self._read_tokens(self._judges[name]), self._judges[name].new_tokens

    def _read_tokens(self, judge: JudgeShape) -> int:
        whole = self._load.prompt_tokens + self._load.completion_tokens + self._load.explanation_tokens
        return min(judge.tokens, whole)

    def warnings(self, actors: Sequence[Actor]) -> list[str]:
        """What runs, but not as one would think."""
        found = []
        for name in self._engines:
            gpu, config = self._kind(name), self._engines[name][1]
            if gpu is None and self._roles[name].num_gpus:
                continue
            rows = -(-self._written(name)[0] // self._roles[name].num_actors)
            wanted, held = min(config.max_num_seqs, rows), self._num_sequences(name)
            if held < wanted:
                found.append(f"{name}: the KV cache holds about {held} of the {wanted} sequences that could run at "
                             "once; the rest wait")
        unknown = sorted({self._nodes[actor.node].name for actor in actors
                          if self._roles[actor.role].num_gpus and self._nodes[actor.node].gpu is None})
        if unknown:
            found.append(f"GPUs of {', '.join(unknown)} are of a kind that is not known: their memory is not checked; "
                         "describe the cluster in a file for --plan")
        return found + _boundless(self._nodes)


def _boundless(nodes: Sequence[Node]) -> list[str]:
    names = [node.name for node in nodes if node.memory == float("inf")]
    return [f"memory of {', '.join(names)} is not known and not checked"] if names else []
