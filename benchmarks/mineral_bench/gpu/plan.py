"""The stages in their order, how long each may take, and what each depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        seconds: its share of `MINUTES`.
        work: "module:function" of `mineral_bench.gpu.stages`.
        needs: stages that must be done before it.
        uses: stages whose files it takes if they are done.
        has_photos: it compares output, or calibrates, on photographs if they are given.
    """

    seconds: int
    work: str
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    has_photos: bool = False


#: Decisive figures first. What others depend on, and what answers whether each GPU path runs and is right, comes before
#: peers; what may take longest, or is nice to know, is last.
STAGES = {
    "install": StagePlan(45, "setup:install"),
    "chip": StagePlan(25, "chip:chip"),
    "models": StagePlan(85, "models:models"),
    "attention": StagePlan(35, "models:attention", ("models",)),
    "verify": StagePlan(25, "verify:verify", ("models",), ("attention",), has_photos=True),
    "engines": StagePlan(60, "engines:engines", ("models",), ("attention",)),
    "photographs": StagePlan(15, "models:photographs"),
    "end_to_end": StagePlan(40, "engines:end_to_end", ("models", "photographs"), ("attention",)),
    "starter": StagePlan(20, "engines:starter", uses=("photographs",), has_photos=True),
    "decoding": StagePlan(20, "engines:decoding", ("models", "photographs")),
    "peers": StagePlan(30, "peers:peers", uses=("models", "photographs")),
    "compiled": StagePlan(25, "peers:compiled", uses=("photographs",)),
    "rtx": StagePlan(5, "tensorrt:rtx", ("models",), ("photographs",), has_photos=True),
    "quantized": StagePlan(5, "tensorrt:quantized", ("models",), has_photos=True),
    "kernels": StagePlan(5, "engines:kernels", ("models",), ("attention",)),
    "pycuda": StagePlan(10, "setup:pycuda"),
}

#: Of a rented quarter of an hour, what is left beside starting the machine and the deliveries.
MINUTES = 7.5

#: A stage is not started with less.
_LEAST = 5.0


@dataclass
class Deadlines:
    """When each stage must end; times as `time.monotonic` gives them.

    A stage may take its own share and what earlier ones left over. If one takes longer, as `models` may on a slow
    machine, later ones still get their shares, and the last ones go without: nothing that depends on it is lost.

    Attributes:
        start: of the run.
        minutes: of the whole run.
    """

    start: float
    minutes: float

    @property
    def end(self) -> float:
        """The end of the run."""
        return self.start + 60 * self.minutes

    def of(self, name: str, now: float) -> float:
        """Return when a stage that starts now must end.

        A stage that others need may go on until the others' shares before `peers` would not fit any more.
        """
        scale = self.minutes / MINUTES
        names = list(STAGES)
        planned = self.start + scale * sum(STAGES[other].seconds for other in names[: names.index(name) + 1])
        until = max(planned, now + scale * STAGES[name].seconds)
        if any(name in plan.needs for plan in STAGES.values()):
            until = max(until, self.end - scale * self._seconds_of_dependants(name))
        return min(self.end, until)

    def _seconds_of_dependants(self, name: str) -> int:
        return sum(plan.seconds for plan in list(STAGES.values())[: list(STAGES).index("peers")] if name in plan.needs)

    @staticmethod
    def is_enough(until: float, now: float) -> bool:
        """Whether a stage is worth starting."""
        return until - now >= _LEAST
