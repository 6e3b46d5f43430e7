"""Tree search over action sequences with progressive widening: for dynamics that allow a finite set of actions.

Upper confidence bounds on trees (Kocsis and Szepesvari 2006) with progressive widening (Coulom 2007; Couetoux et al.
2011): a node that was visited n times may have ceil(widening * n^exponent) children, so that a large set (729 latent
codes) or a continuous range is looked at a few actions at a time. Three things fit it to imagination: leaves are
collected in batches (a pending visit counts, so a batch spreads), the steps below a leaf are taken from the best
sequence so far, and that sequence is always a path of the tree. The value of a node is the lowest cost below it, which
suits dynamics with little noise. Every sequence is imagined from the root, since that is what a shared context makes
cheap.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from planners.base import PlannerError, check_knobs
from planners.search import Ask, Choice, Search, Space, plan_by_search


@dataclass(frozen=True, kw_only=True)
class TreeSearch:
    """Plan by tree search over `dynamics.action_set` [M, A], or over actions drawn from the bounds where there is none.

    Attributes:
        horizon: H, planned steps and depth of the tree.
        num_candidates: Leaves that are imagined in every iteration.
        num_iterations: Batches of leaves.
        exploration: Weight of the confidence bound; costs are scaled to [0, 1].
        widening: Children that a node may have after its first visit.
        widening_exponent: How fast further children are allowed, in (0, 1).
        num_recorded: Most candidates that a Plan records.
    """

    horizon: int = 8
    num_candidates: int = 64
    num_iterations: int = 6
    exploration: float = 0.1
    widening: float = 2.0
    widening_exponent: float = 0.5
    num_recorded: int = 256

    def __post_init__(self) -> None:
        """Raise PlannerError for knobs outside their ranges."""
        check_knobs(
            self,
            [
                (self.horizon >= 1, "horizon", "at least 1"),
                (self.num_candidates >= 1, "num_candidates", "at least 1"),
                (self.num_iterations >= 1, "num_iterations", "at least 1"),
                (self.exploration >= 0, "exploration", "at least 0"),
                (self.widening >= 1, "widening", "at least 1"),
                (0 < self.widening_exponent < 1, "widening_exponent", "in (0, 1)"),
                (self.num_recorded >= 1, "num_recorded", "at least 1"),
            ],
        )

    @property
    def num_sequences(self) -> int:
        """Return how many sequences a plan imagines at most; fewer where every sequence of the set was tried."""
        return self.num_candidates * self.num_iterations

    def search(self, space: Space, generator: torch.Generator) -> Search:
        """Grow the tree; see planners.search.Searcher."""
        actions = _Actions(space, generator)
        tree = _Tree(self, actions.limit)
        known = actions.allowed(torch.cat([space.starts, space.zero[None]]))
        space.room(self.num_candidates, known)
        best, lowest = known[0], math.inf
        paths = [tree.insert(sequence) for sequence in known]
        sequences = list(known)
        for _ in range(self.num_iterations):
            while len(sequences) < self.num_candidates and (path := tree.descend(actions)) is not None:
                paths.append(path)
                head = torch.stack([node.action for node in path[1:]])
                sequences.append(torch.cat([head, best[len(head) :]]))
            if not sequences:
                break
            told = yield Ask(torch.stack(sequences))
            costs = [float(cost) for cost in told.costs.cpu()]
            for path, cost in zip(paths, costs, strict=True):
                tree.learn(path, cost)
            index = int(told.costs.argmin())
            if costs[index] < lowest:
                best, lowest = sequences[index], costs[index]
                tree.learn(tree.insert(best), lowest)
            paths, sequences = [], []
        return Choice()

    plan = plan_by_search


type Key = tuple[float, ...]
"""An action as numbers, by which children are told apart."""


def key_of(action: Tensor) -> Key:
    """Return an action [A] as numbers."""
    return tuple(float(value) for value in action)


class _Actions:
    """What a node's children can be."""

    def __init__(self, space: Space, generator: torch.Generator) -> None:
        self._space, self._generator = space, generator
        self._set: Tensor | None = getattr(space.dynamics, "action_set", None)
        self._keys: list[Key] = []
        if self._set is not None:
            self._check(self._set)
            self._keys = [key_of(action) for action in self._set]
        self.limit = math.inf if self._set is None else len(self._set)

    def _check(self, action_set: Tensor) -> None:
        size = len(self._space.low)
        is_set = action_set.ndim == 2 and len(action_set) > 0 and action_set.shape[1] == size
        if not is_set or not torch.equal(self._space.clamp(action_set), action_set):
            raise PlannerError(
                f"{self._space.planner}: action_set has shape {tuple(action_set.shape)}; expected [M, {size}], M at "
                "least 1, every action within the dynamics' bounds."
            )

    def allowed(self, sequences: Tensor) -> Tensor:
        """Return sequences [N, H, A] with every action replaced by the nearest allowed one."""
        if self._set is None:
            return sequences
        return self._set[torch.cdist(sequences.flatten(0, 1), self._set).argmin(1)].view(sequences.shape)

    def draw(self, taken: dict[Key, "_Node"]) -> tuple[Key, Tensor]:
        """Return an action [A] that is not taken, and its key."""
        low, generator = self._space.low, self._generator
        if self._set is None:
            part = torch.rand(len(low), generator=generator, device=generator.device).to(low)
            action = self._space.clamp(torch.lerp(low, self._space.high, part))
            return key_of(action), action
        while True:
            index = int(torch.randint(len(self._set), (), generator=generator, device=generator.device))
            if self._keys[index] not in taken:
                return self._keys[index], self._set[index]


class _Node:
    """An action in a sequence, and what is known of the sequences that go through it."""

    __slots__ = ("action", "children", "is_closed", "lowest", "visits")

    def __init__(self, action: Tensor) -> None:
        self.action = action
        self.children: dict[Key, _Node] = {}
        self.visits = 0
        self.lowest = math.inf
        self.is_closed = False


class _Tree:
    """The sequences that were looked at; a node is closed when nothing new is below it."""

    def __init__(self, config: TreeSearch, limit: float) -> None:
        self._config, self._limit = config, limit
        self._root = _Node(torch.empty(0))
        self._lowest, self._highest = math.inf, -math.inf

    def insert(self, sequence: Tensor) -> list[_Node]:
        """Make a sequence [H, A] a path of the tree and return it, the root first."""
        path = [self._root]
        for action in sequence:
            path.append(path[-1].children.setdefault(key_of(action), _Node(action)))
        return self._visited(path)

    def descend(self, actions: _Actions) -> list[_Node] | None:
        """Return a path to a new leaf, the root first; None where there is nothing new."""
        if self._root.is_closed:
            return None
        path = [self._root]
        while len(path) <= self._config.horizon:
            node = path[-1]
            still_open = [child for child in node.children.values() if not child.is_closed]
            allowed = math.ceil(self._config.widening * (node.visits + 1) ** self._config.widening_exponent)
            if len(node.children) < self._limit and (len(node.children) < allowed or not still_open):
                key, action = actions.draw(node.children)
                node.children[key] = child = _Node(action)
                return self._visited([*path, child])
            bonus = self._config.exploration * math.sqrt(math.log(node.visits + 1))
            path.append(max(still_open, key=lambda child, bonus=bonus: self._bound(child, bonus)))
        return self._visited(path)

    def _bound(self, child: _Node, bonus: float) -> float:
        """Return the upper confidence bound of a child; what is pending counts as the worst."""
        spread = max(self._highest - self._lowest, 1e-12)
        value = 0.0 if math.isinf(child.lowest) else (self._highest - child.lowest) / spread
        return value + bonus / math.sqrt(child.visits + 1)

    def _visited(self, path: list[_Node]) -> list[_Node]:
        """Count a visit of every node of a path, and close what is complete."""
        for node in path:
            node.visits += 1
        path[-1].is_closed = len(path) == self._config.horizon + 1
        for node in reversed(path[:-1]):
            node.is_closed = len(node.children) == self._limit and all(
                child.is_closed for child in node.children.values()
            )
        return path

    def learn(self, path: list[_Node], cost: float) -> None:
        """Tell every node of a path what its sequence cost."""
        self._lowest, self._highest = min(self._lowest, cost), max(self._highest, cost)
        for node in path:
            node.lowest = min(node.lowest, cost)
