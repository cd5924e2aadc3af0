"""From what values a sweep draws one setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from raycap.config import Config

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Choice(Config):
    """One of some values, whose order means nothing."""

    kind: Literal["choice"] = "choice"
    values: tuple[int | float | bool | str | None, ...] = Field(min_length=1)

    def limits(self) -> tuple[Any, ...]:
        """Values that stand for all: if a setting takes these, it takes every one."""
        return self.values

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


class _Range(Config):
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> _Range:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self

    def limits(self) -> tuple[Any, ...]:
        return self.low, self.high


class Uniform(_Range):
    """Real numbers from low to high."""

    kind: Literal["uniform"] = "uniform"

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high)


class LogUniform(_Range):
    """Positive numbers from low to high, every order of magnitude as likely."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: float = Field(gt=0)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


class Integer(_Range):
    """Whole numbers from low to high, both included."""

    kind: Literal["integer"] = "integer"
    low: int
    high: int
    log: bool = False
    """Every order of magnitude as likely; low must be at least 1."""

    @model_validator(mode="after")
    def _has_logarithm(self) -> Integer:
        if self.log and self.low < 1:
            raise ValueError(f"low ({self.low}) must be at least 1 with log; raise it, or set log to false")
        return self

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log)


Domain = Annotated[Choice | Uniform | LogUniform | Integer, Field(discriminator="kind")]
