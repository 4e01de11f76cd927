"""search: which trial to measure next, until the budget is spent or nothing promises more.

First every layer's default and its dense kernel, the costliest layers first.  Then, best-first: the trial
that would save most if it ran as its prediction says, scaled by how the kernel's other trials of this layer
compared with theirs.  Last, each winner is measured again a few times: it must beat the default by more
than noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from sparsec.targets.target import Target
from sparsec.tuning.measurer import Measurer
from sparsec.tuning.records import Config, Record, Records, append
from sparsec.tuning.tasks import Layer, Trial, near

#: a trial may be faster than its prediction by this factor
_HOPE = 0.75
#: what a further trial must promise, as a share of the layers' time
_WORTHWHILE = 0.002
#: a winner must need less than this share of the default's time
_CLEARLY = 0.97
#: measurements that a winner must have, its median counting, and how many may be spent on a layer's
_CONFIRMED, _ATTEMPTS = 4, 12

#: called with a line about the trial, trials done, and the share of the budget that is spent
Progress = Callable[[str, int, float], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: ``minutes`` or ``trials``, whichever comes first; None for no limit."""

    minutes: float | None = 20.0
    trials: int | None = None


@dataclass(slots=True)
class _State:
    """What is known of a layer: microseconds by (kernel, config); None for trials that failed."""

    layer: Layer
    times: dict[tuple[str, Config], float | None]
    #: everything offered so far
    trials: list[Trial]

    @property
    def default(self) -> Trial:
        return self.layer.trials[0]

    @property
    def base(self) -> float | None:
        """Microseconds of the default, once measured."""
        return self.times.get((self.default.kernel, self.default.config))

    @property
    def best(self) -> float:
        """Microseconds of the best trial so far, the default's prediction before the first."""
        return min((t for t in self.times.values() if t is not None), default=self.default.predicted)

    @property
    def open(self) -> list[Trial]:
        """What could be measured; nothing once the default has failed."""
        default = self.default.kernel, self.default.config
        if default in self.times and self.base is None:
            return []
        return [t for t in self.trials if (t.kernel, t.config) not in self.times]

    def promised(self, trial: Trial) -> float:
        """Microseconds a trial may take, with luck."""
        ratios = [
            measured / other.predicted
            for other in self.trials
            if other.kernel == trial.kernel and (measured := self.times.get((other.kernel, other.config)))
        ]
        return trial.predicted * (median(ratios) if ratios else 1.0) * _HOPE

    def first(self) -> Iterator[Trial]:
        """What is measured before anything is compared."""
        yield self.default
        yield from [t for t in self.trials if t.kernel.startswith("dense")][:1]

    def offer(self, trials: list[Trial]) -> None:
        """More that could be measured."""
        self.trials += [t for t in trials if t not in self.trials]


@dataclass(slots=True)
class Search:
    """Measures the trials of layers; every result is written to ``path`` at once."""

    layers: list[Layer]
    target: Target
    records: Records
    path: Path | None
    measurer: Measurer
    budget: Budget
    progress: Progress = lambda text, done, share: None
    done: int = 0
    _states: list[_State] = field(default_factory=list)
    _started: float = 0.0

    def run(self) -> None:
        """Search until the budget is spent; what was measured before is not measured again."""
        self._started = time.monotonic()
        self._states = [self._known(layer) for layer in self.layers]
        self._states.sort(key=lambda s: -s.best * s.layer.count)
        for state in self._states:
            for trial in state.first():
                if trial in state.open and not self._spent():
                    self._measure(state, trial)
        while not self._spent() and (chosen := self._next()):
            self._measure(*chosen)
        for state in self._states:
            self._confirm(state)

    def _known(self, layer: Layer) -> _State:
        """What the records hold."""
        times: dict[tuple[str, Config], float | None] = dict.fromkeys(self.records.tried(layer.task))
        return _State(layer, times | dict(self.records.times(layer.task)), list(layer.trials))

    @property
    def share(self) -> float:
        """How much of the budget is spent."""
        minutes, trials = self.budget.minutes, self.budget.trials
        spent = [(time.monotonic() - self._started) / 60 / minutes] if minutes else []
        spent += [self.done / trials] if trials else []
        return min(1.0, max(spent, default=0.0))

    def _spent(self) -> bool:
        return self.share >= 1.0

    def _next(self) -> tuple[_State, Trial] | None:
        """The trial that promises to save most."""
        total = sum(s.best * s.layer.count for s in self._states)
        gains = [
            ((s.best - s.promised(t)) * s.layer.count, i, s, t)
            for i, s in enumerate(self._states)
            for t in s.open
        ]
        if not gains:
            return None
        gain, _, state, trial = max(gains, key=lambda g: g[:2])
        return (state, trial) if gain > _WORTHWHILE * total else None

    def _measure(self, state: _State, trial: Trial) -> float | None:
        """Measure a trial and keep its time: that of the default, times how they compared."""
        key = trial.kernel, trial.config
        answer = self.measurer.measure(state.layer, *key)
        micro = None
        if answer.seconds and answer.default:
            base = state.base or answer.default * 1e6
            micro = round(base * answer.seconds / answer.default, 3)
        record = Record(state.layer.task, *key, micro, answer.status)
        state.times[key] = micro
        self.records.add(record)
        if self.path is not None:
            append(self.path, record)
        if micro is not None and micro <= state.best:
            state.offer(near(state.layer, *key, self.target))
        self.done += 1
        self.progress(_line(state, trial, micro, answer.status), self.done, self.share)
        return micro

    def _confirm(self, state: _State) -> None:
        """Measure a winner again, so that luck does not choose it."""
        if state.base is None:
            return
        for _ in range(_ATTEMPTS):
            times = self.records.times(state.layer.task)
            key = min(times, key=lambda k: times[k])
            counted = sum((r.kernel, r.config) == key for r in self.records.by_task[state.layer.task])
            if key == (state.default.kernel, state.default.config) or counted >= _CONFIRMED:
                return
            self._measure(state, Trial(*key, times[key]))


def chosen(
    times: Mapping[tuple[str, Config], float], default: tuple[str, Config]
) -> tuple[str, Config] | None:
    """The fastest of measured ways to run a layer; the default unless another is clearly faster."""
    if not times:
        return None
    best = min(times, key=lambda key: times[key])
    if default in times and times[best] > _CLEARLY * times[default]:
        return default
    return best


def _line(state: _State, trial: Trial, micro: float | None, status: str) -> str:
    settings = ", ".join(f"{word}={value}" for word, value in trial.config)
    time_text = f"{micro:.1f} us (best {state.best:.1f})" if micro is not None else status
    return f"{state.layer.node.name}: {trial.kernel}({settings}) {time_text}"
