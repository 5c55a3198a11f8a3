"""Bundles: what Ray reserves on one node for one actor, or for actors that share it; and where Ray would put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.config.checks import UserError
from rlaif.config.train import RoleConfig
from rlaif.planning.cluster import Node

__all__ = ["Bundle", "Group", "Place", "Roles", "groups", "place", "refuse_too_large"]

Roles = Mapping[str, RoleConfig]
_UNIT = 10_000      # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Bundle:
    """Resources on one node, and the actors (role, number) that live on them."""

    num_cpus: float
    num_gpus: float
    pool: str | None
    actors: tuple[tuple[str, int], ...]

    @property
    def resources(self) -> dict[str, float]:
        """As Ray takes it."""
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})

    def __str__(self) -> str:
        names = " + ".join(f"{role}-{number}" for role, number in self.actors)
        pool = f", pool {self.pool}" if self.pool else ""
        return f"{names} ({self.num_cpus:g} CPUs, {self.num_gpus:g} GPUs{pool})"


@dataclass(frozen=True)
class Group:
    """A placement group."""

    strategy: str
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Place:
    """Where a bundle lies: number of the node, and of its GPUs there."""

    bundle: Bundle
    node: int
    gpus: tuple[int, ...]


def refuse_too_large(roles: Roles, resources: Mapping[str, float]) -> None:
    """Raises UserError if `roles` together ask for more CPUs or GPUs than `resources` has, with the sum per role."""
    for resource, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needs = {name: role.num_actors * getattr(role, field) for name, role in roles.items()}
        total, there = sum(needs.values()), resources.get(resource, 0.0)
        if total > there + 1e-6:
            parts = " + ".join(f"{name} {roles[name].num_actors} x {getattr(roles[name], field):g}" for name in roles)
            raise UserError(f"placement must fit into the cluster's {there:g} {resource}s, got {total:g} ({parts}); "
                            f"lower placement.*.num_actors or placement.*.{field}")


def groups(roles: Roles, strategy: str) -> list[Group]:
    """The placement groups of `roles`: one by `strategy`, and one for each role with a strategy of its own.

    An actor has a bundle of its own, in the order of `roles`. The actors of a role that is `beside` another lie in that
    one's bundles, as many in each: whole GPUs side by side, or fractions of the same GPU.
    """
    own: dict[str, Group] = {}
    shared: list[Bundle] = []
    for name, role in roles.items():
        if role.beside is not None:
            _refuse_misfit(name, roles)
            continue
        guests = {other: config for other, config in roles.items() if config.beside == name}
        bundles = [_bundle(name, number, role, guests) for number in range(role.num_actors)]
        if role.strategy is None:
            shared += bundles
        else:
            own[name] = Group(role.strategy, tuple(bundles))
    return [Group(strategy, tuple(shared))] * bool(shared) + list(own.values())


def _refuse_misfit(name: str, roles: Roles) -> None:
    role, host = roles[name], roles.get(str(roles[name].beside))
    if host is None or host.beside is not None:
        others = ", ".join(other for other, config in roles.items() if config.beside is None)
        raise UserError(f"placement.{name}.beside must be a role of this run that is beside none itself ({others}), "
                        f"got {role.beside!r}")
    if role.num_actors % host.num_actors:
        raise UserError(f"placement.{name}.num_actors must be a multiple of the {host.num_actors} of {role.beside}, "
                        f"which it is beside, got {role.num_actors}")
    total = host.num_gpus + role.num_actors // host.num_actors * role.num_gpus
    if total > 1 + 1e-6 and (host.num_gpus % 1 or role.num_gpus % 1):
        raise UserError(f"placement.{name}.num_gpus must share one GPU with {role.beside}, or be whole, got {total:g} "
                        f"GPUs ({host.num_gpus:g} + {role.num_actors // host.num_actors} x {role.num_gpus:g})")


def _bundle(name: str, number: int, role: RoleConfig, guests: Roles) -> Bundle:
    actors, num_cpus, num_gpus = [(name, number)], role.num_cpus, role.num_gpus
    for guest, config in guests.items():
        count = config.num_actors // role.num_actors
        actors += [(guest, number * count + index) for index in range(count)]
        num_cpus, num_gpus = num_cpus + count * config.num_cpus, num_gpus + count * config.num_gpus
    return Bundle(round(num_cpus, 4), round(num_gpus, 4), role.pool, tuple(actors))


class _Room:
    """What is left of a node while bundles are put on it."""

    def __init__(self, number: int, node: Node) -> None:
        self.number, self.pool = number, node.pool
        self.free = {"CPU": round(node.num_cpus * _UNIT), "GPU": node.num_gpus * _UNIT}
        self.gpus = [_UNIT] * node.num_gpus

    def fits(self, needs: Mapping[str, int], pools: Sequence[str | None]) -> bool:
        return all(self.free[name] >= need for name, need in needs.items()) and all(
            pool in (None, self.pool) for pool in pools)

    def score(self, needs: Mapping[str, int]) -> float:
        """The emptier a node is left, the higher: as Ray's LeastResourceScorer."""
        return sum((self.free[name] - need) / self.free[name] for name, need in needs.items() if self.free[name])

    def take(self, bundle: Bundle) -> Place:
        needs = _needs(bundle)
        for name, need in needs.items():
            self.free[name] -= need
        return Place(bundle, self.number, self._take_gpus(needs.get("GPU", 0), bundle))

    def _take_gpus(self, need: int, bundle: Bundle) -> tuple[int, ...]:
        if need == 0:
            return ()
        if need >= _UNIT:
            chosen = [index for index, free in enumerate(self.gpus) if free == _UNIT][: need // _UNIT]
            is_enough = len(chosen) == need // _UNIT and need % _UNIT == 0
        else:       # the fullest GPU that has room
            chosen = sorted((index for index, free in enumerate(self.gpus) if free >= need),
                            key=self.gpus.__getitem__)[:1]
            is_enough = bool(chosen)
        if not is_enough:
            raise UserError(f"placement must leave whole GPUs to share out, got fractions that leave none for {bundle};"
                            " choose fractions that add up to 1 on each GPU, or place roles beside each other")
        for index in chosen:
            self.gpus[index] -= min(need, _UNIT)
        return tuple(chosen)


def place(wanted: Sequence[Group], nodes: Sequence[Node]) -> list[Place]:
    """Where Ray would put the bundles of all groups on otherwise empty `nodes`, group after group, bundles in order.

    PACK fills the emptiest node as far as it goes, then the next; SPREAD takes a new node for each bundle while there
    is one; the strict forms take one node for all, or refuse two on one. Bundles with many GPUs go first, then those
    with many CPUs. Among equal nodes Ray takes any; here it is the first.

    Raises UserError for a bundle that no node has room for.

    Source: Ray 2.60, bundle_scheduling_policy.cc and scorer.cc.
    """
    rooms = [_Room(number, node) for number, node in enumerate(nodes)]
    found: list[Place] = []
    for group in wanted:
        chosen = _STRATEGIES[group.strategy](group, rooms, nodes)
        found += [rooms[number].take(bundle) for bundle, number in zip(group.bundles, chosen, strict=True)]
    return found


def _needs(*bundles: Bundle) -> dict[str, int]:
    sums = {"CPU": sum(bundle.num_cpus for bundle in bundles), "GPU": sum(bundle.num_gpus for bundle in bundles)}
    return {name: round(value * _UNIT) for name, value in sums.items() if value}


def _in_rays_order(group: Group) -> list[int]:
    return sorted(range(len(group.bundles)),
                  key=lambda number: (-group.bundles[number].num_gpus, -group.bundles[number].num_cpus))


def _best(bundles: Sequence[Bundle], rooms: Sequence[_Room]) -> _Room | None:
    needs = _needs(*bundles)
    fitting = [room for room in rooms if room.fits(needs, [bundle.pool for bundle in bundles])]
    return max(fitting, key=lambda room: room.score(needs), default=None)


def _drafts(rooms: Sequence[_Room]) -> list[_Room]:
    """Copies to try on: Ray decides on sums alone, a node's GPUs are shared out afterwards."""
    drafts = []
    for room in rooms:
        draft = object.__new__(_Room)
        draft.number, draft.pool, draft.free, draft.gpus = room.number, room.pool, dict(room.free), []
        drafts.append(draft)
    return drafts


def _reserve(room: _Room, bundle: Bundle) -> int:
    for name, need in _needs(bundle).items():
        room.free[name] -= need
    return room.number


def _pack(group: Group, rooms: Sequence[_Room], nodes: Sequence[Node]) -> list[int]:
    left, candidates, chosen = _in_rays_order(group), _drafts(rooms), {}
    while left:
        room = _best([group.bundles[left[0]]], candidates)
        if room is None:
            raise _no_room(group.bundles[left[0]], group, candidates, nodes)
        for number in list(left):
            bundle = group.bundles[number]
            if room.fits(_needs(bundle), [bundle.pool]):
                chosen[number] = _reserve(room, bundle)
                left.remove(number)
        candidates.remove(room)
    return [chosen[number] for number in range(len(group.bundles))]


def _spread(group: Group, rooms: Sequence[_Room], nodes: Sequence[Node]) -> list[int]:
    fresh, used, chosen = _drafts(rooms), [], {}
    for number in _in_rays_order(group):
        bundle = group.bundles[number]
        room = _best([bundle], fresh) or _best([bundle], used)
        if room is None:
            raise _no_room(bundle, group, [*fresh, *used], nodes)
        if room in fresh:
            fresh.remove(room)
            used.append(room)
        chosen[number] = _reserve(room, bundle)
    return [chosen[number] for number in range(len(group.bundles))]


def _strict_pack(group: Group, rooms: Sequence[_Room], nodes: Sequence[Node]) -> list[int]:
    room = _best(group.bundles, rooms)
    if room is None:
        pools = {bundle.pool for bundle in group.bundles} - {None}
        whole = Bundle(sum(bundle.num_cpus for bundle in group.bundles),
                       sum(bundle.num_gpus for bundle in group.bundles), " and ".join(sorted(map(str, pools))) or None,
                       group.bundles[0].actors[:1] + group.bundles[-1].actors[-1:])
        raise _no_room(whole, group, rooms, nodes)
    return [room.number] * len(group.bundles)


def _strict_spread(group: Group, rooms: Sequence[_Room], nodes: Sequence[Node]) -> list[int]:
    candidates, chosen = _drafts(rooms), {}
    for number in _in_rays_order(group):
        room = _best([group.bundles[number]], candidates)
        if room is None:
            raise _no_room(group.bundles[number], group, candidates, nodes)
        candidates.remove(room)
        chosen[number] = room.number
    return [chosen[number] for number in range(len(group.bundles))]


_STRATEGIES = {"PACK": _pack, "SPREAD": _spread, "STRICT_PACK": _strict_pack, "STRICT_SPREAD": _strict_spread}


def _no_room(bundle: Bundle, group: Group, rooms: Sequence[_Room], nodes: Sequence[Node]) -> UserError:
    left = [f"{nodes[room.number].name} {room.free['CPU'] / _UNIT:g} CPUs, {room.free['GPU'] / _UNIT:g} GPUs"
            + (f", pool {room.pool}" if room.pool else "") for room in rooms]
    shown = "; ".join(left[:8]) + (f"; and {len(left) - 8} more" if len(left) > 8 else "") or "no node that is not used"
    role = bundle.actors[0][0]
    return UserError(f"placement must find a node for {bundle} by strategy {group.strategy}, got none (left: {shown}); "
                     f"lower placement.{role}.num_cpus, num_gpus or num_actors, or change its pool or strategy")
